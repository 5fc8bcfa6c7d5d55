"""The launch command as a child, its signals, and the ends of ranks that are not our children.

Rules
-----
* The command inherits stdin, stdout, stderr, the working folder and the signal settings that we were started
  with. It is started without a fork handler of ours: nothing of this process runs in the child.
* In the foreground of a terminal the command shares our process group, so the terminal delivers Ctrl-C,
  Ctrl-\\ and a hang-up to both; a signal that the kernel sent (`si_code` SI_KERNEL) is therefore not passed on.
  Everywhere else the command leads a group of its own, and each signal sent to us is passed on exactly once.
  What remains: a signal that someone sends to the whole foreground group by `kill -- -PGID` arrives twice.
* Signals are waited for without a time limit: where a stop (Ctrl-Z) outlasts the limit of CPython's sigtimedwait, it
  returns what happens to lie on the stack as a signal (seen in 3.11).
* Ranks are usually our grandchildren: their exit status belongs to the launcher. We watch them by pidfd (no
  reuse of process ids can fool it) and read the status from /proc while they are zombies, or from the pidfd
  when the launcher was quicker (PIDFD_GET_INFO, Linux 6.15 and later); where neither works, the entry says that
  the status is not known. Being a subreaper makes us the parent of ranks whose launcher dies.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trainwarden.durable import write_all
from trainwarden.errors import CannotDecide, UsageError
from trainwarden.model import Writer
from trainwarden.supervise import proc
from trainwarden.supervise.enter import ENTERED

FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGCONT,
)  # fmt: skip
STOPPING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
STOP_SECONDS = 45.0  # that a command has to end after it was asked to; torchrun gives its ranks 30
_SI_KERNEL = 0x80
_ENTER = str(Path(__file__).with_name("enter.py"))
_PR_SET_CHILD_SUBREAPER = 36
_PIDFD_INFO = struct.Struct("QQ11Ii")  # struct pidfd_info of linux/pidfd.h: mask first, exit code last
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
_PIDFD_INFO_EXIT = 1 << 3
_STAT_EXIT_CODE = 49  # field 52 of /proc/PID/stat, counted from the state (field 3), see proc(5)


def block_signals() -> set[signal.Signals]:
    """Block what `Child.wait` collects, in this thread and those started later; return the mask before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    return {signal.Signals(s) for s in before}


def become_subreaper() -> None:
    """Make orphaned descendants our children (prctl(2) PR_SET_CHILD_SUBREAPER); without it they go to init."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether `ancestor` is `pid` or one of its parents now."""
    for _ in range(1_000):
        if pid == ancestor:
            return True
        pid = parent_of(pid)
        if pid <= 0:
            return False
    return False


def processes() -> list[int]:
    """The ids of all processes there are now."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def parent_of(pid: int) -> int:
    """The parent's process id, 0 when there is none or the process is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the command name before it may hold anything."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return os.read(fd, 4096).decode("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    finally:
        os.close(fd)


class Child:
    """The launch command, running."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        mask: set[signal.Signals],
        binds: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Start `argv`; with `binds` in a mount namespace where each source is seen at its target, read-only.

        Raises:
            UsageError: it cannot be started.
            CannotDecide: the namespace cannot be set up as asked.
        """
        self._shares_group = _in_foreground()
        self.stopping = 0
        self.interrupted = 0  # the signal to end that came from outside and was passed on, 0 for none
        self.on_signal: Callable[[int], None] = lambda _: None  # called after a signal was passed on
        self.stopped_by: Writer | None = None  # who sent the signal that is passed on
        self.pid = self._entered(argv, env, mask, binds) if binds else self._spawned(argv, env, mask)
        self._pidfd = os.pidfd_open(self.pid)

    def _spawned(self, argv: Sequence[str], env: Mapping[str, str], mask: Collection[signal.Signals]) -> int:
        defaults = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, and exec would hand that down
        spawn = os.posix_spawnp if self._shares_group else functools.partial(os.posix_spawnp, setpgroup=0)
        try:
            return spawn(argv[0], list(argv), dict(env), setsigmask=mask, setsigdef=defaults)
        except OSError as e:
            raise UsageError(f"cannot start {argv[0]!r}: {e.strerror}", hint="is it installed and on PATH?") from e

    def _entered(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        mask: set[signal.Signals],
        binds: Sequence[tuple[str, str]],
    ) -> int:
        """The process id of `enter.py`, which by then is the command, or has said why it is not."""
        told = {"argv": list(argv), "executable": argv[0], "binds": binds, "mask": [int(s) for s in mask]}
        spec = os.memfd_create("trainwarden-room", 0)
        read, report = os.pipe()
        try:
            write_all(spec, json.dumps(told).encode())
            os.lseek(spec, 0, os.SEEK_SET)
            os.set_inheritable(report, True)
            words = [sys.executable, "-I", "-S", _ENTER, str(spec), str(report)]
            pid = self._spawned(words, env, {*mask, *FORWARDED})
        finally:
            os.close(spec)
            os.close(report)
        with os.fdopen(read, "rb") as f:
            told_back = f.read()
        if told_back != ENTERED:
            os.waitpid(pid, 0)
            reason = told_back.strip(ENTERED).decode(errors="replace") or "no report came from inside"
            raise CannotDecide(f"the clean room cannot be entered: {reason}", hint="run without --clean-room")
        return pid

    def wait(self) -> int:
        """Pass signals on until the command ends; its exit code, negative for a signal. It stays a zombie."""
        # SIGCHLD may be taken by a thread that does not block it: the end is told by the pidfd as well.
        own = (threading.get_ident(),)
        threading.Thread(target=self._tell_end, args=own, daemon=True, name="trainwarden-child").start()
        while True:
            info = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
            if info.si_signo != signal.SIGCHLD:
                self._pass_on(info)
            status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if status is not None:
                return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def _tell_end(self, waiting: int) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()
        signal.pthread_kill(waiting, signal.SIGCHLD)

    def _pass_on(self, info: signal.struct_siginfo) -> None:
        if info.si_signo in STOPPING:
            self.stopping = self.interrupted = info.si_signo
            if info.si_code != _SI_KERNEL:
                self.stopped_by = msgspec.structs.replace(proc.process(info.si_pid), uid=info.si_uid)
        if not (self._shares_group and info.si_code == _SI_KERNEL):
            os.kill(self.pid, info.si_signo)  # it is our child and not reaped: the id is surely its own
        self.on_signal(info.si_signo)

    def stop(self) -> None:
        """Ask the command to end (SIGTERM), once; any thread may. It is killed if it does not within `STOP_SECONDS`."""
        if not self.stopping:
            self.stopping = signal.SIGTERM
            self._send(signal.SIGTERM)
            killer = threading.Timer(STOP_SECONDS, self._send, [signal.SIGKILL])
            killer.daemon = True
            killer.start()

    def _send(self, number: signal.Signals) -> None:
        with suppress(OSError):  # it has ended already
            signal.pidfd_send_signal(self._pidfd, number)

    def reap(self) -> None:
        """Let the zombie go."""
        os.waitpid(self.pid, 0)


