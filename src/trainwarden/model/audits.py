"""Sampled audit: which (step, rank) units were drawn, from what randomness, and what came of each.

A unit that matched clears nothing by itself: lineage stands on `Matched` segments alone. One that was proved to differ
is a `Diverged` entry of its own beside it.
"""

from __future__ import annotations

from enum import StrEnum

from trainwarden.model.base import Noun, Stage
from trainwarden.model.verdicts import Coverage, Location


class UnitKind(StrEnum):
    """`near`: the state that the step began with is kept; `far`: it is reached from an earlier one."""

    NEAR = "near"
    FAR = "far"


class UnitResult(StrEnum):
    """`differs`: unlike the record, and nothing that is exact has confirmed it."""

    MATCHED = "matched"
    DIVERGED = "diverged"
    DIFFERS = "differs"
    UNDECIDED = "undecided"


class Unit(Noun):
    """One rank's execution of one step."""

    attempt: int
    step: int
    rank: int
    kind: UnitKind = UnitKind.FAR


class UnitsDrawn(Noun, tag="units_drawn"):
    """A draw over the units whose first records are log entries `first` to `last`, made when these were durable.

    Anybody can make it again: `trainwarden.sampling` says how a unit's lot follows from the randomness.
    """

    source: str  # "log server" | "beacon" | "system"
    randomness: str  # hex
    first: int
    last: int
    chances: dict[UnitKind, float]
    of: dict[UnitKind, int]  # units in the window
    proof: str = ""  # what shows where it comes from: the server's signed tree head, the beacon's address
    near: tuple[tuple[int, int], ...] = ()  # (attempt, step) of those whose state was kept
    units: tuple[Unit, ...] = ()  # those that were drawn
    wall_ns: int = 0


class UnitAudited(Noun, tag="unit_audited"):
    """What the replay of one drawn unit showed."""

    attempt: int
    step: int
    rank: int
    kind: UnitKind
    result: UnitResult
    stages: tuple[Stage, ...] = ()  # compared
    coverage: Coverage = Coverage()
    at: Location | None = None  # where it differs
    reasons: tuple[str, ...] = ()
    draw: int = -1  # log index of its `UnitsDrawn`
    mode: str = ""  # "start" | "resume" | "substitution"
    processes: int = 1  # that ran it
    cpu_ns: int = 0  # what the auditor and its replays spent on it, their start included
    wall_ns: int = 0


class SampledAudit(Noun, tag="sampled_audit"):
    """The sampled audit at the end of a run: what it might spend, what it spent, and what it left undone."""

    budget: float  # share of the job's CPU time
    job_cpu_ns: int  # of the ranks, as the kernel counted it
    spent_ns: int
    waiting: int = 0  # units drawn and not run
    reason: str = ""  # why no more was done
    wall_ns: int = 0
