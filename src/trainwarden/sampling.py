"""Sampled audit as arithmetic: who is drawn, what a budget buys, what was covered (pure).

Rules
-----
* A unit is one rank's execution of one step. It belongs to the draw in whose window its first record lies.
* The lot of a unit is the first 8 bytes of SHA-256 over `trainwarden unit`, the run, attempt, step and rank (one line
  each) and the randomness. It is drawn when the lot, as a share of 2^64, lies below the chance. So whoever has the
  randomness and the records can make every draw again.
* Units whose state was kept are cheap to replay, the others dear: each kind has half of the budget and a chance of its
  own. Whoever runs inside a rank knows at which steps its state is kept, so against such an insider only the
  chance of the others counts.
* k bad units are missed with probability (1 − p)^k, p being the share of all units that were audited to a decision.
  That holds for bad units chosen without knowing the draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from trainwarden.model import (
    Entry,
    SampledAudit,
    Stage,
    StepRecord,
    Unit,
    UnitAudited,
    UnitKind,
    UnitResult,
    UnitsDrawn,
)

DECIDED = (UnitResult.MATCHED, UnitResult.DIVERGED)
CONFIDENT = 0.95
SHOWN = (1, 10, 100)


def lot(randomness: bytes, run: str, attempt: int, step: int, rank: int) -> int:
    """A unit's lot, 0 … 2^64 − 1."""
    about = f"trainwarden unit\n{run}\n{attempt}\n{step}\n{rank}\n".encode()
    return int.from_bytes(hashlib.sha256(about + randomness).digest()[:8], "big")


def drawn(randomness: bytes, run: str, attempt: int, step: int, rank: int, chance: float) -> bool:
    """Whether a unit is drawn that is to be drawn with probability `chance`."""
    return chance >= 1 or lot(randomness, run, attempt, step, rank) < int(max(chance, 0.0) * 2.0**64)


