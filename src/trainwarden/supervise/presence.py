"""Which ranks live, how far they are, and how to ask them where they stand: what monitors look at."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from trainwarden import wire

_KEPT = 16  # newest records whose delay is remembered


@dataclass
class Live:
    """A rank that has joined and neither ended nor said goodbye. Written by its session, read by monitors."""

    attempt: int
    rank: int
    world: int
    pid: int
    ask: Callable[[int], None]  # send `wire.Look` with this token, without waiting
    reached: int = 0  # steps of the job that it has completed
    moved: float = 0.0  # `time.monotonic` of its newest record, or of its joining
    behind_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))  # arrival less claimed wall time
    answer: wire.Stacks | None = None


class Presence:
    """Shared by all sessions of a run; every method may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._live: dict[tuple[int, int], Live] = {}
        self._pids: set[int] = set()  # of every rank that ever joined
        self._changed = threading.Condition()

    def joined(self, attempt: int, rank: int, world: int, pid: int, ask: Callable[[int], None]) -> None:
        with self._changed:
            self._pids.add(pid)
            self._live[attempt, rank] = Live(attempt, rank, world, pid, ask, moved=self._clock())

    def moved(self, attempt: int, rank: int, reached: int, claimed_ns: int) -> None:
        """A record of this rank came; it says that it was made at `claimed_ns` on the wall clock."""
        live = self._live.get((attempt, rank))
        if live is not None:
            live.behind_ns.append(time.time_ns() - claimed_ns)
            live.reached, live.moved = max(live.reached, reached), self._clock()

    def stacks(self, attempt: int, rank: int, answer: wire.Stacks) -> None:
        """A rank told where it stands."""
        with self._changed:
            live = self._live.get((attempt, rank))
            if live is not None:
                live.answer = answer
                self._changed.notify_all()

    def left(self, attempt: int, rank: int, pid: int) -> None:
        """It says goodbye, or has ended."""
        with self._changed:
            live = self._live.get((attempt, rank))
            if live is not None and live.pid == pid:
                del self._live[attempt, rank]

    def was_rank(self, pid: int) -> bool:
        """Is this process a rank of this run, or was it one?"""
        with self._changed:
            return pid in self._pids

    def ranks(self) -> list[Live]:
        """Those of the newest attempt, by rank."""
        with self._changed:
            newest = max((attempt for attempt, _ in self._live), default=-1)
            return [live for (attempt, _), live in sorted(self._live.items()) if attempt == newest]

    def ask(self, ranks: list[Live], token: int, timeout: float) -> None:
        """Ask these where they stand, and wait for the answers for so many seconds."""
        for live in ranks:
            live.ask(token)
        with self._changed:
            self._changed.wait_for(lambda: all(_answered(live, token) for live in ranks), timeout)
            for live in ranks:
                if not _answered(live, token):
                    live.answer = None


def _answered(live: Live, token: int) -> bool:
    return live.answer is not None and live.answer.token == token
