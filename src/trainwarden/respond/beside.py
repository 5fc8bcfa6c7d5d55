"""Replays beside a run while it goes on: does a resumed run replay, and which of its checkpoints are cleared by now.

Rules
-----
* The first steps of a resumed run are replayed as soon as they are in the log, or at the run's end if it has fewer. The
  verdict is an entry of the run; `detect.replay` makes one that diverged an alert.
* With `ahead` every segment is replayed once the checkpoint after it is saved. When the run must be taken back, its
  newest cleared checkpoint is then known already.
* Training comes first: replays have a low priority, and the lowest once the first steps are judged. The log is read
  again only when twenty times the time has passed that it took.
* When the run is told to end, whatever is replayed is broken off without a verdict. When it ends by itself, the first
  steps are still judged, and what was cleared ahead is broken off; a signal to the watcher ends that wait too.

Trust: as `audit.engine`. The log is read as the ledger wrote it, before its end is known.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence

from trainwarden.audit.engine import Audit
from trainwarden.audit.recorded import recorded_of
from trainwarden.audit.runner import NICE
from trainwarden.casefile import CaseFile, Intact, load_case
from trainwarden.errors import TrainWardenError
from trainwarden.model import Entry, Inconclusive, Matched, Segment, SignedSeal, Verdict
from trainwarden.respond.clear import MakeRoom
from trainwarden.respond.point import find_point
from trainwarden.seal.room import build_room
from trainwarden.store import RunDir, Store
from trainwarden.supervise.process import STOPPING

Submit = Callable[[Entry], object]
_NICE_FIRST, _NICE_AHEAD = 10, 19
_LOOK_SECONDS = 0.5
_SHARE = 20  # of the time that one reading of the log took, waited before the next
_WAIT_SECONDS = 900.0  # for the first steps, when the run is over


class Beside:
    """The replays beside one run (`supervise.supervisor.Beside`); `first` steps are judged, then `ahead` is cleared."""

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
        self._thread: threading.Thread | None = None
        self._took = 0.0  # seconds to read the log
        self._tried: set[Segment] = set()
        self.first_verdict: Verdict | None = None
        self.problem = ""  # why it ended early

    def begin(self, run: RunDir, sealed: SignedSeal, submit: Submit) -> None:
        """Start to look."""
        if self._first or self._ahead:
            work = lambda: self._work(run.id, submit)  # noqa: E731
            self._thread = threading.Thread(target=work, daemon=True, name="trainwarden-beside")
            self._thread.start()

    def end(self, *, wait: bool) -> None:
        """The command has ended: break off, or with `wait` finish what is to be known of the first steps."""
        self._over.set()
        if self._thread is None:
            return
        until = time.monotonic() + (_WAIT_SECONDS if wait else 0.0)
        # Signals are blocked in the thread that calls this: one that was sent meanwhile waits to be looked at.
        while self._thread.is_alive() and time.monotonic() < until and not signal.sigpending() & STOPPING:
            self._thread.join(0.2)
        self._broken_off.set()
        self._thread.join()

    # -- the thread

    def _work(self, run: str, submit: Submit) -> None:
        NICE.set(_NICE_FIRST)
        try:
            if self._first:
                self._judge_first(run, submit)
            NICE.set(_NICE_AHEAD)
            while self._ahead and not self._over.is_set():
                self._clear_next(run, submit)
        except (TrainWardenError, OSError) as e:
            self.problem = str(e)

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
        try:
            case = load_case(self._store, run, look_at_files=False)
        except TrainWardenError:
            case = None
        self._took = time.monotonic() - begin
        return case if case is not None and isinstance(case.state, Intact) else None

    def _replay(
        self, case: CaseFile, segments: Sequence[Segment], submit: Submit, abort: Callable[[], bool]
    ) -> list[Verdict]:
        def told(verdict: Verdict) -> None:
            submit(verdict)
            self._on_verdict(verdict)

        recorded = recorded_of(self._store, case)
        room = self._make_room(self._store, recorded.seal)
        return Audit(recorded, room, on_verdict=told, abort=abort).run(segments, first_only=True)


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
