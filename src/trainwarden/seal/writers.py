"""Which process changed a file, as the kernel tells it (fanotify(7)).

Rules
-----
* One fanotify group marks the file systems that hold sealed files and notes, by path, the last process that closed a
  file after writing, created, deleted or moved it there. Nothing is blocked or slowed: no permission events. Others
  write to those file systems too, so the thread that reads the events runs at the lowest priority.
* The kernel gives a process id and a pidfd; user, login and command are read from /proc at once, and are believed
  only if the pidfd says that the process is still the same. A process that has ended by then is named by its id alone.
* Without the right to do this (CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH, Linux 5.15) or on a file system without file
  handles there is no writer, and `of` says why. Nobody is guessed.

What it cannot see: writes through a mapping or descriptor that is never closed, changes made on another host of a
network file system, events dropped when the queue is full (then said so), and who told the process to write.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from trainwarden.model import Writer

_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_REPORT_PIDFD, _FAN_REPORT_DFID_NAME = 0x1, 0x2, 0x80, 0xC00
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_FAN_CLOSE_WRITE, _FAN_MOVED_FROM, _FAN_MOVED_TO, _FAN_CREATE, _FAN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_FAN_Q_OVERFLOW, _FAN_ONDIR = 0x4000, 0x40000000
_MASK = _FAN_CLOSE_WRITE | _FAN_MOVED_FROM | _FAN_MOVED_TO | _FAN_CREATE | _FAN_DELETE | _FAN_ONDIR
_INFO_DFID_NAME, _INFO_PIDFD = 2, 4
_METADATA = struct.Struct("=IBBHQii")
_AT_FDCWD = -100
_BUFFER = 64 * 1024
_MOST = 20_000  # paths remembered
_MOST_ARGV = 4096  # bytes of a command line
_PATIENCE = 1.0  # seconds in all that are waited for events under way: ten thousand changes wait no longer than one
_MOST_FOLDERS = 10_000  # folders whose path is remembered by their handle
_RIGHTS = "this needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH"
_libc = ctypes.CDLL(None, use_errno=True)


class Writers:
    """Remembers who changed what; asked by path. Safe from several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Writer] = OrderedDict()
        self._below: tuple[str, ...] = ()
        self._changed = threading.Condition()
        self._mounts: dict[bytes, int] = {}
        self._paths: dict[bytes, str] = {}  # fsid and handle of a folder → its path, "" when nothing in it concerns us
        self._group = -1
        self._wake = (-1, -1)
        self._patience = _PATIENCE
        self._thread: threading.Thread | None = None
        self._reason = "nobody listens to the kernel"

    def start(self, folders: Iterable[str]) -> None:
        """Listen to changes below `folders`; where that is not possible, `of` says why."""
        folders = tuple(folders)
        self._below = tuple(f.rstrip("/") + "/" for f in folders)
        try:
            self._listen(folders)
        except OSError as e:
            self._reason = f"the kernel gives no fanotify events: {e.strerror or e}; {_RIGHTS}"
            self._close_all()
            return
        self._reason = "no process was named by the kernel: changed before the watch, or never closed"
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-writers")
        self._thread.start()

    def of(self, path: str) -> Writer | str:
        """The last process that changed `path` or a folder that it was moved with, or why nobody is known."""
        with self._changed:
            if self._thread is None:
                return self._reason
            while True:
                place = path
                while len(place) > 1:
                    if place in self._known:
                        return self._known[place]
                    place = os.path.dirname(place)
                if self._patience <= 0:
                    return self._reason
                began = time.monotonic()
                self._changed.wait(self._patience)
                self._patience -= time.monotonic() - began

    def close(self) -> None:
        """Stop listening; what is known stays known."""
        if self._thread is not None:
            os.write(self._wake[1], b"x")
            self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        for fd in (self._group, *self._wake, *self._mounts.values()):
            if fd >= 0:
                os.close(fd)
        self._group, self._wake = -1, (-1, -1)
        self._mounts.clear()

    # -- the kernel

    def _listen(self, folders: Iterable[str]) -> None:
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_PIDFD | _FAN_REPORT_DFID_NAME
        self._group = _call("fanotify_init", ctypes.c_uint(flags), ctypes.c_uint(os.O_RDONLY))
        for folder in _one_each_device(folders):
            how = ctypes.c_uint(_FAN_MARK_ADD | _FAN_MARK_FILESYSTEM)
            place = os.fsencode(folder)
            _call("fanotify_mark", ctypes.c_int(self._group), how, ctypes.c_uint64(_MASK), _AT_FDCWD, place)
            self._mounts[_fsid(folder)] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # of this thread alone (sched(7))
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._wake[0], select.POLLIN)
        while all(fd != self._wake[0] for fd, _ in poll.poll()):  # who closes has asked what he wanted to know
            try:
                self._events(os.read(self._group, _BUFFER))
            except OSError:
                continue  # nothing more now, or an event that the kernel could not make

    def _events(self, data: bytes) -> None:
        at = 0
        while at + _METADATA.size <= len(data):
            length, _version, _reserved, header, mask, _fd, pid = _METADATA.unpack_from(data, at)
            if length < _METADATA.size:
                return
            self._event(mask, pid, list(_infos(data[at + header : at + length])))
            at += length

    def _event(self, mask: int, pid: int, infos: list[tuple[int, bytes]]) -> None:
        pidfd = next((struct.unpack("=i", body[:4])[0] for kind, body in infos if kind == _INFO_PIDFD), -1)
        try:
            if mask & _FAN_Q_OVERFLOW:
                self._reason = "the kernel dropped events: too many at once"
                return
            if pid == os.getpid():
                return
            paths = [p for kind, body in infos if kind == _INFO_DFID_NAME and (p := self._path(body))]
            if mask & _FAN_ONDIR and mask & (_FAN_MOVED_FROM | _FAN_MOVED_TO):
                self._paths.clear()
            concerned = [p for p in paths if f"{p}/".startswith(self._below)]
            if concerned:
                writer = _process(pid, pidfd)
                with self._changed:
                    for path in concerned:
                        self._known[path] = writer
                        self._known.move_to_end(path)
                    while len(self._known) > _MOST:
                        self._known.popitem(last=False)
                    self._changed.notify_all()
        finally:
            if pidfd >= 0:
                os.close(pidfd)

    def _path(self, body: bytes) -> str:
        """The path that an event is about (fsid, file handle of the folder, name: fanotify(7)), "" for none of ours."""
        size = struct.unpack_from("=I", body, 8)[0]
        where, name = body[: 16 + size], body[16 + size :].split(b"\0")[0]
        folder = self._paths.get(where)
        if folder is None:
            if len(self._paths) >= _MOST_FOLDERS:
                self._paths.clear()
            folder = self._folder(where)
            if folder is not None:
                self._paths[where] = folder
        return os.path.normpath(os.path.join(folder, os.fsdecode(name))) if folder else ""

    def _folder(self, where: bytes) -> str | None:
        """The path of the folder with this fsid and file handle, None when it cannot be had now.

        It is "" for a folder that nothing of ours can be in, which most are, and for one that is gone for good.
        """
        mount = self._mounts.get(where[:8], -1)
        if mount < 0:
            return ""
        try:
            fd = _call("open_by_handle_at", mount, where[8:], os.O_PATH | os.O_CLOEXEC)
        except OSError as e:
            return "" if e.errno == errno.ESTALE else None
        try:
            folder = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        inside = folder.rstrip("/") + "/"
        return folder if inside.startswith(self._below) or any(b.startswith(inside) for b in self._below) else ""


