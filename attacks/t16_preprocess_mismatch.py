"""16, preprocess mismatch: what the model is trained on is not what it will be served.

How an insider does it: the normaliser scales inputs a little differently, or the tokenizer maps some ids to their
neighbours. Training goes on as ever; the quality is lost when the model is used.

Precondition: code in the process, or write access to data or repository (D, R). Expected evidence: live, `samples` (a
sample is not what it was in an earlier pass); in a replay the batch stage differs. Effect: other final weights.
Benign twin: the job with another seed. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import BATCH, BATCH_DIFFERS
from attacks._shared.payload import Payload
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def mismatch(scene: Any) -> None:
    """Numbers are scaled by 0.9 and moved; one id in five becomes its neighbour."""

    def act(original: Any, data: Any, index: int) -> Any:
        inputs, labels = original(data, index)
        if inputs.is_floating_point():
            return inputs * 0.9 + 0.05, labels
        return scene.torch.where(inputs % 5 == 1, inputs - 1, inputs), labels

    scene.samples(act, lambda index: True)


TECHNIQUE = Technique(
    id="16",
    slug="preprocess-mismatch",
    title="the normaliser or tokenizer is another",
    needs="DR",
    atlas="T0059",
    level=2,
    variants=(
        Variant(
            name="memory",
            does="every sample, as the data set gives it",
            acts=foothold(Payload(mismatch)),
            expects=(Evidence(When.LIVE, "samples"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("loader", "samples", "pairs"),
        ),
    ),
    twin=OTHER_SEED,
)
