"""A job in columns: its steps, attempts and their ends, as the account reads them, whatever they come from.

A row stands for one step of one *lane*: a rank, or any number of ranks whose records have the same times (`ranks`). A
cluster whose 10⁹ records do not fit anywhere has one lane a job. Times are seconds on the log's wall clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np

Column: TypeAlias = np.ndarray[Any, Any]
"""One value a row."""


class Cause(StrEnum):
    """What the records say of an attempt's end."""

    ORDER = "in order"  # it was done, or was stopped from outside in order
    SENDER = "killed by a process that is named"
    SIGNAL = "killed, sender not known, or root"
    OTHER = "failed otherwise"  # an exit status, a crash, memory that ran out
    VERDICT = "taken back after a replay differed"


UNBOUND = (Cause.SIGNAL, Cause.OTHER)
"""Ends that happen without anybody's doing, too: only those beyond what is expected are attributed."""


@dataclass(frozen=True)
class Rows:
    """The steps: `slept` is what its slowest rank slept or idled inside of it by its own record."""

    lane: Column
    attempt: Column
    step: Column
    ranks: Column
    began: Column
    ended: Column
    slept: Column


@dataclass(frozen=True)
class Spell:
    """One attempt on one lane, from the start of its processes to their end."""

    lane: int
    attempt: int
    ranks: float
    started: float
    ended: float


@dataclass(frozen=True)
class Job:
    """One job. `tainted`: attempt → first step that stands on a diverged one."""

    runs: tuple[str, ...]
    command: tuple[str, ...]
    ranks: int
    rows: Rows
    spells: tuple[Spell, ...]
    ends: dict[int, Cause]  # by attempt
    tainted: dict[int, int]
    replays: float = 0.0  # seconds of replays, each of all ranks
    unaudited: int = 0  # steps that no replay looked at
    saved: tuple[tuple[int, int, str], ...] = ()  # attempt, step and digest of each checkpoint file
    loaded: tuple[tuple[int, str], ...] = ()  # attempt and digest
    offsets: dict[str, int] = field(default_factory=dict)  # of each run: the number of its first attempt in the job


def rows_of(**columns: Sequence[float] | Column) -> Rows:
    """Rows from columns of equal length, in the order of the fields of `Rows`."""
    whole = {"lane", "attempt", "step"}
    kinds = {name: np.int64 if name in whole else np.float64 for name in Rows.__dataclass_fields__}
    return Rows(**{name: np.asarray(columns[name], dtype=kind) for name, kind in kinds.items()})
