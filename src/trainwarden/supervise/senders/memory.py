"""The kernel's OOM killer: what the kernel's own log says, and the counts of the control group.

/dev/kmsg: `oom-kill:…,pid=PID,uid=…` and `… Killed process PID (name) …` (mm/oom_kill.c). Where it may not be read, a
`oom_kill` count that rose since the start (`memory.events` of cgroup v2, `memory.oom_control` of v1) says that some
process of the group was killed so, which is told as just that.
"""

from __future__ import annotations

import os
import re

from trainwarden.supervise import proc
from trainwarden.supervise.senders.interface import Sent

_KILLED = re.compile(r"Killed process (\d+) \(|oom-kill:.*[,:]pid=(\d+),")
_MOST_LINES = 10_000
_KILL = 9


def killed(line: str) -> int:
    """The process that a line of the kernel's log says the OOM killer ended, 0 for none."""
    found = _KILLED.search(line)
    return int(found[1] or found[2]) if found else 0


def count(text: str) -> int:
    """`oom_kill` of memory.events or memory.oom_control, −1 when it is not in it."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdecimal():
            return int(value)
    return -1


def group_file(cgroup: str) -> str:
    """Where the count of a process's control group is, from its /proc/PID/cgroup; "" where it has none."""
    for line in cgroup.splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if "memory" in controllers.split(","):
            return f"/sys/fs/cgroup/memory{path}/memory.oom_control"
        if number == "0" and not controllers and os.path.exists(f"/sys/fs/cgroup{path}/memory.events"):
            return f"/sys/fs/cgroup{path}/memory.events"
    return ""


class OutOfMemory:
    """Reads what the kernel logs from the start on."""

    def __init__(self) -> None:
        self._kmsg = -1
        self._killed: set[int] = set()
        self._group, self._count = "", -1

    def start(self) -> str:
        self._group = group_file(proc.read("/proc/self/cgroup"))
        self._count = count(proc.read(self._group)) if self._group else -1
        if not proc.kernels_own_ids():
            return "" if self._count >= 0 else f"no kernel log: {proc.NOT_OURS}"
        try:
            self._kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._kmsg, 0, os.SEEK_END)
        except OSError as e:
            return "" if self._count >= 0 else f"no kernel log: {e.strerror}"
        return ""

    def sent(self, pid: int, signal: int) -> Sent | None:
        if signal not in (0, _KILL):
            return None
        self._read()
        if pid in self._killed:
            return Sent(by="the kernel's log: its OOM killer")
        return self._by_count() if self._kmsg < 0 and signal == _KILL else None

    def _by_count(self) -> Sent | None:
        now = count(proc.read(self._group)) if self._group else -1
        if now <= self._count or self._count < 0:
            return None
        self._count = now  # one end is one victim's
        return Sent(by="the control group's count: its OOM killer ended some process")

    def _read(self) -> None:
        for _ in range(_MOST_LINES if self._kmsg >= 0 else 0):
            try:
                line = os.read(self._kmsg, 8192).decode("utf-8", "replace")
            except BrokenPipeError:
                continue  # lines were overwritten before we read them
            except OSError:
                return
            if pid := killed(line):
                self._killed.add(pid)

    def close(self) -> None:
        if self._kmsg >= 0:
            os.close(self._kmsg)
            self._kmsg = -1
