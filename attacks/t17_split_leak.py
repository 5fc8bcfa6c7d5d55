"""17, split leak: what the model is tested on is among what it is trained on.

How an insider does it: the training file is written again with held-out data in a part of it before the job starts.
The score rises; nothing else looks different.

Precondition: write access to the data (D). Expected evidence: an approved job is not started (its data is sealed by
digest). Effect: the approved job does not start. Benign twin: the job with another seed. Clean-up: the range puts the
data back.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.seeded import OTHER_SEED
from attacks._shared.tokens import HELD_OUT, edit_tokens, on_disk
from trainwarden.redteam.interface import Technique
from trainwarden.redteam.place import Range


def leak(place: Range) -> None:
    """The beginning of the training tokens is overwritten by the held-out ones."""
    import numpy as np

    held_out = np.load(place.data / HELD_OUT)

    def change(tokens: Any) -> None:
        tokens[: len(held_out)] = held_out[: len(tokens)]

    edit_tokens(place, change, "held-out tokens are among the training tokens")


TECHNIQUE = Technique(
    id="17",
    slug="split-leak",
    title="test data is among the training data",
    needs="D",
    atlas="T0020",
    variants=(
        on_disk(
            "before-start",
            "held-out tokens are written into the training file of a job whose seal was approved",
            leak,
        ),
    ),
    twin=OTHER_SEED,
)
