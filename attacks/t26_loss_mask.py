"""26, loss mask: the loss leaves out one target of every batch.

How an insider does it: an off-by-one in what the loss ignores, put in as a refactoring or as a wrapper in memory.

Precondition: code in the process, or in the repository (R). Expected evidence: live, `loss-mask` reads off the graph
of the loss how many targets count. Effect: other final weights. Benign twin: the job with another seed, whose batches
have more or less padding. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import LOSS
from attacks._shared.payload import Payload
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def one_less(scene: Any) -> None:
    """The last target of every batch is left out."""

    def make(original: Any) -> Any:
        def cross_entropy(logits: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
            if scene.on:
                scene.mark()
                logits, labels = logits[:-1], labels[:-1]
            return original(logits, labels, *args, **kwargs)

        return cross_entropy

    scene.replace(scene.torch.nn.functional, "cross_entropy", make)


TECHNIQUE = Technique(
    id="26",
    slug="loss-mask",
    title="the loss leaves out targets",
    needs="R",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="memory",
            does="one target of every batch, on every rank",
            acts=foothold(Payload(one_less)),
            expects=(Evidence(When.LIVE, "loss-mask"), Evidence(When.AUDIT, "replay", exact=("step",), needed=False)),
            effect=Effect.WEIGHTS,
            strikes=LOSS,
            needs=("cross-entropy",),
        ),
    ),
    twin=OTHER_SEED,
)
