"""From findings to action while a command runs: what policy demands is done, and every act is an entry of the log.

Rules
-----
* Findings come from the log's writer and are taken in by a thread of its own. What sends alerts away has threads of
  its own too: a slow receiver holds up neither the log nor an act.
* One alert is acted on once, and again only when a later finding of it demands more.
* To alert where there is no channel is no act: the terminal has told the finding.
* An act that fails is logged with its reason. Nothing here ends or changes training unless policy says so.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trainwarden.errors import TrainWardenError
from trainwarden.model import ACTIONS, Action, Alert, Entry, Finding, Responded, Severity, Undelivered
from trainwarden.supervise.ledger import Details, Watcher

MAX_WAITING = 10_000  # findings; a run has fewer, unless somebody floods it
_REMEMBERED = 256  # alerts
_SETTLE_SECONDS = 30.0
_ENDING = (Action.STOP, Action.RECOVER)


class Grouping(Protocol):
    """Sorts findings into alerts (`detect.causes.Causes`)."""

    def add(self, index: int, finding: Finding) -> Alert: ...


@dataclass(frozen=True)
class Told:
    """An alert and what was done about it; `update` when it was told before."""

    run: str
    alert: Alert
    action: Action
    update: bool = False


class Outlet(Protocol):
    """Sends alerts away (`respond.alerts`): `tell` never waits, `close` waits for what is under way, but not for long.

    `undelivered(entry)` is called for what could not be sent, from any thread.
    """

    def open(self, run: str, undelivered: Callable[[Undelivered], None]) -> None: ...

    def tell(self, told: Told) -> None: ...

    def close(self) -> None: ...


class Gauge(Protocol):
    """Counts: `seen` gets every entry of the log, in its order and from its writer, `told` every alert."""

    def open(self, run: str) -> None: ...

    def seen(self, index: int, entry: Entry) -> None: ...

    def told(self, told: Told) -> None: ...


class Job(Protocol):
    """What can be done to the running command (`supervise.guarded.Guarded`). Each gives the reason why not, or ""."""

    def hold(self) -> str: ...

    def stop(self) -> str: ...


@dataclass(frozen=True)
class Response:
    """How a run's findings are answered: sorted by `causes`, acted on as `action_of` says, told to `outlets`."""

    causes: Grouping
    action_of: Callable[[Finding], Action]
    outlets: Sequence[Outlet] = ()
    gauge: Gauge | None = None


class Gauged:
    """A watcher that lets a gauge see every entry too."""

    def __init__(self, watcher: Watcher, gauge: Gauge) -> None:
        self._watcher, self._gauge = watcher, gauge

    def observe(self, index: int, entry: Entry, detail: Details | None) -> Iterable[Finding]:
        self._gauge.seen(index, entry)
        return self._watcher.observe(index, entry, detail)

    def finish(self) -> Iterable[Finding]:
        return self._watcher.finish()


@dataclass
class _Known:
    action: Action = Action.NOTE
    severity: Severity = Severity.INFO
    detectors: int = 0


class Responder:
    """Answers the findings of one run; `found` from the log's writer, `settle` once at the end."""

    def __init__(
        self,
        run: str,
        response: Response,
        job: Job,
        submit: Callable[[Entry], object],
        on_told: Callable[[Told | Undelivered], None],
    ) -> None:
        self._run, self._response, self._job, self._submit, self._on_told = run, response, job, submit, on_told
        self.asked: tuple[Action, Alert] | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._failing: set[str] = set()  # channels that were told not to work
        self._waiting: deque[tuple[int, Finding]] = deque()
        self._closing = self._busy = False
        self._changed = threading.Condition()
        if response.gauge is not None:
            response.gauge.open(run)
        for outlet in response.outlets:
            outlet.open(run, self._undelivered)
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-respond")
        self._thread.start()

    def found(self, index: int, finding: Finding) -> None:
        """Take in the finding at log `index`; never waits."""
        if finding.severity is Severity.INFO:
            return
        with self._changed:
            if len(self._waiting) < MAX_WAITING:  # beyond, the finding is in the log alone
                self._waiting.append((index, finding))
                self._changed.notify_all()

    def catch_up(self) -> None:
        """Wait until what has come so far is answered: what is done next may depend on what policy asked for."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, _SETTLE_SECONDS)

    def settle(self) -> None:
        """Answer what has come so far, and give the outlets their time to send it. Nothing is answered afterwards."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_SETTLE_SECONDS)
        outlets = self._response.outlets
        closing = [threading.Thread(target=outlet.close, daemon=True) for outlet in outlets]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(_SETTLE_SECONDS)

    # -- the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                index, finding = self._waiting.popleft()
                self._busy = True
            self._answer(index, finding)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _answer(self, index: int, finding: Finding) -> None:
        alert = self._response.causes.add(index, finding)
        demanded = self._response.action_of(finding)
        known = self._known.setdefault(alert.id, _Known())
        self._known.move_to_end(alert.id)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        update = known.action is not Action.NOTE
        more = ACTIONS.index(demanded) > ACTIONS.index(known.action)
        news = alert.severity is not known.severity or len(alert.detectors) != known.detectors
        known.severity, known.detectors = alert.severity, len(alert.detectors)
        if more:
            known.action = demanded
            self._act(alert, demanded)
        if known.action is not Action.NOTE and (more or news):
            self._tell(Told(self._run, alert, known.action, update))

    def _act(self, alert: Alert, action: Action) -> None:
        if action in _ENDING and (self.asked is None or self.asked[0] is Action.STOP):
            self.asked = (action, alert)
        if action is Action.ALERT and not self._response.outlets:
            return
        failed = ""
        try:
            if action is Action.HOLD:
                failed = self._job.hold()
            elif action in _ENDING:
                failed = self._job.stop()
        except (OSError, TrainWardenError) as e:
            failed = str(e)
        self._submit(Responded(alert=alert, action=action, failed=failed, wall_ns=time.time_ns()))

    def _tell(self, told: Told) -> None:
        self._on_told(told)
        if self._response.gauge is not None:
            self._response.gauge.told(told)
        for outlet in self._response.outlets:
            outlet.tell(told)

    def _undelivered(self, entry: Undelivered) -> None:
        self._submit(entry)
        if entry.channel not in self._failing:
            self._failing.add(entry.channel)
            self._on_told(entry)
