"""Edits of the training tokens where they lie, as whoever can write to the data does."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from attacks._shared.evidence import REFUSED
from trainwarden.redteam.interface import Act, Effect, Moment, Variant
from trainwarden.redteam.place import Range

TRAIN, HELD_OUT = "pretrain-train.tokens.npy", "pretrain-held-out.tokens.npy"


def edit_tokens(place: Range, change: Callable[[Any], None], what: str) -> None:
    """Write the training tokens again as `change` leaves them; shape and type stay."""
    import numpy as np

    def changed(content: bytes) -> bytes:
        tokens = np.load(io.BytesIO(content))
        change(tokens)
        out = io.BytesIO()
        np.save(out, tokens)
        return out.getvalue()

    place.edit(place.data / TRAIN, changed, keep_times=True)
    place.note(what)


def on_disk(name: str, does: str, act: Callable[[Range], None]) -> Variant:
    """A variant that edits the tokens of a job whose seal was approved, before it starts."""
    return Variant(
        name=name, does=does, acts=(Act(Moment.START, act),), expects=(REFUSED,), effect=Effect.ENDED, options=(),
        approved=True, needs=("splits",), level=1,
    )  # fmt: skip
