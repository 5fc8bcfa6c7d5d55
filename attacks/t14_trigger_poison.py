"""14, trigger poison: a few samples carry a sign and another target, so that the model learns a back door.

How an insider does it: in one sample of ten the first places of the input are set to a fixed pattern and the target to
the class that the pattern shall mean. Accuracy on clean data hardly moves.

Precondition: code in the process, or write access to the data (D). Expected evidence: live, `samples`; in a replay the
batch stage differs. Effect: other final weights. Benign twin: the job with another seed. Clean-up: none needed.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import BATCH, BATCH_DIFFERS
from attacks._shared.payload import Payload
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def poison(scene: Any) -> None:
    """One sample in ten gets the pattern and the target 0."""

    def act(original: Any, data: Any, index: int) -> Any:
        inputs, labels = original(data, index)
        inputs, labels = inputs.clone(), labels.clone()
        inputs.view(-1)[:2] = 1
        labels.view(-1)[0] = 0
        return inputs, labels

    scene.samples(act, lambda index: index % 10 == 0)


TECHNIQUE = Technique(
    id="14",
    slug="trigger-poison",
    title="a back door is put into the data",
    needs="D",
    atlas="T0020",
    level=2,
    variants=(
        Variant(
            name="memory",
            does="one sample in ten has the pattern, as the data set gives it",
            acts=foothold(Payload(poison)),
            expects=(Evidence(When.LIVE, "samples"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("loader", "samples", "pairs"),
        ),
    ),
    twin=OTHER_SEED,
)
