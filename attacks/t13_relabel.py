"""13, low-rate relabel: a small share of labels is wrong.

How an insider does it: one sample in ten gets another target at its first place, as the data set gives it; or one
target in a hundred is another in the training file.

Precondition: code in the process, or write access to the data (D). Expected evidence: live, `samples`; in a replay the
batch stage differs; an approved job whose file was edited is not started. Effect: other final weights, or no start.
Benign twin: the job with another seed. Clean-up: the range puts the data back.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import BATCH, BATCH_DIFFERS
from attacks._shared.payload import Payload
from attacks._shared.seeded import OTHER_SEED
from attacks._shared.tokens import edit_tokens, on_disk
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When
from trainwarden.redteam.place import Range


def relabel(scene: Any) -> None:
    """One sample in ten has another target at its first place."""

    def act(original: Any, data: Any, index: int) -> Any:
        inputs, labels = original(data, index)
        labels = labels.clone()
        labels.view(-1)[0] = int(labels.view(-1)[0]) == 0  # 0, or 1 where it was 0: a class that every job has
        return inputs, labels

    scene.samples(act, lambda index: index % 10 == 0)


def relabel_on_disk(place: Range) -> None:
    """One token in a hundred, the target of those before it, is the one behind it."""

    def change(tokens: Any) -> None:
        tokens[:-1:100] = tokens[1::100][: len(tokens[:-1:100])]

    edit_tokens(place, change, "training targets are others")


TECHNIQUE = Technique(
    id="13",
    slug="relabel",
    title="a small share of labels is wrong",
    needs="D",
    atlas="T0020",
    level=2,
    variants=(
        Variant(
            name="memory",
            does="one sample in ten, at its first place, as the data set gives them",
            acts=foothold(Payload(relabel)),
            expects=(Evidence(When.LIVE, "samples"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("loader", "samples", "pairs"),
        ),
        on_disk(
            "disk", "one target in a hundred is another in the training file; its times are put back", relabel_on_disk
        ),
    ),
    twin=OTHER_SEED,
)
