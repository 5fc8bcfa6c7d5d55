"""The sampled audit of one run: follows its log, draws units after their records are durable, and runs them.

Rules
-----
* A draw is an entry of the log, and is in it, before the first of its units is run.
* A unit is run when what was spent and what it will cost are together within the budget, a share of the job's own CPU
  time; until then it waits. At most `MOST_WAITING` wait; what is drawn beyond them is told as undecided.
* States that waiting units need are kept by hard links (`pinned`), whatever the recorder does with its own.
* It reads the log and the run's folder and writes nothing but those links: what it finds is handed to whoever holds
  the log. So the same code runs beside a run, on another host that sees the folder, and after the end.

Trust: this process and its randomness (`randomness`). The records, and the states to start from, are a suspect's word.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from trainwarden.audit.randomness import Source
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.unitrun import Outcome, kept_states
from trainwarden.errors import LogError, TrainWardenError, UsageError
from trainwarden.log.client.tail import Tail
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    DataOpened,
    Entry,
    ProcessStarted,
    SignedSeal,
    StepRecord,
    Unit,
    UnitAudited,
    UnitKind,
    UnitResult,
    UnitsDrawn,
    decode_entry,
)
from trainwarden.sampling import Window, chances, draw
from trainwarden.store import RunDir, Store

MOST_WAITING = 16
START_SECONDS = 4.0  # CPU that a process needs to start, before any was measured
_DRAW_EVERY = 30.0  # seconds: each draw is an entry of the log, and the states of its steps must still be kept
_READ_AT_ONCE = 4096
_KEPT_RECORDS = 2048  # of a rank, when no state asks for more
_PAUSE = 0.5
_AROUND = 3  # states kept for a waiting unit: the newest ones at or before its step


class Runner(Protocol):
    """Replays units (`unitrun.UnitRunner`, and the tests' stand-in)."""

    @property
    def ahead(self) -> bool: ...

    @property
    def warm(self) -> tuple[tuple[int, int], ...]: ...

    def effort(self, recorded: Recorded, unit: Unit) -> tuple[int, int]: ...

    def run(self, recorded: Recorded, unit: Unit, everything: Callable[[], Recorded]) -> Outcome: ...

    def close(self) -> None: ...


class Meter(Protocol):
    """CPU seconds: what the job has used, and what the audit has."""

    def job(self) -> float: ...

    def spent(self) -> float: ...


class _Waiting(msgspec.Struct, frozen=True):
    unit: Unit
    draw: int  # log index
    processes: int  # to start for it
    steps: int  # that they run in all


class UnitAudit:
    """One run's sampled audit; `turn` does one thing, `close` once.

    With `draws` off it runs what is drawn in the log and draws nothing itself. `may_start` says why so many more
    processes may not be started now, "" when they may.
    """

    def __init__(
        self,
        store: Store,
        folder: RunDir,
        seal: SignedSeal,
        runner: Runner,
        source: Source,
        meter: Meter,
        budget: float,
        emit: Callable[[Entry], None],
        *,
        earlier: Iterable[Entry] = (),
        draws: bool = True,
        may_start: Callable[[int], str] = lambda processes: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._folder, self._seal = store, folder, seal
        self._runner, self._source, self._meter, self._emit = runner, source, meter, emit
        self._budget, self._clock, self._earlier = budget, clock, tuple(earlier)
        self._draws, self._may_start = draws, may_start
        self._tail = Tail(folder.log)
        self._index = 0
        self._others: list[Entry] = []  # what replays need beside step records
        self._records: dict[tuple[int, int], list[StepRecord]] = {}
        self._begun: dict[int, StepRecord] = {}  # the first record of each attempt
        self._window, self._closed = Window(), Window()
        self._units = 0
        self._near_units = 0
        self._drawn_at = float("-inf")
        self._drew = False  # a draw is on its way into the log
        self._waiting: list[_Waiting] = []
        self._costs: dict[UnitKind, tuple[float, int]] = {}
        self._accounted = 0.0
        self.claimed_ns = 0  # CPU time of the ranks as their records say
        self.problem = ""

    @property
    def waiting(self) -> int:
        """Units that were drawn and not run yet."""
        return len(self._waiting)

    def turn(self, *, hurry: bool = False) -> float:
        """Read, draw or run one unit; with `hurry` (the run has ended) nothing is waited for.

        Returns:
            Seconds for which there is nothing to do, 0 when there may be more at once.

        Raises:
            LogTampered, SignatureInvalid: the log contradicts its head.
            LogError: it cannot be read.
        """
        if self._read():
            return 0.0
        self.problem = ""
        if (waiting := self._affordable(hurry)) is not None:
            self._run(waiting)
            return 0.0
        return 0.0 if self._draw(hurry) else _PAUSE

    def close(self) -> None:
        """End the replays and let the kept states go."""
        self._runner.close()
        self._tail.close()
        shutil.rmtree(self._folder.pinned, ignore_errors=True)

    # -- reading

    def _read(self) -> bool:
        frames = self._tail.peek(_READ_AT_ONCE)
        self._tail.take(len(frames))
        for frame in frames:
            self._take(frame.index, decode_entry(frame.data))
        self._index += len(frames)
        return bool(frames)

    def _take(self, index: int, entry: Entry) -> None:
        match entry:
            case StepRecord():
                self._window.add(index, entry)
                self.claimed_ns += entry.cpu_ns
                records = self._records.setdefault((entry.attempt, entry.rank), [])
                records.append(entry)
                self._begun.setdefault(entry.attempt, entry)
                if len(records) > 2 * _KEPT_RECORDS:
                    del records[: self._not_needed(entry.attempt, records)]
            case UnitsDrawn():
                self._drew = False
                self._window.let_go(entry.last)  # of another's draw, before this audit began
                self._logged(index, entry)
            case UnitAudited():
                self._drop(entry)
            case ProcessStarted() | CheckpointSaved() | DataOpened():
                self._others.append(entry)
            case CheckpointLoaded() if all(attempt != entry.attempt for attempt, _ in self._records):
                self._others.append(entry)  # before its first step: the attempt stands on it
            case _:
                pass

    def _not_needed(self, attempt: int, records: list[StepRecord]) -> int:
        """How many of a rank's oldest records nothing will ask for."""
        needed = min((w.unit.step for w in self._waiting if w.unit.attempt == attempt), default=records[-1].step)
        return max(0, min(len(records) - _KEPT_RECORDS, sum(r.step < needed - _KEPT_RECORDS for r in records)))

    def _logged(self, index: int, entry: UnitsDrawn) -> None:
        """A draw is in the log: its units may be run."""
        for unit in entry.units:
            if len(self._waiting) >= MOST_WAITING:
                reason = f"{MOST_WAITING} drawn units were waiting for the budget already"
                self._emit(_undecided(unit, index, reason))
            else:
                self._waiting.append(_Waiting(unit, index, *self._effort(unit)))
        self._pin()

    def _effort(self, unit: Unit) -> tuple[int, int]:
        """Processes to start and steps to run for a unit; where nothing is known yet, those of a near one."""
        try:
            return self._runner.effort(self._outline(), unit)
        except TrainWardenError:
            return 1, 2

    def _drop(self, entry: UnitAudited) -> None:
        told = entry.attempt, entry.step, entry.rank
        self._waiting = [w for w in self._waiting if (w.unit.attempt, w.unit.step, w.unit.rank) != told]

    # -- drawing

    def _draw(self, hurry: bool) -> bool:
        """Draw over the units that are complete in the log; False when it is not time, or there are none."""
        if not self._draws or self._drew or (not hurry and self._clock() - self._drawn_at < _DRAW_EVERY):
            return False
        if not len(self._closed):
            if not len(self._window):
                return False
            self._closed, fresh = self._window, Window()
            fresh.follow(self._closed)
            self._window = fresh
        try:
            random = self._source.after(self._closed.last)
        except (LogError, UsageError) as e:
            self.problem = str(e)
            return False
        if random is None:
            self.problem = "the randomness for the next draw is not there yet"
            return False
        first, last, units = self._closed.first, self._closed.last, self._closed.take()
        self._drawn_at, self._drew = self._clock(), True
        self._units += len(units)
        near = self._near(units)
        count = sum((attempt, step) in near for attempt, step, _ in units)
        self._near_units += count
        odds = self._chances()
        self._emit(
            UnitsDrawn(
                source=random.source,
                randomness=random.value.hex(),
                proof=random.proof,
                first=first,
                last=last,
                chances=odds,
                of={UnitKind.NEAR: count, UnitKind.FAR: len(units) - count},
                near=tuple(sorted(near)),
                units=draw(self._folder.id, random.value, units, near, odds),
                wall_ns=time.time_ns(),
            )
        )
        return True

    def _near(self, units: list[tuple[int, int, int]]) -> frozenset[tuple[int, int]]:
        """(attempt, step) of those units whose state at the beginning every rank has kept."""
        found: set[tuple[int, int]] = set()
        recorded = self._outline()
        for attempt in {a for a, _, _ in units} & {a.number for a in recorded.history.attempts}:
            kept = _kept(recorded, attempt)
            if self._runner.ahead:
                kept &= {d + 1 for d in kept}
            base = recorded.attempt(attempt).base
            found |= {(a, step) for a, step, _ in units if a == attempt and step - base in kept}
        return frozenset(found)

    def _chances(self) -> dict[UnitKind, float]:
        near = self._near_units / self._units
        return chances(self._budget, self._meter.job(), self._units, near, self._expected())

    # -- running

    def _expected(self) -> dict[UnitKind, float]:
        """CPU seconds that a unit of each kind will cost: the mean of what they did, and one guess."""
        per_step = self._meter.job() / max(1, self._units)
        worlds = [e.world for e in self._others if isinstance(e, ProcessStarted)]
        world = max(worlds, default=1)
        distance = self._units / world / max(1, self._near_units / world) / 2
        guess = {
            UnitKind.NEAR: START_SECONDS + 3 * per_step,
            UnitKind.FAR: world * (START_SECONDS + distance * per_step),
        }
        total = {kind: self._costs.get(kind, (0.0, 0)) for kind in UnitKind}
        return {kind: (guess[kind] + total[kind][0]) / (1 + total[kind][1]) for kind in UnitKind}

    def _affordable(self, hurry: bool) -> _Waiting | None:
        """The unit to run next: one whose rank has a warm process before others; None while none can be paid."""
        allowance = self._budget * self._meter.job() - self._meter.spent()
        warm = self._runner.warm
        ready = [w for w in self._waiting if self._price(w, warm) <= allowance and (hurry or self._complete(w.unit))]
        found = min(ready, key=lambda w: (w.unit.attempt, w.unit.rank) not in warm, default=None)
        if found is None or not (why := self._may_start(found.processes)):
            return found
        self.problem = why
        return None

    def _price(self, waiting: _Waiting, warm: tuple[tuple[int, int], ...]) -> float:
        """CPU seconds that a unit will take, about."""
        unit = waiting.unit
        started = waiting.processes == 1 and (unit.attempt, unit.rank) in warm
        starts = 0 if started else waiting.processes
        return starts * START_SECONDS + waiting.steps * self._meter.job() / max(1, self._units)

    def _complete(self, unit: Unit) -> bool:
        """Whether every rank has gone beyond the unit's step, so that all records of it are there."""
        newest = [r[-1].step for (attempt, _), r in self._records.items() if attempt == unit.attempt]
        return bool(newest) and min(newest) > unit.step

    def _run(self, waiting: _Waiting) -> None:
        self._waiting.remove(waiting)
        unit = waiting.unit
        try:
            outcome = self._runner.run(self._recorded(), unit, self._everything)
        except TrainWardenError as e:
            outcome = Outcome(audited=_undecided(unit, waiting.draw, str(e)))
        spent = self._meter.spent()
        cost, self._accounted = spent - self._accounted, spent
        seconds, count = self._costs.get(unit.kind, (0.0, 0))
        self._costs[unit.kind] = seconds + cost, count + 1
        if outcome.diverged is not None:
            self._emit(outcome.diverged)
        self._emit(
            msgspec.structs.replace(outcome.audited, draw=waiting.draw, cpu_ns=int(cost * 1e9), wall_ns=time.time_ns())
        )
        self._pin()

    def _outline(self) -> Recorded:
        """Enough to know attempts, ranks and states by; quickly made."""
        entries = [*self._others, *self._begun.values()]
        return Recorded(self._store, self._folder, self._seal, entries, self._earlier)

    def _recorded(self) -> Recorded:
        records = [r for rank in self._records.values() for r in rank]
        return Recorded(self._store, self._folder, self._seal, [*self._others, *records], self._earlier)

    def _everything(self) -> Recorded:
        """The whole log read anew: a verdict rests on all of it."""
        with LogReader.open(self._folder.log) as log:
            entries = [decode_entry(leaf) for _, leaf in log.entries()]
        return Recorded(self._store, self._folder, self._seal, entries, self._earlier)

    # -- states

    def _pin(self) -> None:
        """Hold on to the states that waiting units need, and let the others go."""
        needed: set[Path] = set()
        recorded = self._outline() if self._waiting else None
        for w in self._waiting:
            if recorded is not None:
                needed |= _needed(recorded, w.unit)
        held = set(self._folder.pinned.glob("*/*"))
        wanted = {self._folder.pinned / p.parent.name / p.name: p for p in needed}
        for place, original in wanted.items():
            if place not in held:
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(original, place)
                except OSError:
                    continue  # gone in this moment: the unit will say so
        for place in held - wanted.keys():
            place.unlink(missing_ok=True)


def _kept(recorded: Recorded, attempt: int) -> set[int]:
    """The states that all ranks kept; none while a rank has not joined."""
    try:
        return kept_states(recorded, attempt)
    except TrainWardenError:
        return set()


def _needed(recorded: Recorded, unit: Unit) -> set[Path]:
    """The files of the newest states at or before a unit's step."""
    kept = _kept(recorded, unit.attempt)
    if not kept:
        return set()
    ranks = [s.rank for s, _ in recorded.starts(unit.attempt)]
    last = unit.step - recorded.attempt(unit.attempt).base
    dones = sorted(d for d in kept if d <= last)[-_AROUND:]
    states = [recorded.snapshots(unit.attempt, rank, "full") for rank in ranks]
    return {own[d] for own in states for d in dones if d in own}  # the recorder may just have removed one


def _undecided(unit: Unit, index: int, reason: str) -> UnitAudited:
    return UnitAudited(
        attempt=unit.attempt,
        step=unit.step,
        rank=unit.rank,
        kind=unit.kind,
        result=UnitResult.UNDECIDED,
        reasons=(reason,),
        draw=index,
        wall_ns=time.time_ns(),
    )
