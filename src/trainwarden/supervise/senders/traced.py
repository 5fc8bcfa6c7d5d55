"""Senders of signals from the kernel's tracepoint `signal:signal_generate`, which runs in the sender.

Rules
-----
* An instance of its own below tracefs: whatever else is traced on this host is left alone. Where tracefs is not
  mounted it is mounted for a moment on a private folder. The instance goes with us; one that a killed supervisor left
  is removed by the next.
* The kernel is asked for signals that end or stop a process, of all processes. Its line begins with the sender's name
  and thread, `( TGID)` is its process; `comm`, `pid` are the receiver's; `res` is 0 when the signal was delivered;
  `code` 0 is `kill`, 128 the kernel itself (https://docs.kernel.org/trace/events.html, trace/events/signal.h).
* The sender is looked up in /proc at once. A short-lived one is named by its process id and command name alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

import msgspec

from trainwarden.model import Writer
from trainwarden.supervise import proc
from trainwarden.supervise.senders.interface import Sent

SIGNALS = (1, 2, 3, 6, 9, 15, 19)
_PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_NAME = "trainwarden-"
_BUFFER_KB = "64"
_KEPT = 4_096
_KERNEL = 128  # SI_KERNEL
_MNT_DETACH = 2
_LINE = re.compile(
    r"^\s*(?P<comm>.*)-(?P<thread>\d+)\s+(?:\(\s*(?P<process>\d+|-+)\)\s+)?\[\d+\]\s+\S+\s+[\d.]+: signal_generate: "
    r"sig=(?P<signal>\d+) errno=-?\d+ code=(?P<code>-?\d+) comm=.* pid=(?P<pid>\d+) grp=\d+ res=(?P<result>\d+)\s*$"
)
_libc = ctypes.CDLL(None, use_errno=True)


class Signal(msgspec.Struct, frozen=True):
    """One line of the trace."""

    comm: str
    sender: int  # its process, or its thread where the line has no more
    signal: int
    code: int
    pid: int
    delivered: bool


def parse(line: str) -> Signal | None:
    """Read a line of `trace_pipe`; None when it is none of ours."""
    found = _LINE.match(line)
    if found is None:
        return None
    process = found["process"] or ""
    return Signal(
        comm=found["comm"],
        sender=int(process if process.isdecimal() else found["thread"]),
        signal=int(found["signal"]),
        code=int(found["code"]),
        pid=int(found["pid"]),
        delivered=found["result"] == "0",
    )


class Traced:
    """Listens to the tracepoint in a thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], Sent] = OrderedDict()
        self._lock = threading.Lock()
        self._instances = self._pipe = -1
        self._stop = (-1, -1)
        self._name = f"{_NAME}{os.getpid()}-{id(self):x}"
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-signals")

    def start(self) -> str:
        if not proc.kernels_own_ids():
            return f"no signal trace: {proc.NOT_OURS}"
        try:
            self._instances = _instances()
            self._open()
        except OSError as e:
            self.close()
            return f"no tracefs: {e.strerror or e}"
        self._stop = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread.start()
        return ""

    def _open(self) -> None:
        _remove_left(self._instances)
        os.mkdir(self._name, 0o700, dir_fd=self._instances)
        event = "events/signal/signal_generate"
        self._write("buffer_size_kb", _BUFFER_KB)
        self._write("options/record-tgid", "1")
        self._write(f"{event}/filter", "||".join(f"sig=={s}" for s in SIGNALS))
        self._pipe = self._file("trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        self._write(f"{event}/enable", "1")

    def _file(self, name: str, flags: int) -> int:
        return os.open(f"{self._name}/{name}", flags | os.O_CLOEXEC, dir_fd=self._instances)

    def _write(self, name: str, value: str) -> None:
        fd = self._file(name, os.O_WRONLY)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def sent(self, pid: int, signal: int) -> Sent | None:
        with self._lock:
            if signal:
                return self._known.get((pid, signal))
            return next((s for (to, _), s in reversed(self._known.items()) if to == pid), None)

    def close(self) -> None:
        if self._thread.is_alive():
            os.write(self._stop[1], b"x")
            self._thread.join(10.0)
        for fd in (self._pipe, *self._stop):
            if fd >= 0:
                os.close(fd)
        if self._instances >= 0:
            _remove(self._instances, self._name)
            os.close(self._instances)
        self._instances = self._pipe = -1
        self._stop = (-1, -1)

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._stop[0], select.POLLIN)
        rest = b""
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._stop[0] in ready:
                return
            try:
                data = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(parse(line.decode("utf-8", "replace")))

    def _take(self, seen: Signal | None) -> None:
        if seen is None or not seen.delivered:
            return
        sender: Writer | None = None
        if seen.code != _KERNEL and seen.sender > 0:
            sender = proc.process(seen.sender, seen.comm)
        with self._lock:
            self._known[seen.pid, seen.signal] = Sent(by="the kernel's signal trace", sender=sender)
            self._known.move_to_end((seen.pid, seen.signal))
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)


def _instances() -> int:
    """A descriptor of tracefs' folder of instances. Raises OSError where there is none and none can be mounted."""
    for place in _PLACES:
        try:
            return os.open(f"{place}/instances", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
    folder = tempfile.mkdtemp(prefix="tw-trace-", dir="/tmp")
    try:
        if _libc.mount(b"trainwarden", folder.encode(), b"tracefs", 0, None):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        try:
            return os.open(f"{folder}/instances", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            _libc.umount2(folder.encode(), _MNT_DETACH)  # what is open stays usable, and nothing is left behind
    finally:
        os.rmdir(folder)


def _remove_left(instances: int) -> None:
    """Remove the instances of supervisors that are gone."""
    for name in os.listdir(instances):
        pid = name.removeprefix(_NAME).partition("-")[0]
        if name.startswith(_NAME) and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _remove(instances, name)


def _remove(instances: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=instances)
    except OSError:
        pass  # it is gone, or somebody reads it; the next supervisor removes it
