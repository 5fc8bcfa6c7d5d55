"""The seam of those who look at the host from time to time while a command runs.

Rules
-----
* One thread asks all of them in turn. One that fails is told as a gap, and is asked no more.
* A monitor judges nothing: it submits an entry when there is something to see, and a detector makes findings of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trainwarden.model import Entry, Gap, Writer
from trainwarden.supervise.presence import Presence

TICK = 0.5


@dataclass(frozen=True)
class Host:
    """What monitors see of a run."""

    presence: Presence
    submit: Callable[[Entry], object]
    supervisor_pid: int
    is_sealed: Callable[[str], bool]
    stall_seconds: float
    stopped_by: Callable[[int], Writer | None] = lambda pid: None  # who sent a process the signal that stopped it


class Monitor(Protocol):
    """Looks at one thing every `every` seconds."""

    @property
    def name(self) -> str: ...

    @property
    def every(self) -> float: ...

    def look(self, now: float) -> None:
        """Look; `now` is `time.monotonic`. May take seconds."""


class Monitors:
    """Asks monitors from a thread of its own until it is closed."""

    def __init__(self, monitors: Sequence[Monitor], submit: Callable[[Entry], object], tick: float = TICK) -> None:
        self._due = {id(m): 0.0 for m in monitors}
        self._monitors = list(monitors)
        self._submit, self._tick = submit, tick
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-monitors")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join(10.0)

    def _work(self) -> None:
        while not self._closed.wait(self._tick):
            for monitor in tuple(self._monitors):
                now = time.monotonic()
                if now >= self._due[id(monitor)]:
                    self._due[id(monitor)] = now + monitor.every
                    self._ask(monitor, now)

    def _ask(self, monitor: Monitor, now: float) -> None:
        try:
            monitor.look(now)
        except (OSError, ValueError, LookupError, ArithmeticError) as e:
            self._monitors.remove(monitor)
            reason = f"the monitor {monitor.name!r} failed and looks no more: {type(e).__name__}: {e}"
            self._submit(Gap(attempt=-1, rank=-1, step=-1, reason=reason))
