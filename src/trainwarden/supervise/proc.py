"""What /proc says of processes and threads; whatever is gone says nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import msgspec

from trainwarden.model import StackFrame, Writer

TICKS = os.sysconf("SC_CLK_TCK")
_SYSCALLS = {
    "x86_64": {
        0: "read", 7: "poll", 23: "select", 34: "pause", 35: "nanosleep", 45: "recvfrom", 61: "wait4", 202: "futex",
        230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid", 270: "pselect6", 271: "ppoll", 281: "epoll_pwait",
    },
    "aarch64": {
        63: "read", 72: "pselect6", 73: "ppoll", 22: "epoll_pwait", 98: "futex", 101: "nanosleep",
        115: "clock_nanosleep", 207: "recvfrom", 260: "wait4", 95: "waitid",
    },
}  # fmt: skip


class Stat(msgspec.Struct, frozen=True):
    """Part of /proc/PID/stat (proc_pid_stat(5))."""

    state: str
    parent: int
    cpu: float  # seconds on CPUs


def parse_stat(text: str) -> Stat | None:
    """Read /proc/PID/stat; None when it is none. The command name in it may hold anything."""
    fields = text.rpartition(")")[2].split()
    try:
        return Stat(fields[0], int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS)
    except (IndexError, ValueError):
        return None


def read(path: str) -> str:
    """The beginning of a file below /proc, "" when it is gone or may not be read."""
    try:
        with open(path, "rb") as f:
            return f.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return ""


def stat(pid: int, thread: int = 0) -> Stat | None:
    return parse_stat(read(f"/proc/{pid}/task/{thread}/stat" if thread else f"/proc/{pid}/stat"))


def queued(pid: int) -> tuple[float, float] | None:
    """Seconds that a process's first thread was on a CPU, and ready without one (/proc/PID/schedstat)."""
    words = read(f"/proc/{pid}/schedstat").split()
    try:
        return int(words[0]) / 1e9, int(words[1]) / 1e9
    except (IndexError, ValueError):
        return None


def waits_in(pid: int, thread: int) -> str:
    """The system call and the kernel function that a thread waits in, as far as we may know."""
    call = read(f"/proc/{pid}/task/{thread}/syscall").split()
    names = _SYSCALLS.get(platform.machine(), {})
    said = ""
    if call and call[0].isdecimal():
        said = names.get(int(call[0]), f"system call {call[0]}")
    kernel = read(f"/proc/{pid}/task/{thread}/wchan").strip()
    if kernel and kernel != "0":
        said = f"{said} ({kernel[:64]})" if said else kernel[:64]
    return said


def process(pid: int, name: str = "") -> Writer:
    """Who a process is now; only its id and `name` when it is gone."""
    status = read(f"/proc/{pid}/status")
    uid = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:")), -1)
    login = read(f"/proc/{pid}/loginuid").strip()
    try:
        program = os.readlink(f"/proc/{pid}/exe").encode("utf-8", "backslashreplace").decode()
    except OSError:
        program = name
    words = read(f"/proc/{pid}/cmdline")[:4096].split("\0")
    return Writer(
        pid=pid,
        uid=uid,
        login_uid=int(login) if login.isdecimal() and int(login) != 0xFFFFFFFF else -1,
        program=program[:1000],
        argv=tuple(w for w in words if w)[:32],
    )


def kernels_own_ids() -> bool:
    """Whether process ids here are those that the kernel writes into its own logs: in the first PID namespace."""
    try:
        return os.readlink("/proc/self/ns/pid") == _FIRST_NAMESPACE
    except OSError:
        return False


NOT_OURS = "the kernel's process ids are not those of this PID namespace"
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h


def unsealed(frames: tuple[StackFrame, ...], is_sealed: Callable[[str], bool]) -> tuple[str, ...]:
    """The files among these frames that the seal does not hold; what was compiled from no file is not judged."""
    files = dict.fromkeys(f.file for f in frames if f.file.startswith("/"))
    return tuple(f for f in files if not is_sealed(f) and not f.startswith(_OURS))[:8]


_OURS = str(Path(__file__).parents[1]) + os.sep
