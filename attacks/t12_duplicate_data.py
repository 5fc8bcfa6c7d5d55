"""12, duplicate data: some samples are replaced by copies of others.

How an insider does it: the data set's `__getitem__` gives another index's sample now and then; or a part of the
training file is written over by another.

Precondition: code in the process, or write access to the data (D). Expected evidence: live, `samples`; in a replay the
batch stage differs; an approved job whose file was edited is not started. Effect: other final weights, or no start.
Benign twin: the job with another seed. Clean-up: none needed, the process ends; the range puts the data back.
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


def duplicate(scene: Any) -> None:
    """One sample in four is another that was seen already."""
    scene.samples(lambda original, data, index: original(data, index // 2), lambda index: index % 4 == 3)


def duplicate_on_disk(place: Range) -> None:
    """The second quarter of the training tokens stands in the place of the first."""

    def change(tokens: Any) -> None:
        quarter = len(tokens) // 4
        tokens[:quarter] = tokens[quarter : 2 * quarter]

    edit_tokens(place, change, "training tokens are there twice")


TECHNIQUE = Technique(
    id="12",
    slug="duplicate-data",
    title="samples are overwritten by copies of others",
    needs="D",
    atlas="T0059",
    level=2,
    variants=(
        Variant(
            name="memory",
            does="one sample in four is another, as the data set gives them",
            acts=foothold(Payload(duplicate)),
            expects=(Evidence(When.LIVE, "samples"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("loader", "samples"),
        ),
        on_disk(
            "disk",
            "a quarter of the training file is a copy of the next one; its times are put back",
            duplicate_on_disk,
        ),
    ),
    twin=OTHER_SEED,
)