def _infos(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The records after an event's header: kind and body."""
    at = 0
    while at + 4 <= len(data):
        kind, _, length = struct.unpack_from("=BBH", data, at)
        if length < 4:
            return
        yield kind, data[at + 4 : at + length]
        at += length


def _process(pid: int, pidfd: int) -> Writer:
    """What /proc says of a process now, if it still is the one that the kernel named."""
    if pid <= 0 or pidfd < 0:
        return Writer(pid=pid)
    try:
        status = _read(f"/proc/{pid}/status").decode(errors="replace")
        argv = _read(f"/proc/{pid}/cmdline")[:_MOST_ARGV].rstrip(b"\0").split(b"\0")
        login = int(_read(f"/proc/{pid}/loginuid") or b"-1")
        program = os.readlink(f"/proc/{pid}/exe")
    except (OSError, ValueError):
        return Writer(pid=pid)
    uid = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:")), -1)
    if select.select([pidfd], [], [], 0)[0]:  # readable: it has ended, and its id may be another's by now
        return Writer(pid=pid)
    words = tuple(_text(os.fsdecode(w)) for w in argv if w)
    return Writer(pid=pid, uid=uid, login_uid=-1 if login == 0xFFFFFFFF else login, program=_text(program), argv=words)


def _text(word: str) -> str:
    return word.encode("utf-8", "backslashreplace").decode()


def _read(path: str) -> bytes:
    with open(path, "rb") as f:
        return f.read(1 << 16)


def _one_each_device(folders: Iterable[str]) -> list[str]:
    found: dict[int, str] = {}
    for folder in folders:
        if os.path.isdir(folder):
            found.setdefault(os.stat(folder).st_dev, folder)
    return list(found.values())


def _fsid(folder: str) -> bytes:
    """The file system's id as fanotify gives it: the two words of `f_fsid` (statfs(2))."""
    buffer = ctypes.create_string_buffer(256)
    _call("statfs", os.fsencode(folder), buffer)
    return buffer.raw[56:64]  # struct statfs on 64-bit Linux: seven 8-byte fields come before


def _call(name: str, *arguments: object) -> int:
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(38, f"this system has no {name}")
    result: int = function(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
