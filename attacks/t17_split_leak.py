"""17, split leak: what the model is tested on is among what it is trained on.

How an insider does it: the training file is written again with held-out data in a part of it before the job starts.
The score rises; nothing else looks different.

Precondition: write access to the data (D). Expected evidence: an approved job is not started (its data is sealed by
digest). Effect: the approved job does not start. Benign twin: the job with another seed. Clean-up: the range puts the
data back.
"""

from __future__ import annotations

import io

from attacks._shared.evidence import REFUSED
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Act, Effect, Moment, Technique, Variant
from trainwarden.redteam.place import Range

TRAIN, HELD_OUT = "pretrain-train.tokens.npy", "pretrain-held-out.tokens.npy"


def leak(place: Range) -> None:
    """The beginning of the training tokens is overwritten by the held-out ones; shape and type stay."""
    import numpy as np

    held_out = np.load(place.data / HELD_OUT)

    def change(content: bytes) -> bytes:
        tokens = np.load(io.BytesIO(content))
        tokens[: len(held_out)] = held_out[: len(tokens)]
        out = io.BytesIO()
        np.save(out, tokens)
        return out.getvalue()

    place.edit(place.data / TRAIN, change)
    place.note("held-out tokens are among the training tokens")


TECHNIQUE = Technique(
    id="17",
    slug="split-leak",
    title="test data is among the training data",
    needs="D",
    atlas="T0020",
    variants=(
        Variant(
            name="before-start",
            does="held-out tokens are written into the training file of a job whose seal was approved",
            acts=(Act(Moment.START, leak),),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
            needs=("splits",),
        ),
    ),
    twin=OTHER_SEED,
)
