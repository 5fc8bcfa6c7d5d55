"""Replays one drawn unit, in the cheapest way that says something, and judges what it shows.

Rules
-----
* A near unit runs as one process without its peers, from the state that its step began with. What can be compared is
  what needs no peer: batch, rng, activations and this rank's own gradients; of a job of one rank everything.
* A far unit runs from the newest earlier state with every rank (one rank: alone), and every stage is compared.
* These ways substitute a state, and what a script keeps in variables of its own (a counter, a curriculum) is not in it.
  So a difference there is a reason to look, and no verdict. The verdict is that of the audit's engine: from the
  attempt's start, or by the script's own resume, and twice the same.
* A script that an exact replay finds honest and a substitution does not is not substituted any more: what it costs to
  replay from the start is then its price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from trainwarden.audit.alone import Alone
from trainwarden.audit.compare import Seen, add, coverage, first_difference
from trainwarden.audit.engine import Audit, same
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import Result, replay
from trainwarden.audit.starts import GIVEN_SETTINGS, WAYS, Start, plan_alone
from trainwarden.config import load_config
from trainwarden.errors import CannotDecide, TrainWardenError
from trainwarden.model import (
    STAGES,
    Coverage,
    Diverged,
    Inconclusive,
    Location,
    Matched,
    Segment,
    Stage,
    Unit,
    UnitAudited,
    UnitKind,
    UnitResult,
)
from trainwarden.seal.room import Room, new_workspace

WITHOUT_PEERS = (Stage.BATCH, Stage.RNG, Stage.ACTIVATIONS, Stage.LOCAL_GRADIENTS)
EXACT_STEPS = 2_000  # how far a replay from the start may have to go to confirm a difference
_MOST_WARM = 2  # processes
_MOST_FAILURES = 2  # of ranks without peers, before none is tried any more
_PEERS = "needs what the other ranks send, and they were not run"
_GIVEN = "given by the record where a replay begins by substitution, not checked"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a unit showed, and the verdict beside it when the engine reached one that differs."""

    audited: UnitAudited
    diverged: Diverged | None = None


class _Looked(msgspec.Struct, frozen=True, kw_only=True):
    """One replay of the unit: where it differs from the record, None when it does not."""

    at: Location | None
    coverage: Coverage
    stages: tuple[Stage, ...]
    processes: int


