"""Replays beside a run while it goes on: does a resumed run replay, and which of its checkpoints are cleared by now.

Rules
-----
* The first steps of a resumed run are replayed as soon as they are in the log, or at the run's end if it has fewer. The
  verdict is an entry of the run; `detect.replay` makes one that diverged an alert.
* With `ahead` one replay follows each attempt from its start (`audit.follow`), so that the newest cleared checkpoint is
  known when the run must be taken back. It is started when the attempt's ranks have introduced themselves, and where
  their script fails so early, once more when each has made a step. What it left undecided because something differed,
  or was in its way, is replayed segment by segment.
* Training comes first: replays have a low priority, and the lowest once the first steps are judged. The log is read
  from its beginning again only when twenty times the time has passed that it took.
* When the run is told to end, whatever is replayed is broken off without a verdict; but where it ends to be taken back,
  the replay that follows it goes on up to the newest checkpoint. When it ends by itself, the first steps are still
  judged, and what was cleared ahead is broken off. A signal to the watcher ends these waits too.

Trust: as `audit.engine`. The log is read as the ledger wrote it, before its end is known.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from trainwarden.audit.engine import Audit
from trainwarden.audit.follow import Follow
from trainwarden.audit.recorded import recorded_of
from trainwarden.audit.runner import NICE
from trainwarden.casefile import CaseFile, Intact, load_case
from trainwarden.errors import CannotDecide, TrainWardenError
from trainwarden.log.client.tail import Tail
from trainwarden.model import (
    Entry,
    Inconclusive,
    Matched,
    ProcessStarted,
    Segment,
    SignedSeal,
    StepRecord,
    Verdict,
    decode_entry,
)
from trainwarden.respond.clear import MakeRoom
from trainwarden.respond.point import find_point
from trainwarden.seal.room import build_room
from trainwarden.store import RunDir, Store
from trainwarden.supervise.process import STOPPING

Submit = Callable[[Entry], object]
_NICE_FIRST, _NICE_AHEAD = 10, 19
_LOOK_SECONDS = 0.5
_WAITS_SECONDS = 0.1  # for an attempt to begin
_SHARE = 20  # of the time that one reading of the log took, waited before the next
_AT_ONCE = 4096  # entries
_WAIT_SECONDS = 900.0  # for the first steps, when the run is over


class Beside:
    """The replays beside one run (`supervise.events.Beside`); `first` steps are judged, then `ahead` is cleared."""

    def __init__(
        self,
        store: Store,
        *,
        first: int = 0,
        ahead: bool = False,
        make_room: MakeRoom = build_room,
        on_verdict: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        self._store, self._first, self._ahead = store, first, ahead
        self._make_room, self._on_verdict = make_room, on_verdict
        self._over, self._broken_off = threading.Event(), threading.Event()
        self._taken_back = False
        self._followed: set[int] = set()  # attempts
        self._too_early: set[int] = set()  # those of which a replay failed that began before their first step
        self._thread: threading.Thread | None = None
        self._took = 0.0  # seconds to read the log
        self._tried: set[Segment] = set()
        self.first_verdict: Verdict | None = None
        self.problem = ""  # why it ended early

    def begin(self, run: RunDir, sealed: SignedSeal, submit: Submit) -> None:
        """Start to look."""
        if self._first or self._ahead:
            work = lambda: self._work(run.id, sealed, submit)  # noqa: E731
            self._thread = threading.Thread(target=work, daemon=True, name="trainwarden-beside")
            self._thread.start()

    def end(self, *, wait: bool, taken_back: bool = False) -> None:
        """The command has ended: break off, or with `wait` finish what is to be known of the first steps.

        With `taken_back` what is to be known first is which of its checkpoints are cleared.
        """
        self._taken_back = taken_back and self._ahead
        self._over.set()
        if self._thread is None:
            return
        until = time.monotonic() + (_WAIT_SECONDS if wait or self._taken_back else 0.0)
        # Signals are blocked in the thread that calls this: one that was sent meanwhile waits to be looked at.
        while self._thread.is_alive() and time.monotonic() < until and not signal.sigpending() & STOPPING:
            self._thread.join(0.05)
        self._broken_off.set()
        self._thread.join()

    # -- the thread

    def _work(self, run: str, sealed: SignedSeal, submit: Submit) -> None:
        NICE.set(_NICE_FIRST if self._first else _NICE_AHEAD)
        try:
            if self._ahead:
                self._make_room(self._store, sealed)  # it is made while the command starts
            with closing(_Begun(self._store.run(run).log)) as begun:
                while self._goes_on and self._follow_next(run, begun, submit):
                    pass
                if self._wants_first and not self._taken_back:
                    self._judge_first(run, submit)
                NICE.set(_NICE_AHEAD)
                while self._goes_on:
                    if not self._follow_next(run, begun, submit):
                        self._clear_next(run, submit)
        except (TrainWardenError, OSError) as e:
            self.problem = str(e)

    @property
    def _goes_on(self) -> bool:
        return self._ahead and not self._over.is_set()

    @property
    def _wants_first(self) -> bool:
        return bool(self._first) and self.first_verdict is None

    def _judge_first(self, run: str, submit: Submit) -> None:
        while not self._broken_off.is_set():
            over = self._over.is_set()
            if (case := self._read(run)) and (segment := self._first_steps(case, over)):
                (self.first_verdict,) = self._replay(case, [segment], submit, self._broken_off.is_set) or (None,)
                return
            if over:
                return

    def _first_steps(self, case: CaseFile, over: bool) -> Segment | None:
        """The run's first steps, once every rank's record of them is there."""
        for attempt in case.history.attempts:
            steps = min(self._first, attempt.last - attempt.base + 1)
            if steps > 0 and (over or attempt.last - attempt.base >= self._first):  # one more: these are whole
                return Segment(attempt=attempt.number, first=attempt.base, last=attempt.base + steps - 1)
        return None

    def _follow_next(self, run: str, begun: _Begun, submit: Submit) -> bool:
        """Follow the newest attempt once its ranks are in the log; False where it was followed already."""
        number = begun.newest()
        if number in self._followed:
            return False
        early = number not in self._too_early
        ready = number is not None and (early or begun.stepped(number))
        case = self._case(run) if ready else None
        if number is None or case is None:
            self._over.wait(_WAITS_SECONDS)
            return True
        self._followed.add(number)
        recorded = recorded_of(self._store, case)
        room = self._make_room(self._store, recorded.seal)
        with closing(Tail(self._store.run(run).log, len(case.entries))) as tail:
            told: list[Matched] = []

            def on_verdict(verdict: Matched) -> None:
                told.append(verdict)
                self._told(verdict, submit)

            first = self._first if self._wants_first else 0
            try:
                follow = Follow(recorded, room, number, lambda: _rest(tail), on_verdict, first=first)
                early = early and not follow.begun
                problems = follow.run(self._enough)
            except CannotDecide as e:
                self.problem = str(e)
                return True  # what can be replayed in another way is, one segment after the other
        if early and not told and (problems or follow.divergence is not None):
            self._too_early.add(number)
            self._followed.discard(number)
            return True
        self.problem = problems[0] if problems else ""
        if first and follow.matched_first:
            self.first_verdict = told[0]
        return True

    def _enough(self, follow: Follow) -> bool:
        """Need the attempt not be followed any further?"""
        if follow.matched_first or not self._first:
            NICE.set(_NICE_AHEAD)
        if self._broken_off.is_set():
            return True
        if not self._over.is_set():
            return follow.superseded and follow.settled
        follow.no_more()
        return follow.settled if self._taken_back else follow.judged

    def _clear_next(self, run: str, submit: Submit) -> None:
        if (case := self._read(run)) is None:
            return
        try:
            missing = find_point(self._store, case, jobs=1_000).audit
        except TrainWardenError:
            return  # nothing to be cleared yet, or ever
        segments = [s for s in missing if s not in self._tried]
        self._tried.update(segments)
        if segments:
            self._replay(case, segments, submit, self._over.is_set)

    def _read(self, run: str) -> CaseFile | None:
        """The case after a pause; None when the log cannot be read just now."""
        self._over.wait(max(_LOOK_SECONDS, _SHARE * self._took))
        begin = time.monotonic()
        case = self._case(run)
        self._took = time.monotonic() - begin
        return case

    def _case(self, run: str) -> CaseFile | None:
        try:
            case = load_case(self._store, run, look_at_files=False)
        except TrainWardenError:
            return None
        return case if isinstance(case.state, Intact) else None

    def _replay(
        self, case: CaseFile, segments: Sequence[Segment], submit: Submit, abort: Callable[[], bool]
    ) -> list[Verdict]:
        recorded = recorded_of(self._store, case)
        room = self._make_room(self._store, recorded.seal)
        return Audit(recorded, room, on_verdict=lambda v: self._told(v, submit), abort=abort).run(
            segments, first_only=True
        )

    def _told(self, verdict: Verdict, submit: Submit) -> None:
        submit(verdict)
        self._on_verdict(verdict)


class _Begun:
    """Which attempts have begun, by the log as it grows."""

    def __init__(self, log: Path) -> None:
        self._tail = Tail(log)
        self._ranks: dict[int, set[int]] = {}
        self._stepped: dict[int, set[int]] = {}
        self._world = 0

    def newest(self) -> int | None:
        """The newest attempt, once every rank of it has introduced itself."""
        while entries := _rest(self._tail):
            for entry in entries:
                if isinstance(entry, ProcessStarted | StepRecord):
                    ranks = self._ranks if isinstance(entry, ProcessStarted) else self._stepped
                    ranks.setdefault(entry.attempt, set()).add(entry.rank)
                    self._world = entry.world
        newest = max(self._ranks, default=None)
        return newest if newest is not None and len(self._ranks[newest]) >= self._world else None

    def stepped(self, attempt: int) -> bool:
        """Has every rank of it recorded a step?"""
        return len(self._stepped.get(attempt, ())) >= self._world

    def close(self) -> None:
        self._tail.close()


def _rest(tail: Tail) -> list[Entry]:
    frames = tail.peek(_AT_ONCE)
    tail.take(len(frames))
    return [decode_entry(frame.data) for frame in frames]


def in_words(beside: Beside) -> str:
    """Whether a resumed run replays."""
    match beside.first_verdict:
        case None:
            return f"not known: {beside.problem}" if beside.problem else "not known: it ended before it could be judged"
        case Matched():
            return "matched"
        case Inconclusive() as verdict:
            return f"inconclusive: {'; '.join(verdict.reasons)}"
        case _:
            return "diverged"
