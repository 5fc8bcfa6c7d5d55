"""One run while its log is open: what is told of it, who answers its findings, and what works beside its command.

Rules
-----
* What works beside the command ends before the log does; only the shipping goes on until all of the log is sent.
* Whatever fails before the command has ended, the log gets its end.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from trainwarden.config import Config
from trainwarden.log.client.shipper import Shipped
from trainwarden.log.client.state import Target
from trainwarden.log.journal import LogWriter
from trainwarden.model import (
    Action,
    Alert,
    Approved,
    Entry,
    Finding,
    RunEnded,
    Sealed,
    SignedSeal,
    canonical,
)
from trainwarden.seal.command import LaunchCommand
from trainwarden.store import RunDir, Store
from trainwarden.supervise.events import Beside, Event, Notice, RunResult, Started
from trainwarden.supervise.guarded import Guarded
from trainwarden.supervise.ledger import Ledger, Watcher
from trainwarden.supervise.responding import Gauged, Responder, Response
from trainwarden.supervise.shelter import Shelter
from trainwarden.supervise.shipping import Shipping

_NOT_STARTED = 127  # what a shell says of a command that it cannot start


class Live:
    """One run while its log is open: what is told of it, and what works beside its command."""

    def __init__(
        self,
        desk: Desk,
        run: RunDir,
        sealed: SignedSeal,
        shelter: Shelter | None,
        beside: Beside | None,
        on_event: Callable[[Event], None],
    ) -> None:
        self._desk, self._run, self._sealed, self._shelter = desk, run, sealed, shelter
        self._beside, self._on_event = beside, on_event
        self._shipping: Shipping | None = None

    def begin(self, first: Sealed, approved: Approved | None) -> None:
        """The first entries of the log: the seal that the run stands on, and who approved it."""
        self._desk.ledger.submit(first)
        if approved is not None:
            self._desk.ledger.submit(approved)

    def open(self, ship: Callable[[], Shipping | None]) -> None:
        """The command is about to start: tell it, and start what works beside it."""
        submit = self._desk.ledger.submit
        self._on_event(Started(self._run.id, self._sealed))
        if self._shelter is not None:
            submit(self._shelter.entry())
            self._on_event(Notice(self._shelter.sentence()))
        self._shipping = ship()
        if self._beside is not None:
            self._beside.begin(self._run, self._sealed, submit)

    def run(self, guarded: Guarded, command: LaunchCommand, mask: set[signal.Signals]) -> int:
        """Run the command, and end what worked beside it; its exit code."""
        code = guarded.run(command, mask)
        if self._beside is not None:
            back = self._desk.asks_to_recover() and not guarded.interrupted
            self._beside.end(wait=not guarded.stopped, taken_back=back)
        return code

    def break_off(self) -> None:
        """Something failed before the command had ended: end everything, and the log."""
        if self._beside is not None:
            self._beside.end(wait=False)
        self._desk.end(_NOT_STARTED)
        if self._shipping is not None:
            self._shipping.close(lambda entry: None)

    def end(self, code: int, interrupted: int, log: LogWriter) -> RunResult:
        """End the log, send what is left of it, and say how the run went."""
        whole = self._desk.end(code)
        late: list[Finding] = []
        shipped = self._shipping.close(_appender(log, late)) if self._shipping is not None else None
        for finding in late:
            self._on_event(finding)
        action, alert = self._desk.asked
        return RunResult(
            self._run.id,
            code,
            findings=(*self._desk.ledger.findings, *late),
            records=self._desk.ledger.records,
            log_whole=whole,
            shipped=Shipped(entries=shipped.entries, of=log.size) if shipped is not None else None,
            room=str(self._shelter.room.kind) if self._shelter else "",
            asked=action,
            alert=alert,
            interrupted=interrupted,
        )


class Desk:
    """The ledger of one run, and whoever answers its findings; `end` once."""

    def __init__(
        self,
        log: LogWriter,
        run: RunDir,
        watcher: Watcher,
        response: Response | None,
        on_event: Callable[[Event], None],
    ) -> None:
        self._run, self._response, self._on_event = run, response, on_event
        self._responders: list[Responder] = []
        if response is not None and response.gauge is not None:
            watcher = Gauged(watcher, response.gauge)
        self.ledger = Ledger(log, run.details, watcher, self._found, notices(on_event))

    def _found(self, index: int, finding: Finding) -> None:
        self._on_event(finding)
        for responder in self._responders:
            responder.found(index, finding)

    def refused(self, why: str) -> None:
        """The command was not started."""
        self._on_event(Notice(f"not started: {why}"))

    def answer(self, guarded: Guarded) -> None:
        """Answer what is found from now on."""
        if self._response is not None:
            submit = self.ledger.submit
            self._responders.append(Responder(self._run.id, self._response, guarded, submit, self._on_event))

    @property
    def asked(self) -> tuple[Action | None, Alert | None]:
        """What policy demanded of the run as a whole, and for which alert."""
        return next((r.asked for r in self._responders if r.asked), (None, None))

    def asks_to_recover(self) -> bool:
        """Does policy, by all that was told so far, demand that the run is taken back?"""
        self.ledger.flush()
        for responder in self._responders:
            responder.catch_up()
        return self.asked[0] is Action.RECOVER

    def end(self, code: int) -> bool:
        """End the log with the command's exit code; False when it could not be written to its end."""

        def settle() -> None:
            for responder in self._responders:
                responder.settle()

        return self.ledger.close(lambda records: RunEnded(code=code, records=records, wall_ns=time.time_ns()), settle)


def shipping(
    store: Store,
    run: RunDir,
    target: Target | None,
    config: Config,
    config_file: str,
    ledger: Ledger,
    on_event: Callable[[Event], None],
) -> Shipping | None:
    """What sends the log to its server while the run goes on, if there is one."""
    if target is None:
        return None
    told, drain = notices(on_event), config.log.drain_seconds
    return Shipping(store, run, target, config_file, ledger.submit, told, drain)


def _appender(log: LogWriter, late: list[Finding]) -> Callable[[Entry], None]:
    """Appends what is found after the ledger's end, such as while the last entries are sent."""

    def append(entry: Entry) -> None:
        log.append([canonical(entry)])
        if isinstance(entry, Finding):
            late.append(entry)

    return append


def notices(on_event: Callable[[Event], None]) -> Callable[[str, str], None]:
    return lambda sentence, hint: on_event(Notice(sentence, hint))
