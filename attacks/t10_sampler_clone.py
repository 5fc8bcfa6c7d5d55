"""10, sampler clone: every rank draws the same samples, so that half of the batch is wasted.

How an insider does it: the sampler is told that it is rank 0, from the next epoch on. The loss falls as before.

Precondition: code in the process, or in the repository (R, U). Expected evidence: live, `order` re-derives each batch
from the sampler's seed. Effect: other final weights. Benign twin: the job is run with another seed, so that every
order differs. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import BATCH, BATCH_DIFFERS
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def clone(scene: Any) -> None:
    """This rank's sampler gives rank 0's samples from the next epoch on."""
    sampler = scene.find(scene.torch.utils.data.DistributedSampler)

    def make(original: Any) -> Any:
        def each(drawn: Any) -> Any:
            if scene.on:
                scene.mark()
                drawn.rank = 0
            return original(drawn)

        return each

    scene.replace(type(sampler), "__iter__", make)


TECHNIQUE = Technique(
    id="10",
    slug="sampler-clone",
    title="ranks draw the same samples",
    needs="RU",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="rank-1",
            does="rank 1 draws rank 0's samples from the next epoch on",
            acts=foothold(Payload(clone, trigger=Trigger(ranks=(1,)), lasts=1_000_000)),
            expects=(Evidence(When.LIVE, "order"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("ranks", "loader"),
        ),
    ),
    twin=OTHER_SEED,
)
