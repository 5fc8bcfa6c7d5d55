"""Sees that other processes take the CPUs and accelerators that ranks run on, by the harm that it does.

Rules
-----
* Harm first: the share of the time in which a rank's first thread was ready and no CPU was free (/proc/PID/schedstat)
  rises, over the last `WINDOW` looks together, above what it was in this run before. Only then others are looked at.
  Fifteen seconds hold a hundred slices of the scheduler: their share is no accident, and a job of a minute is covered.
* After the first `FIRST`, a look is part of what is usual only once the `WINDOW` looks after it were calm: neither a
  crowd that stays nor its lighter moments become usual.
* Foreign is a process that does not descend from the supervisor. It is named when it may run on a rank's CPUs and takes
  at least `LEAST_TAKEN` of one. A run whose own processes crowd each other out names nobody.
* On accelerators, a foreign process with memory on the device of a rank is told once (`nvidia-smi`, where it exists).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from trainwarden.model import Foreign, HostCrowded
from trainwarden.supervise import proc
from trainwarden.supervise.monitors.interface import Host
from trainwarden.supervise.presence import Live
from trainwarden.supervise.process import descends_from, processes

FIRST = 10  # looks that say what is usual, before any harm is seen
WINDOW = 15  # looks
LEAST_RISE = 0.15
MOST_RISE = 0.2  # where ranks wait much anyhow: two busy processes beside two ranks add no more than 0.3 there
RISE = 3.0  # times what is usual, in between
LEAST_TAKEN = 0.3
MOST_NAMED = 8
_ACCELERATOR_LOOKS = 60  # looks between looks at accelerators
_QUERY = ("--query-compute-apps=gpu_uuid,pid,used_memory,process_name", "--format=csv,noheader,nounits")


class Waited(NamedTuple):
    """How much a rank waited over the newest looks, and what is usual. `calm`: that is usual too; `harm`: too much."""

    share: float
    usual: float
    calm: bool
    harm: bool


class Usual:
    """What share of the time ranks usually wait in this run, learned look by look (rule 2 above)."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=600)
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._looks = 0

    def add(self, share: float) -> Waited:
        """Another look."""
        usual = sorted(self._usual)[len(self._usual) // 2] if self._usual else 0.0
        rise = max(LEAST_RISE, min((RISE - 1) * usual, MOST_RISE))
        known = self._looks >= FIRST
        oldest = self._recent[0] if len(self._recent) == WINDOW else None
        self._recent.append(share)
        waited = sum(self._recent) / len(self._recent)
        calm = waited <= usual + rise / 2
        if not known:
            self._usual.append(share)
        elif oldest is not None and self._looks - WINDOW >= FIRST and calm:
            self._usual.append(oldest)
        self._looks += 1
        return Waited(waited, usual, calm, harm=known and len(self._recent) == WINDOW and waited > usual + rise)

    def wait_again(self) -> None:
        """No harm is seen before another window is full."""
        self._recent.clear()


class Crowds:
    """Watches how long ranks wait for CPUs."""

    name = "crowds"
    every = 1.0

    def __init__(self, host: Host) -> None:
        self._host = host
        self._smi = shutil.which("nvidia-smi")
        self._before: dict[int, float] = {}  # pid → seconds that it waited
        self._looked = 0.0
        self._usual = Usual()
        self._told = False
        self._looks = 0
        self._told_devices: set[tuple[str, int]] = set()

    def look(self, now: float) -> None:
        ranks = self._host.presence.ranks()
        share = self._waiting(ranks, now)
        if share >= 0:
            self._judge(ranks, share)
        if self._smi and ranks and self._looks % _ACCELERATOR_LOOKS == 0:
            self._look_at_accelerators(ranks)
        self._looks += 1

    def _waiting(self, ranks: list[Live], now: float) -> float:
        """The largest share of any rank's time since the last look that it waited for a CPU; −1 when not known."""
        found = {live.pid: told[1] for live in ranks if (told := proc.queued(live.pid)) is not None}
        span = now - self._looked
        shares = [(waited - self._before[pid]) / span for pid, waited in found.items() if pid in self._before]
        self._before, self._looked = found, now
        return max(shares, default=-1.0) if span > 0 else -1.0

    def _judge(self, ranks: list[Live], share: float) -> None:
        waited = self._usual.add(share)
        if waited.calm:
            self._told = False
        if not waited.harm or self._told:
            return
        processes = foreign(ranks, self._host.supervisor_pid)
        self._told = bool(processes)
        if processes:
            self._tell(ranks, "cpu", processes, waited.share, waited.usual)
        else:
            self._usual.wait_again()  # a window later, whoever it is may be seen

    def _tell(
        self, ranks: list[Live], kind: str, processes: tuple[Foreign, ...], share: float = 0.0, usual: float = 0.0
    ) -> None:
        self._host.submit(
            HostCrowded(
                attempt=ranks[0].attempt,
                ranks=tuple(r.rank for r in ranks)[:64],
                kind=kind,
                waiting_share=round(share, 3),
                usual_share=round(usual, 3),
                seconds=WINDOW * self.every if kind == "cpu" else 0.0,
                processes=processes,
                wall_ns=time.time_ns(),
            )
        )

    def _look_at_accelerators(self, ranks: list[Live]) -> None:
        if self._smi is None:
            return
        try:
            told = subprocess.run([self._smi, *_QUERY], capture_output=True, text=True, timeout=20, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return
        found = squatters(told, {r.pid for r in ranks}, lambda pid: descends_from(pid, self._host.supervisor_pid))
        new = tuple(f for f in found if (f.device, f.pid) not in self._told_devices)[:MOST_NAMED]
        self._told_devices.update((f.device, f.pid) for f in new)
        if new:
            self._tell(ranks, "accelerator", new)


def foreign(ranks: list[Live], supervisor_pid: int, seconds: float = 1.0) -> tuple[Foreign, ...]:
    """The processes that take most of the ranks' CPUs and are none of this run, over so many seconds."""
    cpus = set().union(*(_cpus(live.pid) for live in ranks))
    before = _cpu_times()
    time.sleep(seconds)
    taken = {pid: (cpu - before[pid]) / seconds for pid, cpu in _cpu_times().items() if pid in before}
    found: list[Foreign] = []
    for pid, share in sorted(taken.items(), key=lambda item: -item[1]):
        if share < LEAST_TAKEN or len(found) == MOST_NAMED:
            break
        if not descends_from(pid, supervisor_pid) and _cpus(pid) & cpus:
            who = proc.process(pid)
            found.append(Foreign(pid=pid, uid=who.uid, program=who.program, cpu_share=round(share, 3)))
    return tuple(found)


def _cpu_times() -> dict[int, float]:
    return {pid: told.cpu for pid in processes() if (told := proc.stat(pid)) is not None}


def _cpus(pid: int) -> set[int]:
    try:
        return os.sched_getaffinity(pid)
    except OSError:
        return set()


def squatters(told: str, ranks: Collection[int], ours: Callable[[int], bool]) -> tuple[Foreign, ...]:
    """Foreign processes on the accelerators of these ranks, from `nvidia-smi`'s comma-separated answer.

    Lines that are none ("No running processes found", values "[N/A]") are passed over or counted as 0 MiB.
    """
    rows = []
    for line in told.splitlines():
        words = [w.strip() for w in line.split(",", 3)]
        if len(words) == 4 and words[1].isdecimal():
            rows.append((words[0], int(words[1]), int(words[2]) if words[2].isdecimal() else 0, words[3]))
    devices = {device for device, pid, _, _ in rows if pid in ranks}
    return tuple(
        Foreign(pid=pid, uid=proc.process(pid).uid, program=name[:1000], device=device[:100], memory_mib=memory)
        for device, pid, memory, name in rows
        if device in devices and pid not in ranks and not ours(pid)
    )
