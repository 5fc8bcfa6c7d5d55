"""Who trains: attempts of ranks, and where in the job's count of steps each attempt began.

Rules
-----
* A rank's attempt is how often that rank has joined before, so the first attempt is 0. An attempt of which a
  rank has failed is over: who joins after that joins the next one, also a rank that was slow and never joined
  the failed attempt. So the ranks of one launch have one attempt.
* A rank counts its own steps from 0. The step that its attempt began at (`base`) is the largest known step of
  any state file that a rank of this attempt loaded before the attempt's first step, and is fixed from then on.
  Files that a process loaded before it joined count for the attempt that it joins.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class _Attempt:
    base: int = 0
    begun: bool = False


@dataclass
class Roster:
    """Shared by all sessions of a run; every method may be called from any thread."""

    _next: dict[int, int] = field(default_factory=dict)  # rank → the attempt that it joins next
    _alive: dict[int, tuple[int, int]] = field(default_factory=dict)  # rank → pid and attempt
    _first_open: int = 0  # attempts before this one are over
    _attempts: dict[int, _Attempt] = field(default_factory=dict)
    _loaded: dict[int, int] = field(default_factory=dict)  # pid → largest known step, before it joined
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def join(self, rank: int, pid: int) -> tuple[int, int]:
        """Count a rank in: its attempt, and the process id of another live process with that rank (0: none)."""
        with self._lock:
            attempt = max(self._next.get(rank, 0), self._first_open)
            self._next[rank] = attempt + 1
            twin = self._alive.get(rank, (0, 0))[0]
            self._alive[rank] = (pid, attempt)
            self._raise_base(attempt, self._loaded.pop(pid, -1))
            return attempt, twin

    def left(self, rank: int, pid: int, attempt: int, *, failed: bool) -> None:
        """The process is gone; when it failed, its attempt is over."""
        with self._lock:
            if failed:
                self._first_open = max(self._first_open, attempt + 1)
            if self._alive.get(rank) == (pid, attempt):
                del self._alive[rank]

    def pids(self) -> tuple[int, ...]:
        """The process ids of the ranks that run now."""
        with self._lock:
            return tuple(pid for pid, _ in self._alive.values())

    def loaded_before_join(self, pid: int, known_step: int) -> None:
        """A process that has not joined yet read a state file."""
        with self._lock:
            self._loaded[pid] = max(known_step, self._loaded.get(pid, -1))

    def loaded(self, attempt: int, known_step: int) -> None:
        """A rank of this attempt read a state file."""
        with self._lock:
            self._raise_base(attempt, known_step)

    def base(self, attempt: int) -> int:
        """The step that this attempt began at, as far as it is known now."""
        with self._lock:
            return self._attempts.setdefault(attempt, _Attempt()).base

    def begin(self, attempt: int) -> int:
        """A rank of this attempt does its first step: its base, fixed from now on."""
        with self._lock:
            state = self._attempts.setdefault(attempt, _Attempt())
            state.begun = True
            return state.base

    def _raise_base(self, attempt: int, known_step: int) -> None:
        state = self._attempts.setdefault(attempt, _Attempt())
        if not state.begun:
            state.base = max(state.base, known_step)