def no_namespace(folder: Path) -> str:
    """Why a command cannot be given a mount namespace here, tried on `folder`; "" when it can."""
    words = [sys.executable, "-I", "-S", _ENTER, "--probe", str(folder)]
    try:
        tried = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return str(e)
    return "" if tried.returncode == 0 else (tried.stdout.strip() or tried.stderr.strip()[-200:] or "no reason given")


def _in_foreground() -> bool:
    """Whether we belong to the foreground group of a controlling terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@dataclass(frozen=True)
class Exit:
    """How a process ended: exit code, negative for a signal; `known` is false when nobody could tell us."""

    code: int
    known: bool


class Reaper:
    """Watches processes that need not be our children; `on_exit` is called once for each, from its thread."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)
        self._watched: dict[int, tuple[int, Callable[[Exit], None]]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._closing = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-reaper")
        self._thread.start()

    def watch(self, pid: int, on_exit: Callable[[Exit], None]) -> None:
        """Call `on_exit` when the process ends; at once when it is gone already.

        Raises:
            OSError: it lives and cannot be watched (no descriptors left).
        """
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            on_exit(Exit(-1, known=False))
            return
        with self._lock:
            self._watched[fd] = (pid, on_exit)
        self._poll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def settle(self, timeout: float) -> bool:
        """Wait until every watched process that ends within `timeout` seconds has been told; True when all did."""
        with self._ended:
            return self._ended.wait_for(lambda: not self._watched, timeout)

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(10.0)
        for fd in self._watched:
            os.close(fd)
        os.close(self._wake)
        self._poll.close()

    def _work(self) -> None:
        while not self._closing:
            for fd, _ in self._poll.poll():
                if fd != self._wake:
                    self._end(fd)

    def _end(self, fd: int) -> None:
        pid, on_exit = self._watched[fd]
        ended = _exit_of(pid, fd)
        on_exit(ended)
        os.close(fd)
        with self._ended:
            del self._watched[fd]
            self._ended.notify_all()


def _exit_of(pid: int, fd: int) -> Exit:
    try:
        status = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        seen = _zombie(pid)
        return seen if seen.known else _reaped(fd)
    if status is None:
        return Exit(-1, known=False)
    return Exit(status.si_status if status.si_code == os.CLD_EXITED else -status.si_status, known=True)


def _zombie(pid: int) -> Exit:
    """The exit status that the kernel keeps for the parent, read before the parent fetches it."""
    fields = _stat(pid)
    if not fields or fields[0] not in "ZX" or len(fields) <= _STAT_EXIT_CODE:
        return Exit(-1, known=False)
    return Exit(os.waitstatus_to_exitcode(int(fields[_STAT_EXIT_CODE])), known=True)


def _reaped(fd: int) -> Exit:
    """The exit status that a pidfd keeps after the parent has fetched it, where the kernel does that."""
    info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, info)
    except OSError:
        return Exit(-1, known=False)
    mask, *_, code = _PIDFD_INFO.unpack(info)
    if not mask & _PIDFD_INFO_EXIT:
        return Exit(-1, known=False)
    return Exit(os.waitstatus_to_exitcode(code), known=True)
