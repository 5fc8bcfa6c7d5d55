"""Who sent a signal: parts of the system that may tell, one a file. To add one: a file, a line in `all_sources`."""

from __future__ import annotations

import time

from trainwarden.model import Writer
from trainwarden.supervise.senders.audited import Audited
from trainwarden.supervise.senders.interface import Sent, Source
from trainwarden.supervise.senders.memory import OutOfMemory
from trainwarden.supervise.senders.traced import Traced

__all__ = ["Senders", "Sent", "Source", "all_sources"]

_PATIENCE = 0.5  # seconds that an answer under way is waited for
_PATIENCE_IN_ALL = 5.0  # so that many ends, of which nobody knows, are not told late
_STOP = 19  # SIGSTOP


def all_sources() -> tuple[Source, ...]:
    """A fresh instance of every source; the first that knows is believed."""
    return (OutOfMemory(), Traced(), Audited())


class Senders:
    """Asks every source that works here. `of` may be called from any thread."""

    def __init__(self, sources: tuple[Source, ...] | None = None) -> None:
        self._all = all_sources() if sources is None else sources
        self._sources: list[Source] = []
        self._reasons: list[str] = []
        self._patience = _PATIENCE_IN_ALL

    def start(self) -> None:
        for source in self._all:
            reason = source.start()
            if reason:
                self._reasons.append(reason)
            else:
                self._sources.append(source)

    def of(self, pid: int, signal: int) -> Sent | str:
        """Who sent this process this signal (0: one that ended it), or why nobody is known."""
        begin = time.monotonic()
        while self._sources:
            for source in self._sources:
                if (sent := source.sent(pid, signal)) is not None:
                    return sent
            if time.monotonic() - begin >= min(_PATIENCE, self._patience):
                break
            time.sleep(0.02)
        self._patience -= time.monotonic() - begin
        return "the system does not tell" + "".join(f"; {reason}" for reason in self._reasons)

    def stopper(self, pid: int) -> Writer | None:
        """Who sent a process the signal that stopped it, where the system tells."""
        sent = self.of(pid, _STOP)
        return None if isinstance(sent, str) else sent.sender

    def close(self) -> None:
        for source in self._sources:
            source.close()
        self._sources.clear()