class UnitRunner:
    """Runs the units of one run; `close` once."""

    def __init__(self, room: Callable[[], Room], stop: Callable[[], bool] = lambda: False) -> None:
        self._make_room, self._stop = room, stop
        self._room: Room | None = None
        self._warm: list[Alone] = []
        self._proved: Start | None = None  # the way of substituting that has matched in this run
        self._failures = 0
        self._unfit = ""  # why nothing is substituted any more
        self._convicted = ""  # what a verdict has shown already

    @property
    def ahead(self) -> bool:
        """Whether a state has to be put in place twice in a row; True while that is not known."""
        return self._proved is not Start.SUBSTITUTE

    @property
    def warm(self) -> tuple[tuple[int, int], ...]:
        """(attempt, rank) of the processes that are ready for another unit."""
        return tuple((a.attempt, a.rank) for a in self._warm if a.running)

    @property
    def cpu_ns(self) -> int:
        """CPU time of processes that still live."""
        return sum(a.cpu_ns for a in self._warm)

    def effort(self, recorded: Recorded, unit: Unit) -> tuple[int, int]:
        """Processes to start for a unit, and the steps that they run in all. Raises CannotDecide."""
        attempt = recorded.attempt(unit.attempt)
        kept, last = kept_states(recorded, unit.attempt), unit.step - attempt.base
        if self._unfit or not kept or min(kept) > last:
            return attempt.world, attempt.world * (last + 1)
        alone = self._failures < _MOST_FAILURES
        if alone and unit.kind is UnitKind.NEAR and last in kept:
            return 1, 3
        processes = 1 if alone and attempt.world == 1 else attempt.world
        return processes, processes * (last - max(d for d in kept if d <= last) + 3)

    def run(self, recorded: Recorded, unit: Unit, everything: Callable[[], Recorded]) -> Outcome:
        """Replay and judge a unit; `everything` reads the whole run where a verdict needs it."""
        doubts: list[str] = []
        differs: _Looked | None = None
        base = recorded.attempt(unit.attempt).base
        for way in self._ways(recorded, unit, base):
            try:
                looked = self._look(recorded, unit, way)
            except TrainWardenError as e:
                doubts.append(f"{way}: {e}")
                continue
            if looked.at is None:
                self._proved = self._proved or (way if way in GIVEN_SETTINGS else None)
                return _told(unit, UnitResult.MATCHED, looked, WAYS[way].mode)
            doubts.append(f"{way}: it differs at {_where(looked.at)}")
            differs = looked
        if self._stop() or differs is None:
            return _told(unit, UnitResult.UNDECIDED, None, "", tuple(doubts) or ("no state to start from is kept",))
        return self._confirm(everything(), unit, differs, doubts)

    def close(self) -> None:
        for alone in self._warm:
            alone.close()
        self._warm.clear()

    # -- one replay

    def _ways(self, recorded: Recorded, unit: Unit, base: int) -> list[Start]:
        kept = kept_states(recorded, unit.attempt)
        if self._unfit or not kept or min(kept) > unit.step - base:
            return [Start.START] if unit.step - base <= EXACT_STEPS else []
        return [self._proved] if self._proved else [Start.SUBSTITUTE, Start.AHEAD]

    def _look(self, recorded: Recorded, unit: Unit, way: Start) -> _Looked:
        attempt = recorded.attempt(unit.attempt)
        last, ahead = unit.step - attempt.base, way is Start.AHEAD
        kept = kept_states(recorded, unit.attempt)
        near = unit.kind is UnitKind.NEAR and last in kept and (not ahead or last - 1 in kept)
        if way in GIVEN_SETTINGS and self._failures < _MOST_FAILURES and (near or attempt.world == 1):
            done = last - ahead if near else max((d for d in kept if d + ahead <= last), default=-1)
            if done >= 0:
                return self._alone(recorded, unit, done, ahead)
        return self._together(recorded, unit, way)

    def _alone(self, recorded: Recorded, unit: Unit, done: int, ahead: bool) -> _Looked:
        plan = plan_alone(recorded, unit.attempt, unit.rank, done, unit.step, ahead=ahead)
        alone = self._process(recorded, unit)
        try:
            seen = alone.run(plan, self._stop)
        except CannotDecide:
            self._failures += not self._stop()
            self._warm.remove(alone)
            alone.close()
            raise
        self._failures = 0
        only = WITHOUT_PEERS if recorded.attempt(unit.attempt).world > 1 else _without(STAGES, Stage.HYPERPARAMETERS)
        return _compared(recorded, unit, seen, only, done + ahead)

    def _process(self, recorded: Recorded, unit: Unit) -> Alone:
        for alone in [*self._warm]:
            if not alone.running:
                self._warm.remove(alone)
                alone.close()
        for alone in self._warm:
            if (alone.attempt, alone.rank) == (unit.attempt, unit.rank):
                return alone
        if len(self._warm) >= _MOST_WARM:
            self._warm.pop(0).close()
        space = new_workspace(self._the_room())
        self._warm.append(Alone(recorded, self._the_room(), space, unit.attempt, unit.rank))
        return self._warm[-1]

    def _together(self, recorded: Recorded, unit: Unit, way: Start) -> _Looked:
        first = recorded.attempt(unit.attempt).base if way is Start.START else unit.step
        result = replay(recorded, self._the_room(), unit.attempt, first, unit.step, way, stop=self._stop)
        if result.divergence is None and unit.step not in result.matched:
            raise CannotDecide("; ".join(result.problems) or "the replay ended before the unit's step")
        total = Coverage()
        for covered in result.coverage.values():
            total = add(total, covered)
        compared = tuple(s for s in STAGES if s not in total.unseen and s is not Stage.CHECKPOINT)
        world = recorded.attempt(unit.attempt).world
        return _Looked(at=result.divergence, coverage=total, stages=compared, processes=world)

    def _the_room(self) -> Room:
        if self._room is None:
            self._room = self._make_room()
        return self._room

    # -- a difference

    def _confirm(self, recorded: Recorded, unit: Unit, differs: _Looked, doubts: Sequence[str]) -> Outcome:
        """A verdict by an exact replay where one can be had; else the difference is told as what it is."""
        if self._convicted:
            return _told(unit, UnitResult.DIFFERS, differs, "substitution", (*doubts, self._convicted))
        verdict = self._exact(recorded, unit)
        match verdict:
            case Diverged():
                self._convicted = f"a verdict has shown already that the run differs at {_where(verdict.at)}"
                looked = msgspec.structs.replace(differs, at=verdict.at)
                return Outcome(audited=_told(unit, UnitResult.DIVERGED, looked, verdict.mode).audited, diverged=verdict)
            case Matched():
                self._unfit = "a substituted state does not lead to what an exact replay computes"
                covered = msgspec.structs.replace(differs, coverage=verdict.coverage, stages=_compared_stages(verdict))
                return _told(unit, UnitResult.MATCHED, covered, verdict.mode, (*doubts, self._unfit))
            case _:
                return _told(unit, UnitResult.DIFFERS, differs, "substitution", (*doubts, *verdict.reasons))

    def _exact(self, recorded: Recorded, unit: Unit) -> Matched | Diverged | Inconclusive:
        base = recorded.attempt(unit.attempt).base
        saved = [done for a, done in recorded.saves if a == unit.attempt and base < done <= unit.step]
        whole = Segment(attempt=unit.attempt, first=base, last=unit.step)
        if saved and (resumed := self._resumed(recorded, unit, max(saved))) is not None:
            return resumed
        if unit.step - base > EXACT_STEPS:
            why = f"an exact replay would have to go through {unit.step - base + 1} steps: trainwarden audit does it"
            return Inconclusive(segment=whole, reasons=(why,))
        verdict = Audit(recorded, self._the_room()).run([whole])[0]
        return _at_its_step(verdict) if isinstance(verdict, Diverged) else verdict

    def _resumed(self, recorded: Recorded, unit: Unit, done: int) -> Matched | Diverged | None:
        """The verdict of a replay that resumes from the script's own checkpoint, None when that decides nothing."""
        folder = Path(recorded.starts(unit.attempt)[0][0].cwd)
        if not load_config(None, folder).replay.resume:
            return None
        segment = Segment(attempt=unit.attempt, first=done, last=unit.step)
        for kind in (Start.RESUME, Start.RESTORE):
            try:
                one = self._from(recorded, segment, kind)
                if one.divergence is None and one.resumed and unit.step in one.matched:
                    return Matched(segment=segment, coverage=one.coverage[unit.step], mode=WAYS[kind].mode)
                other = self._from(recorded, segment, kind) if one.divergence and one.resumed else None
            except CannotDecide:
                continue
            # What differs at the very first step may be the resume's fault.
            at, again = one.divergence, other.divergence if other else None
            if at is not None and again is not None and at.step > done and same(at, again):
                return _at_its_step(Diverged(segment=segment, at=at, coverage=Coverage(), mode=WAYS[kind].mode))
        return None

    def _from(self, recorded: Recorded, segment: Segment, kind: Start) -> Result:
        return replay(recorded, self._the_room(), segment.attempt, segment.first, segment.last, kind, stop=self._stop)