class Window:
    """Collects units in the order of the log, each once; `take` empties it."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], int] = {}  # (attempt, rank) → step
        self._units: list[tuple[int, int, int]] = []
        self.first = self.last = -1

    def add(self, index: int, record: StepRecord) -> None:
        """The record at log `index`; of several in one step the first counts."""
        place = record.attempt, record.rank
        if record.step == self._newest.get(place, -1):
            return
        self._newest[place] = record.step
        self._units.append((record.attempt, record.step, record.rank))
        self.first = index if self.first < 0 else self.first
        self.last = index

    def follow(self, before: Window) -> None:
        """Go on where another window ends: a step that it has is not counted again."""
        self._newest = dict(before._newest)

    def __len__(self) -> int:
        return len(self._units)

    def take(self) -> list[tuple[int, int, int]]:
        """(attempt, step, rank) of the units, and begin anew."""
        units, self._units, self.first, self.last = self._units, [], -1, -1
        return units


def draw(
    run: str,
    randomness: bytes,
    units: Iterable[tuple[int, int, int]],
    near: frozenset[tuple[int, int]],
    chances: Mapping[UnitKind, float],
) -> tuple[Unit, ...]:
    """The units of a window that are drawn."""
    found = []
    for attempt, step, rank in units:
        kind = UnitKind.NEAR if (attempt, step) in near else UnitKind.FAR
        if drawn(randomness, run, attempt, step, rank, chances.get(kind, 0.0)):
            found.append(Unit(attempt=attempt, step=step, rank=rank, kind=kind))
    return tuple(found)


def drawn_again(run: str, entries: Sequence[Entry], entry: UnitsDrawn) -> tuple[Unit, ...]:
    """The units that follow from the log and the randomness of a draw; an honest one has just these."""
    window = Window()
    for index, e in enumerate(entries[: entry.last + 1]):
        if index == entry.first:
            window.take()
        if isinstance(e, StepRecord):
            window.add(index, e)
    return draw(run, bytes.fromhex(entry.randomness), window.take(), frozenset(entry.near), entry.chances)


def chances(
    budget: float, job_cpu: float, units: int, near: float, costs: Mapping[UnitKind, float]
) -> dict[UnitKind, float]:
    """The chance of each kind at which the expected cost is the budget.

    `budget` is a share of the job's CPU seconds `job_cpu` over `units` units, of which the share `near` are near;
    `costs` are CPU seconds a unit. A kind of which there is none leaves its half to the other.
    """
    shares = {UnitKind.NEAR: near, UnitKind.FAR: 1 - near}
    kinds = [kind for kind, share in shares.items() if share > 0]
    if not units or not kinds:
        return dict.fromkeys(shares, 0.0)
    per_unit = budget * job_cpu / units / len(kinds)
    return {
        kind: min(1.0, per_unit / (share * max(costs[kind], 1e-9))) if share > 0 else 0.0
        for kind, share in shares.items()
    }


# --------------------------------------------------------------------------- what it buys


def detection(share: float, bad: int) -> float:
    """The probability that at least one of `bad` units is audited when `share` of all are: 1 − (1 − share)^bad."""
    if share >= 1:
        return 1.0 if bad > 0 else 0.0
    return -math.expm1(bad * math.log1p(-share))


def needed(share: float, probability: float = CONFIDENT) -> int | None:
    """How many units have to be bad to be found with this probability; None when nothing is audited."""
    if share <= 0:
        return None
    if share >= 1:
        return 1
    return math.ceil(math.log1p(-probability) / math.log1p(-share))


class Bought(msgspec.Struct, frozen=True, kw_only=True):
    """Of `units` units, `drawn` were drawn and `audited` of these decided; what that finds."""

    units: int
    drawn: int
    audited: int
    stages: tuple[Stage, ...] = ()

    @property
    def share(self) -> float:
        return self.audited / self.units if self.units else 0.0


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """The sampled audit of a run as far as it has come. `end` is what it said at the end of the run."""

    all: Bought
    kinds: dict[UnitKind, Bought]
    results: dict[UnitResult, int]
    detects: dict[int, float]  # bad units → probability that one of them was audited
    needed: int | None  # bad units that would have been found with 95 %
    end: SampledAudit | None = None

    @property
    def waiting(self) -> int:
        """Units that were drawn and of which nothing is known."""
        return self.all.drawn - sum(self.results.values())


def sampled(entries: Iterable[Entry]) -> Sampled | None:
    """What the log says of the sampled audit; None when it has none."""
    units = 0
    window, end = Window(), None
    draws: list[UnitsDrawn] = []
    told: dict[tuple[int, int, int], UnitAudited] = {}
    for index, entry in enumerate(entries):
        match entry:
            case StepRecord():
                window.add(index, entry)
            case UnitsDrawn():
                draws.append(entry)
            case UnitAudited():
                told[entry.attempt, entry.step, entry.rank] = entry
            case SampledAudit():
                end = entry
            case _:
                pass
    units = len(window)
    if not draws and end is None:
        return None
    kinds = {kind: _bought(kind, draws, list(told.values())) for kind in UnitKind}
    audited = sum(b.audited for b in kinds.values())
    whole = Bought(
        units=units,
        drawn=sum(b.drawn for b in kinds.values()),
        audited=audited,
        stages=_stages(told.values()),
    )
    return Sampled(
        all=whole,
        kinds=kinds,
        results={r: n for r in UnitResult if (n := sum(t.result is r for t in told.values()))},
        detects={k: detection(whole.share, k) for k in SHOWN},
        needed=needed(whole.share),
        end=end,
    )


def _bought(kind: UnitKind, draws: Sequence[UnitsDrawn], told: Sequence[UnitAudited]) -> Bought:
    mine = [t for t in told if t.kind is kind]
    return Bought(
        units=sum(d.of.get(kind, 0) for d in draws),
        drawn=sum(u.kind is kind for d in draws for u in d.units),
        audited=sum(t.result in DECIDED for t in mine),
        stages=_stages(mine),
    )


def _stages(told: Iterable[UnitAudited]) -> tuple[Stage, ...]:
    seen = {stage for t in told for stage in t.stages}
    return tuple(stage for stage in Stage if stage in seen)
