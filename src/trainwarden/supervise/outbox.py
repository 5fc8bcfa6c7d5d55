"""What is sent to a rank that does not wait for it, from its own thread: a rank that does not read holds up nobody."""

from __future__ import annotations

import threading

from trainwarden import wire


class Outbox:
    """Sends what nobody waits for: the newest acknowledgement, which stands for earlier ones, and looks."""

    def __init__(self, connection: wire.Connection) -> None:
        self._connection = connection
        self._newest = self._sent = -1
        self._token = -1
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="trainwarden-acks").start()

    def durable(self, seq: int) -> None:
        with self._changed:
            self._newest = max(self._newest, seq)
            self._changed.notify()

    def look(self, token: int) -> None:
        """Ask the rank where it stands."""
        with self._changed:
            self._token = token
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        while (messages := self._next()) is not None:
            try:
                for message in messages:
                    self._connection.send(message)
            except OSError:
                return

    def _next(self) -> list[wire.Message] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest > self._sent or self._token >= 0)
            if self._closed:
                return None
            messages: list[wire.Message] = [wire.Look(token=self._token)] if self._token >= 0 else []
            if self._newest > self._sent:
                messages.append(wire.Acked(seq=self._newest))
            self._sent, self._token = self._newest, -1
            return messages