def kept_states(recorded: Recorded, attempt: int) -> set[int]:
    """The steps done at which every rank of an attempt kept its state."""
    kept = [set(recorded.snapshots(attempt, s.rank, "full")) for s, _ in recorded.starts(attempt)]
    return set.intersection(*kept) if kept else set()


def _compared(recorded: Recorded, unit: Unit, seen: Sequence[Seen], only: tuple[Stage, ...], first: int) -> _Looked:
    """The unit's steps, from `first` of the process on, against the record."""
    base = recorded.attempt(unit.attempt).base
    updates = recorded.updates(unit.attempt)
    total, compared = Coverage(), 0
    for new in seen:
        if new.record.step < first:
            continue
        step = new.record.step + base
        old = updates.get((step, new.record.optimizer), {}).get(unit.rank)
        if old is None:
            continue
        fresh = msgspec.structs.replace(new, record=msgspec.structs.replace(new.record, step=step))
        claimed = recorded.seen(old)
        compared += step == unit.step
        if (at := first_difference([claimed], [fresh], only)) is not None:
            return _Looked(at=at, coverage=total, stages=only, processes=1)
        total = add(total, _covered(claimed, fresh, only))
    if not compared:
        raise CannotDecide("the unit's step was not recorded, or the replay never reached it")
    stages = tuple(s for s in only if s not in total.unseen and s is not Stage.CHECKPOINT)
    return _Looked(at=None, coverage=total, stages=stages, processes=1)


def _covered(old: Seen, new: Seen, only: tuple[Stage, ...]) -> Coverage:
    part = {s: d for s, d in new.record.stages.items() if s in only}
    seen = msgspec.structs.replace(new, record=msgspec.structs.replace(new.record, stages=part))
    left_out = {str(s): _GIVEN if s is Stage.HYPERPARAMETERS else _PEERS for s in new.record.stages if s not in only}
    covered = coverage([seen], [old])
    return msgspec.structs.replace(covered, unseen=covered.unseen | left_out)


def _without(stages: Sequence[Stage], left_out: Stage) -> tuple[Stage, ...]:
    return tuple(s for s in stages if s is not left_out)


def _compared_stages(verdict: Matched) -> tuple[Stage, ...]:
    return tuple(s for s in STAGES if s not in verdict.coverage.unseen and s is not Stage.CHECKPOINT)


def _at_its_step(verdict: Diverged) -> Diverged:
    """The verdict about the one step that differs: of the others it says that they matched, which others may say."""
    step = Segment(attempt=verdict.segment.attempt, first=verdict.at.step, last=verdict.at.step)
    return msgspec.structs.replace(verdict, segment=step, coverage=Coverage())


def _told(unit: Unit, result: UnitResult, looked: _Looked | None, mode: str, reasons: tuple[str, ...] = ()) -> Outcome:
    return Outcome(
        audited=UnitAudited(
            attempt=unit.attempt,
            step=unit.step,
            rank=unit.rank,
            kind=unit.kind,
            result=result,
            stages=looked.stages if looked else (),
            coverage=looked.coverage if looked else Coverage(),
            at=looked.at if looked else None,
            reasons=reasons,
            mode=mode,
            processes=looked.processes if looked else 1,
        )
    )


def _where(at: Location) -> str:
    return f"step {at.step}, rank {at.rank}, {at.words}"
