"""Compares the clocks of this host with each other, and the times that ranks claim with their arrival.

Rules
-----
* The wall clock runs along with CLOCK_BOOTTIME, which nobody can set. A change of their difference between two looks of
  more than `JUMP` is a jump; of more than the kernel slews clocks by (500 ppm) over the run is a slow shift.
* CLOCK_BOOTTIME goes on while a host is suspended and CLOCK_MONOTONIC does not: their difference tells of that.
* A rank runs on this host: a record that was made later than it arrived, or that all of its newest `NEWEST` records
  arrived long after they say that they were made, shows a clock that is not ours. Delays on the way only add.
"""

from __future__ import annotations

import time

from trainwarden.model import ClockShifted
from trainwarden.supervise.monitors.interface import Host

JUMP = 250_000_000
SLEW = 0.0005
EARLY = 100_000_000  # ns that a record may come before it was made: the clock was just set
LATE = 30_000_000_000  # ns by which the newest records may all be late: a watcher that is far behind
NEWEST = 16


class Clocks:
    """Watches the host's clocks and the ranks' claims."""

    name = "clocks"
    every = 1.0

    def __init__(self, host: Host) -> None:
        self._host = host
        self._start = self._last = _offsets()
        self._began = self._looked = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._drift_told = False
        self._told: set[tuple[int, int]] = set()

    def look(self, now: float) -> None:
        self._look_at_host(_offsets(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self._look_at_ranks()

    def _look_at_host(self, offsets: tuple[int, int], at: int) -> None:
        """`offsets`: the wall clock and CLOCK_MONOTONIC, each less CLOCK_BOOTTIME, in ns."""
        wall = offsets[0] - self._last[0]
        slept = self._last[1] - offsets[1]
        over = at - self._looked
        if abs(wall) > JUMP:
            self._tell("host", wall, over)
            self._start = (self._start[0] + wall, self._start[1])  # a jump is no drift as well
        if slept > JUMP:
            self._tell("slept", slept, over)
        drift = offsets[0] - self._start[0]
        if not self._drift_told and abs(drift) > JUMP + SLEW * (at - self._began):
            self._drift_told = True
            self._tell("host", drift, at - self._began)
        self._last, self._looked = offsets, at

    def _look_at_ranks(self) -> None:
        for live in self._host.presence.ranks():
            behind = list(live.behind_ns)[-NEWEST:]
            who = (live.attempt, live.rank)
            if len(behind) < NEWEST or who in self._told:
                continue
            by = -max(behind) if max(behind) < -EARLY else -min(behind) if min(behind) > LATE else 0
            if by:
                self._told.add(who)
                self._tell("rank", by, 0, *who, step=live.reached)

    def _tell(self, kind: str, by: int, over: int, attempt: int = -1, rank: int = -1, step: int = -1) -> None:
        wall = time.time_ns()
        told = ClockShifted(kind=kind, by_ns=by, attempt=attempt, rank=rank, step=step, over_ns=over, wall_ns=wall)
        self._host.submit(told)


def _offsets() -> tuple[int, int]:
    """The wall clock and CLOCK_MONOTONIC, each less CLOCK_BOOTTIME, in ns; read again when we were held up between."""
    best = (0, 0, 1 << 62)
    for _ in range(3):
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall, monotonic = time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        took = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boot
        if took < best[2]:
            best = (wall - boot, monotonic - boot, took)
    return best[0], best[1]
