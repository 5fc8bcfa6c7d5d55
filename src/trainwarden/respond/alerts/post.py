"""Sends an alert channel's messages, one after the other, in a thread of its own.

Rules
-----
* `tell` never waits. At most `MAX_WAITING` messages wait; beyond, the oldest is dropped and counted.
* A message that is not taken is sent again after each of `WAITS`, unless the receiver says that it never will be.
* That a channel does not work is told once, when a message failed for the second time or for good; at the end, how
  many messages never arrived. The reason holds nothing secret: neither an address nor a password.
* `close` gives what waits `CLOSE_SECONDS`, whatever the receiver does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from trainwarden.errors import TrainWardenError
from trainwarden.model import Severity, Undelivered
from trainwarden.respond.alerts.words import Audience, Message, message
from trainwarden.supervise.responding import Told

MAX_WAITING = 256
WAITS = (1.0, 4.0, 15.0, 60.0)  # seconds
CLOSE_SECONDS = 10.0
_SEVERITIES = tuple(Severity)


class NotDelivered(TrainWardenError):
    """A channel did not take a message. `final`: sending it again is of no use."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Carrier(Protocol):
    """One way to send a message away."""

    def send(self, message: Message) -> None:
        """Send it.

        Raises:
            NotDelivered: it was not taken.
        """


class Post:
    """One channel while a run goes on."""

    def __init__(
        self,
        name: str,
        carrier: Carrier,
        audience: Audience = "team",
        least: Severity = Severity.LOW,
        waits: Sequence[float] = WAITS,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self.name, self.carrier, self.audience = name, carrier, audience
        self._least, self._waits, self._close_seconds = _SEVERITIES.index(least), waits, close_seconds
        self._undelivered: Callable[[Undelivered], None] = lambda _: None
        self._waiting: deque[Message] = deque()
        self._lost = 0
        self._told = False
        self._reason = ""
        self._until = float("inf")
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"trainwarden-{name}")

    def open(self, run: str, undelivered: Callable[[Undelivered], None]) -> None:
        self._undelivered = undelivered
        self._thread.start()

    def tell(self, told: Told) -> None:
        if _SEVERITIES.index(told.alert.severity) < self._least:
            return
        with self._changed:
            self._waiting.append(message(told, self.audience))
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._lost += 1
                self._reason = self._reason or f"more than {MAX_WAITING} alerts wait"
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._until = time.monotonic() + self._close_seconds
            self._changed.notify_all()
        self._thread.join(self._close_seconds)
        with self._changed:
            under_way = self._thread.is_alive()
            lost = self._lost + len(self._waiting) + under_way
        if lost:
            reason = self._reason or "the receiver was too slow"
            self._undelivered(Undelivered(channel=self.name, reason=reason, alerts=lost, wall_ns=time.time_ns()))

    # -- the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._until < float("inf"))
                if not self._waiting or time.monotonic() >= self._until:
                    return
                next_one = self._waiting.popleft()
            if not self._sent(next_one):
                with self._changed:
                    self._lost += 1

    def _sent(self, next_one: Message) -> bool:
        for tried, wait in enumerate((*self._waits, 0.0)):
            try:
                self.carrier.send(next_one)
                return True
            except NotDelivered as e:
                self._failed(str(e), for_good=e.final or tried > 0)
                if e.final or not self._pause(wait):
                    return False
        return False

    def _failed(self, reason: str, *, for_good: bool) -> None:
        self._reason = reason
        if for_good and not self._told:
            self._told = True
            self._undelivered(Undelivered(channel=self.name, reason=reason, wall_ns=time.time_ns()))

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try; False when there is no time left for one."""
        with self._changed:
            end = time.monotonic() + seconds
            while (left := min(end, self._until) - time.monotonic()) > 0:
                self._changed.wait(left)
            return time.monotonic() < self._until
