"""15, order attack: the data comes in a chosen order.

How an insider does it: the sampler sorts what it drew. Every sample is honest, none is missing, and the model learns
from runs of like samples (the effect on a small model: RESEARCH.md, section 6).

Precondition: code in the process, or in the repository (R). Expected evidence: live, `order` re-derives each batch from
the sampler's seed. Effect: other final weights. Benign twin: the job with another seed, so that every order differs.
Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import BATCH, BATCH_DIFFERS
from attacks._shared.payload import Payload
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def in_order(scene: Any) -> None:
    """What a rank's sampler draws comes sorted, from the next epoch on."""
    sampler = scene.find(scene.torch.utils.data.DistributedSampler)

    def make(original: Any) -> Any:
        def each(drawn: Any) -> Any:
            order = list(original(drawn))
            if scene.on:
                scene.mark()
                order.sort()
            return iter(order)

        return each

    scene.replace(type(sampler), "__iter__", make)


TECHNIQUE = Technique(
    id="15",
    slug="order-attack",
    title="the data comes in a chosen order",
    needs="R",
    atlas="T0020",
    level=2,
    variants=(
        Variant(
            name="sorted",
            does="every rank's samples come sorted by index from the next epoch on",
            acts=foothold(Payload(in_order, lasts=1_000_000)),
            expects=(Evidence(When.LIVE, "order"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("loader",),
        ),
    ),
    twin=OTHER_SEED,
)
