"""The process that ships a run's log while it goes on: started, listened to, ended in bounded time.

Rules
-----
* It is a process of its own, in a session of its own and with a lower priority, that reads the log's files: it can
  neither delay the ledger nor be stopped by the terminal's Ctrl-C.
* What it finds becomes entries of the run. When it dies before its time that is a finding as well, and it is started
  again.
* At the end it gets so many seconds; then it is killed. What is not sent stays in the run's log.

Trust: it runs as the user who trains, like the supervisor. Killing it is seen; its state is checked when it starts.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from trainwarden.errors import LogError
from trainwarden.isolation import same_again
from trainwarden.log.client.shipper import SHIPPING, Event, Shipped, Told
from trainwarden.log.client.state import ShippingState, Target
from trainwarden.model import Confidence, Entry, Finding, Gap, Severity
from trainwarden.store import RunDir, Store

_RESTART_SECONDS = 5.0
_GRACE = 5.0  # for a request under way, beyond the seconds for the end
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Told | Shipped | Finding | Gap)

Submit: TypeAlias = Callable[[Entry], object]


class Shipping:
    """Ships one run beside it; `close` once, after the log's last entry."""

    def __init__(
        self,
        store: Store,
        run: RunDir,
        target: Target,
        config: str,
        submit: Submit,
        notice: Callable[[str, str], None],
        drain_seconds: float,
    ) -> None:
        self._target, self._submit, self._notice, self._seconds = target, submit, notice, drain_seconds
        self._argv = [*same_again(), "log", "ship", run.id, "--store", str(store.path)]
        self._argv += ["--follow", "--json", "--seconds", str(drain_seconds), *(["--config", config] if config else [])]
        ShippingState.open(run.shipping, target).close()  # from here on `trainwarden log ship RUN` knows where to
        self._done = Shipped(entries=0, of=0)
        self._closing, self._starting = threading.Event(), threading.Lock()
        self._killed = 0
        self._process = self._start()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="trainwarden-shipping")
        self._thread.start()

    def close(self, submit: Submit) -> Shipped:
        """Let it send what is left, hand late findings to `submit`, and tell how far it came."""
        self._submit = submit
        with self._starting:
            self._closing.set()
            process = self._process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        self._thread.join(self._seconds + _GRACE)
        if process.poll() is None:
            process.kill()
        self._thread.join()
        return self._done

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _listen(self) -> None:
        while True:
            process = self._process
            with process.stdout or contextlib.nullcontext(()) as lines:
                for line in lines:
                    self._handle(line)
            code = process.wait()
            if self._closing.is_set():
                return
            self._ended_early(code)
            self._closing.wait(_RESTART_SECONDS)
            with self._starting:
                if self._closing.is_set():
                    return
                self._process = self._start()

    def _handle(self, line: bytes) -> None:
        try:
            event = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # an error that the command told as JSON: its exit code says that it ended
        match event:
            case Shipped():
                self._done = event
            case Told():
                self._notice(event.sentence, event.hint)
            case Finding() | Gap():
                try:
                    self._submit(event)
                except LogError as e:
                    self._notice(f"A finding of the shipping could not be logged: {e}", e.hint)

    def _ended_early(self, code: int) -> None:
        self._killed += 1
        if self._killed > 1:
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._submit(
            Finding(
                detector=SHIPPING,
                severity=Severity.MEDIUM if code < 0 else Severity.LOW,
                confidence=Confidence.HIGH,
                seen=f"The process that sends the log to {self._target.url} ended before the run did ({how}).",
                expected="It ends after the run.",
                benign=("the system was short of memory", "the log server's address or keys are not usable"),
                wall_ns=time.time_ns(),
            )
        )
