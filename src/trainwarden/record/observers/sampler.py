"""Looks at the training thread's stack while a step takes longer than usual.

Rules
-----
* A thread of its own that sleeps until the running step is overdue; most steps end before, and then it wakes once and
  sleeps on. It never touches what it looks at.
* Only looks that found the thread idle count: it used no CPU since the look before, and was not ready for one.
* A thread whose innermost frame is one of torch's collectives waits for its peers, and is not idle.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from trainwarden.model import StackFrame
from trainwarden.record.sleeps import unheard
from trainwarden.record.stacks import stack_of

Found: TypeAlias = tuple[tuple[StackFrame, ...], int]
"""A stack, innermost first, and how many looks found it."""

Looks: TypeAlias = Counter[tuple[str, tuple[StackFrame, ...]]]
"""How often an idle thread was seen in a part of a step, at a stack."""

EVERY = 0.02  # seconds between looks
MOST = 50  # looks at one step
_REST = 0.05  # seconds between two times that it wakes while nothing is overdue: short steps are many
_IDLE_SHARE = 0.2  # of a look's time that an idle thread may have been busy
_WAITS = ("/torch/distributed/", "/torch/nn/parallel/distributed.py")


class Scheduled:
    """What the kernel says of one thread: /proc/PID/task/TID/schedstat, kept open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of_thread(cls, native: int) -> Scheduled:
        try:
            return cls(os.open(f"/proc/self/task/{native}/schedstat", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return cls(-1)

    def read(self) -> tuple[int, int]:
        """Nanoseconds on a CPU, and ready without one; −1 when the system does not tell."""
        if self._fd < 0:
            return -1, -1
        try:
            words = os.pread(self._fd, 100, 0).split()
            return int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            return -1, -1

    def queued(self) -> int:
        """Nanoseconds in which the thread was ready without a CPU, −1 when the system does not tell."""
        return self.read()[1]


class Sampler:
    """Watches one thread; `part` says where in a step it is."""

    def __init__(self, thread: int, scheduled: Scheduled, part: Callable[[], str]) -> None:
        self._thread, self._scheduled, self._part = thread, scheduled, part
        self._due = 0  # monotonic nanoseconds from which on the running step is overdue, 0 = nothing is usual yet
        self._looks = Looks()
        self._lock = threading.Lock()
        self._stopped = False
        threading.Thread(target=self._work, daemon=True, name="trainwarden-sampler").start()

    def step_began(self, began_ns: int, usual_ns: int) -> None:
        """A step begins, which usually ends within `usual_ns` (0: that is not known)."""
        self._due = began_ns + usual_ns if usual_ns else 0

    def taken(self) -> Looks:
        """What was seen since the last call."""
        if not self._looks:
            return Looks()
        with self._lock:
            looks, self._looks = self._looks, Looks()
        return looks

    def stop(self) -> None:
        self._stopped = True

    def _work(self) -> None:
        while not self._stopped:
            due = self._due
            wait = (due - time.monotonic_ns()) / 1e9 if due else 0.1
            unheard(max(wait, _REST))
            if due and due == self._due and time.monotonic_ns() >= due:
                self._watch(due)

    def _watch(self, due: int) -> None:
        """Look at an overdue step until it ends."""
        busy, queued = self._scheduled.read()
        for _ in range(MOST):
            begin = time.monotonic_ns()
            unheard(EVERY)
            if self._stopped or self._due != due:
                return
            span = time.monotonic_ns() - begin
            now_busy, now_queued = self._scheduled.read()
            if busy >= 0 and (now_busy - busy) + (now_queued - queued) < _IDLE_SHARE * span:
                self._keep(stack_of(self._thread))
            busy, queued = now_busy, now_queued
        while self._due == due and not self._stopped:
            unheard(0.1)

    def _keep(self, frames: tuple[StackFrame, ...]) -> None:
        if frames and any(w in frames[0].file for w in _WAITS):
            return
        with self._lock:
            self._looks[self._part(), frames] += 1


def most(looks: Looks, parts: Sequence[str]) -> Found:
    """Where the thread was most often seen in these parts of a step."""
    own = Counter({frames: n for (part, frames), n in looks.items() if part in parts}) if looks else None
    return own.most_common(1)[0] if own else ((), 0)
