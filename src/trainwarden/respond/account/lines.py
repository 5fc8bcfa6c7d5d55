"""The nouns of an account: ranges, lines, what is known of each, and the whole.

Rules
-----
* Every quantity is a `Range`: a lowest, a most likely and a highest value, over every honest counterfactual there was.
  No single counterfactual decides.
* What is not known is a text beside the range, and then the highest value is no upper bound.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

HOUR = 3600.0


class Line(StrEnum):
    """The lines of an account. A GPU-second is in at most one of the first four; the others lie outside."""

    INTERRUPTION = "interruption"  # from the last step before a break to the first step after it
    DISCARDED = "discarded progress"  # steps that were made again
    SLOWDOWN = "slowdown"  # seconds of steps beyond what they would have taken
    INVALIDATED = "invalidated results"  # steps that stand on a diverged one and were not made again
    REPLAY = "audit and replay"
    PREEMPTION = "knock-on preemption"
    STAFF = "staff"  # in hours of people


COMPUTE = (Line.INTERRUPTION, Line.DISCARDED, Line.SLOWDOWN, Line.INVALIDATED, Line.REPLAY, Line.PREEMPTION)
"""The lines that are counted in GPU-seconds, in their order."""


class Range(msgspec.Struct, frozen=True):
    """A quantity as it may be: `low` ≤ `mid` ≤ `high`."""

    low: float = 0.0
    mid: float = 0.0
    high: float = 0.0

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.mid * factor, self.high * factor)


def exactly(value: float) -> Range:
    """A range of one value."""
    return Range(value, value, value)


def total(ranges: list[Range]) -> Range:
    """The sum: ends are added to ends, as if all errors went one way, which is wider than any that do not."""
    return sum(ranges, Range())


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """One line: its GPU-hours (staff: hours), how they were found, and what is not known of it."""

    line: Line
    hours: Range
    how: str
    unknown: str = ""  # what is not in the range; "" = the range holds all of it


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """One counterfactual of a job's steps: how long they would have taken, and the loss that follows from it."""

    name: str
    seconds: Range  # of a step
    hours: Range  # GPU-hours of slowdown by this one alone
    chosen: bool = False  # it gives the most likely value


class Breaks(msgspec.Struct, frozen=True, kw_only=True):
    """The ends of attempts that were not in order, by what the records say of them."""

    cause: str
    count: int
    expected: Range  # such ends that hardware and software are expected to have had in the same time
    attributed: Range  # to interference
    how: str


class Priced(msgspec.Struct, frozen=True, kw_only=True):
    """What the compute lines cost at one price."""

    name: str
    per_gpu_hour: float
    cost: Range


class JobAccount(msgspec.Struct, frozen=True, kw_only=True):
    """One job, which is a run with those that recover it: GPU-hours held, their use, and its part of the lines."""

    runs: tuple[str, ...]
    command: tuple[str, ...]
    ranks: int
    gpus: float
    steps: int  # in the window
    held: float
    natural: Range  # lost to failures that happen anyway
    lines: dict[Line, Range]
    lost: Range  # sum of the lines
    delay: Range  # hours by which the job was later
    baselines: tuple[Baseline, ...]
    unaudited: int  # steps that no replay looked at
    diverged: bool
    ettr: float  # effective training time ratio: the share of held time that made progress


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that serving was given under `name`; `tainted`: does it stand on an altered step, from 0 to 1."""

    name: str
    digest: str  # of its manifest
    tainted: Range


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What was lost and what is not known, over all jobs."""

    since_ns: int
    until_ns: int  # 0: no window was given, everything is accounted for
    jobs: tuple[JobAccount, ...]
    honest: tuple[str, ...]  # runs that only served to compare with
    gpus: float
    held: float
    useful: float  # GPU-hours: held − natural − the compute lines that lie in held time, each most likely
    natural: Range
    expected_ettr: Range  # of published failure rates alone
    ettr: float
    amounts: tuple[Amount, ...]
    lost: Range  # GPU-hours
    priced: tuple[Priced, ...]
    staff_cost: Range
    cost: Range  # lowest: low at the lowest price; highest: high at the highest; staff included where known
    delay: Range  # hours, of the job that was delayed most; never in the total
    breaks: tuple[Breaks, ...]
    currency: str
    unknown: tuple[str, ...]
    served: tuple[Served, ...] = ()  # by the gate's log

    @property
    def is_open(self) -> bool:
        """May there be a loss of compute that the records do not tell?"""
        lines = (Line.INTERRUPTION, Line.DISCARDED, Line.SLOWDOWN, Line.INVALIDATED)
        return self.lost.high > 0 or any(a.unknown for a in self.amounts if a.line in lines)


def percent_of(part: float, whole: float) -> float:
    """`part` in percent of `whole`, 0 of nothing."""
    return 100 * part / whole if whole else 0.0
