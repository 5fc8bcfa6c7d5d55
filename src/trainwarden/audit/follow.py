"""Follows an attempt that still runs: one replay from its start that goes on as the record grows.

Rules
-----
* Its state after a matched step is the recorded one, so every later step is reached without a new start. It is let go
  at most `LEAD` steps beyond those of which every rank's record is in the log.
* It may be started as soon as every rank of the attempt has introduced itself: its ranks are held where they join until
  the log has a step of each, and with it all that the attempt loaded before. A script that needs to know earlier what
  it resumes from, or data that nobody sealed, fails then, and is followed from its first step on (`respond.beside`).
* A segment gets its verdict when each of its steps was compared, and every file that was saved at its end on either
  side. Until a file has its counterpart nothing is concluded from it, nor before the job has gone on from there: while
  it saves, both sides can have the same part of the files.
* `Matched` alone is given here. At a difference, and at anything else that is in the way, the following ends: what it
  left undecided is for `audit.engine`, which has a second replay confirm a difference and knows other starts.

Trust: as `audit.engine`. The log is read as far as it is durable, before its end is known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from trainwarden.audit import given, runner
from trainwarden.audit.compare import Seen
from trainwarden.audit.growing import Growing
from trainwarden.audit.plan import Plan
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import place_inputs, ranks_of
from trainwarden.audit.starts import WAYS, Start, Way, prepare
from trainwarden.model import (
    CheckpointSaved,
    Entry,
    Location,
    Matched,
    ProcessStarted,
    Segment,
    StepRecord,
)
from trainwarden.seal.room import Room, Workspace, new_workspace

LEAD = 1  # steps beyond the record: the next one is replayed while the job makes it
LOOK_SECONDS = 0.05  # between two looks at the log
_STILL_SECONDS = 0.3


class Follow:
    """The following of one attempt (`runner.Pace`); `read` gives the entries that the log has got since the last call.

    `first`: so many steps get a verdict of their own as soon as they are matched.
    """

    def __init__(
        self,
        recorded: Recorded,
        room: Room,
        attempt: int,
        read: Callable[[], Iterable[Entry]],
        on_verdict: Callable[[Matched], object],
        *,
        first: int = 0,
    ) -> None:
        self._recorded, self._room, self._read, self._on_verdict = recorded, room, read, on_verdict
        self._number, self._wanted = attempt, first
        self._held: list[Entry] = []  # what the log got since it was started and before the attempt's first steps
        self._waiting: dict[int, int] = {}  # rank → the last step, within the process, that it may run
        self._opened: set[str] = set()
        self._unfit: list[str] = []
        self._newer = self._ended = self._still = False
        self._looked, self._grew = 0.0, time.monotonic()
        self._began = time.monotonic()
        self._changed = threading.Condition(threading.RLock())
        self._settle()

    def _settle(self) -> None:
        """Where the attempt begins, by what the log has of it."""
        recorded, number = self._recorded, self._number
        self._base = recorded.attempt(number).base
        self._world = len(recorded.starts(number))
        self._cuts: set[int] = set()
        self._reached: dict[int, int] = {}  # rank → steps done, by the log
        self._way = self._prepared()
        self._comparison = Growing(recorded, number, self._base, self._world, self._way)
        self._first = self._base + self._wanted  # steps done when the first ones are
        self._told = self._base  # steps done that have their verdict
        for entry in recorded.entries:
            self._note(entry)
        self.begun = len(self._reached) == self._world

    def _prepared(self) -> Way:
        way = prepare(self._recorded, self._number, self._base, self._base, Start.START)
        plans = tuple(msgspec.structs.replace(plan, last=-1, follow=True, held=True) for plan in way.plans)
        return msgspec.structs.replace(way, plans=plans)

    def run(self, enough: Callable[[Follow], bool]) -> tuple[str, ...]:
        """Follow until `enough` says so, the attempt differs, or something is in the way: that, in words.

        Raises:
            CannotDecide, StoreError, StoreTampered: it cannot be started.
        """
        space = new_workspace(self._room)
        try:
            ended = runner.run(
                ranks_of(self._recorded, self._number, self._way, space),
                space,
                self._recorded.key,
                self._recorded.seal.seal.comparison.activations_every,
                self._step,
                lambda saving: self._saved(saving, space),
                lambda: self._look(space) or enough(self),
                self,
            )
            # A script that has come to its end waits no more: what was saved last may not be in the log yet.
            while not ended.problems and not (self._look(space) or enough(self)):
                time.sleep(LOOK_SECONDS)
        finally:
            space.remove()
        return ended.problems

    @property
    def divergence(self) -> Location | None:
        """The first difference; no verdict yet."""
        return self._comparison.divergence

    @property
    def settled(self) -> bool:
        """Has every checkpoint that the log has of this attempt got its verdict, or waits it for what does not come?"""
        with self._changed:
            return not any(cut > self._told for cut in self._cuts) or self._still

    @property
    def superseded(self) -> bool:
        """Has another attempt begun?"""
        return self._newer

    @property
    def judged(self) -> bool:
        """Have the first steps got their verdict, or waits it for what does not come?"""
        with self._changed:
            return self._told >= self._first or self._still

    @property
    def matched_first(self) -> bool:
        """Have the first steps got their verdict?"""
        return self._told >= self._first > self._base

    def no_more(self) -> None:
        """The attempt is over: the first steps are those that it has."""
        with self._changed:
            self._first = min(self._first, max(self._base, min(self._reached.values(), default=0)))

    @property
    def _idle(self) -> bool:
        """Every rank has ended or run what it may, and the log has not grown for a while."""
        waiting = self._waiting
        spent = self._ended or (len(waiting) == self._world and min(waiting.values()) >= self._allowed())
        return spent and time.monotonic() - self._grew > _STILL_SECONDS

    # ------------------------------------------------------------------ what the replay says (`runner.Pace`)

    def further(self, rank: int, plan: Plan) -> Plan | None:
        with self._changed:
            self._waiting[rank] = plan.last
            self._changed.wait_for(lambda: self._ended or (self.begun and self._allowed() > plan.last))
            del self._waiting[rank]
            return None if self._ended else msgspec.structs.replace(plan, last=self._allowed(), held=False)

    def _allowed(self) -> int:
        """The last step, within the process, that may be replayed now."""
        return max(self._recorded_by_all, self._base) - self._base + LEAD - 1

    @property
    def _recorded_by_all(self) -> int:
        """Steps done of which the log has every rank's record."""
        return min(self._reached.values(), default=0) if len(self._reached) == self._world else 0

    @property
    def waits(self) -> bool:
        with self._changed:
            return len(self._waiting) == self._world

    def opened(self, path: str) -> None:
        with self._changed:
            self._opened.add(path)

    def unfit(self, reason: str) -> None:
        with self._changed:
            self._unfit.append(reason)

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _step(self, seen: Seen) -> None:
        with self._changed:
            self._comparison.step(seen)

    def _saved(self, saving: runner.Saving, space: Workspace) -> None:
        with self._changed:
            self._comparison.saved(saving, space)

    # ------------------------------------------------------------------ what the log says

    def _look(self, space: Workspace) -> bool:
        """Read on, conclude what can be; True at a difference, or when nothing more can be concluded."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        with self._changed:
            for entry in self._read():
                self._grew = now
                self._recorded.grow(entry)
                self._note(entry)
                if not self.begun:
                    self._held.append(entry)
            if not self.begun and len(self._reached) == self._world:
                self._recorded.retrace(self._held)
                self._settle()
                place_inputs(self._recorded, self._way, space)
            self._changed.notify_all()
            still = self._idle
            found = self._conclude(space)
            self._still = still and not found
        for verdict in found:
            self._on_verdict(verdict)
        return self.divergence is not None or bool(self._unfit)

    def _note(self, entry: Entry) -> None:
        match entry:
            case ProcessStarted():
                self._newer = self._newer or entry.attempt > self._number
            case StepRecord() if entry.attempt == self._number:
                self._reached[entry.rank] = max(self._reached.get(entry.rank, 0), entry.step + 1)
                self._comparison.recorded(entry)
            case CheckpointSaved() if entry.attempt == self._number and entry.step > self._base:
                self._cuts.add(entry.step)
            case _:
                pass

    def _conclude(self, space: Workspace) -> list[Matched]:
        found: list[Matched] = []
        while (until := self._next()) and (verdict := self._verdict(until, space)):
            found.append(verdict)
            self._told = until
            self._comparison.forget(until)
            self._recorded.forget(self._number, until)
        return found

    def _next(self) -> int:
        """Steps done at the end of the next segment, 0 while there is none."""
        first = (self._first,) if self._first > self._told else ()
        return min((cut for cut in (*self._cuts, *first) if cut > self._told), default=0)

    def _left(self, done: int) -> bool:
        """Has every rank gone on from the checkpoint after `done` steps, or does nothing more come?"""
        return self._recorded_by_all > done or self._idle

    def _verdict(self, until: int, space: Workspace) -> Matched | None:
        covered = self._comparison.cover(self._told, until - 1)
        if covered is None or self._unfit:
            return None
        files: tuple[str, ...] | None = ()
        if until in self._cuts:
            files = self._comparison.files_of(until, space) if self._left(until) else None
        if files is None:
            return None
        self._unfit += given.strayed(self._recorded, space, self._opened)
        if self._unfit:
            return None
        began, self._began = self._began, time.monotonic()
        return Matched(
            segment=Segment(attempt=self._number, first=self._told, last=until - 1),
            coverage=covered,
            mode=WAYS[Start.START].mode,
            seconds=self._began - began,
            files=files,
        )
