"""Checkpoints and what is known of them."""

from __future__ import annotations

from enum import StrEnum

from trainwarden.model.base import Noun
from trainwarden.model.happenings import CheckpointSaved
from trainwarden.model.verdicts import Segment


class Standing(StrEnum):
    """What is known of a checkpoint: cleared needs *every* segment back to the seal to be Matched."""

    CLEARED = "cleared"
    TAINTED = "tainted"
    UNAUDITED = "unaudited"
    UNDECIDED = "undecided"


class Checkpoint(Noun):
    """A step's checkpoint: its files, the segments it stands on (oldest first), and its standing."""

    step: int
    attempt: int
    files: tuple[CheckpointSaved, ...]
    lineage: tuple[Segment, ...]
    standing: Standing
    reason: str = ""
