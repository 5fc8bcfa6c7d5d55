"""Pausing the ranks of a running job, and letting them go on.

Rules
-----
* Paused (SIGSTOP) are the ranks and everything below them, not the launcher above: an elastic agent goes on sending
  its heartbeats, so a rendezvous with other hosts does not time out. Where no rank has joined, everything below the
  launcher is paused, and where nothing is below it, the launcher itself.
* What is started while the job is held is paused too, within `LOOK_SECONDS`.
* Processes are signalled by pidfd, which is taken before their descent is looked at: no other process is ever hit.

A collective operation that is under way while its ranks are paused goes on counting time: held for longer than the
process group's timeout (NCCL 10 minutes, Gloo 30 unless the job says otherwise) it may fail once the job goes on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from trainwarden.supervise.process import descends_from, parent_of, processes

LOOK_SECONDS = 1.0
_ROUNDS = 10  # looks at processes that fork while they are paused


class Hold:
    """A job that can be paused; `ranks` gives the process ids of its live ranks. Every method from any thread."""

    def __init__(self, launcher: int, ranks: Callable[[], Collection[int]]) -> None:
        self._launcher, self._ranks = launcher, ranks
        self._paused: dict[int, int] = {}  # pid → pidfd
        self._lock = threading.Lock()
        self._go_on = threading.Event()
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        """Is the job held?"""
        return bool(self._paused)

    def begin(self) -> int:
        """Pause the job; the number of processes that are paused now, 0 when there is none to pause."""
        self._pause()
        if self._paused and self._thread is None:
            self._go_on.clear()
            self._thread = threading.Thread(target=self._look, daemon=True, name="trainwarden-hold")
            self._thread.start()
        return len(self._paused)

    def end(self) -> int:
        """Let the job go on; the number of processes that were paused."""
        self._go_on.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            paused, self._paused = self._paused, {}
        for fd in paused.values():
            with suppress(OSError):  # it was killed meanwhile
                signal.pidfd_send_signal(fd, signal.SIGCONT)
            os.close(fd)
        return len(paused)

    def _look(self) -> None:
        while not self._go_on.wait(LOOK_SECONDS):
            self._pause()

    def _pause(self) -> None:
        with self._lock:
            for _ in range(_ROUNDS):
                new = [pid for pid in self._targets() if pid not in self._paused and self._stop(pid)]
                if not new:
                    return

    def _targets(self) -> Iterator[int]:
        below = [pid for pid in processes() if descends_from(pid, self._launcher)]
        ranks = set(self._ranks()) & set(below)
        if not ranks:
            yield from [pid for pid in below if pid != self._launcher] or below
            return
        yield from (pid for pid in below if any(descends_from(pid, rank) for rank in ranks))

    def _stop(self, pid: int) -> bool:
        fd = send(pid, signal.SIGSTOP, self._launcher, keep=True)
        if fd >= 0:
            self._paused[pid] = fd
        return fd >= 0


def send(pid: int, number: signal.Signals, ancestor: int, *, keep: bool = False) -> int:
    """Send a signal to a process that descends from `ancestor`; its pidfd with `keep`, else and when it does not −1."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return -1
    try:
        if descends_from(pid, ancestor) and parent_of(pid):
            signal.pidfd_send_signal(fd, number)
            if keep:
                return fd
    except OSError:
        pass
    os.close(fd)
    return -1
