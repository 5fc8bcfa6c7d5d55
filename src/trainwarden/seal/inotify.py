"""What happens in folders, as the kernel tells it (inotify(7)).

Rules
-----
* A folder is entered through its open descriptor, before it is listed. A name made, written, moved or removed in it is
  then in the listing, in an event, or in both. Nothing can be put in the folder's place between the two.
* The kernel queues an event before the call that made the change returns: `read` has everything up to now.
* A folder that cannot be watched, and events that were dropped, are said (`trouble`, `Seen.dropped`), never left out.

What it cannot tell: changes on another host of a network file system, writes through a mapping or through a hard link
in a folder that is not entered. A folder *above* a root that is swapped, and what is mounted over any of it, are looked
for by `moved`.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from typing import NamedTuple

_IN_CLOEXEC, _IN_NONBLOCK = 0x80000, 0x800
_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED, _ISDIR = 0x2000, 0x4000, 0x8000, 0x40000000
_MASK = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_NAMES = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _UNMOUNT
_SELF = _DELETE_SELF | _MOVE_SELF | _UNMOUNT
_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes spaces and the like (proc(5))
_EVENT = struct.Struct("iIII")
_BUFFER = 256 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Seen(NamedTuple):
    """What happened since the last `read`: files, folders, and whether the kernel dropped some of it."""

    files: frozenset[str]
    folders: frozenset[str]
    dropped: bool


class Folders:
    """The folders that are watched; events wait in the kernel until `read`."""

    def __init__(self) -> None:
        self.trouble = ""  # why there are holes; empty when every folder that was entered is watched
        self._names: dict[int, tuple[str, ...]] = {}  # watch → the paths that its folder was entered by
        self._entered: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}  # root → device and inode
        self._mounts = _mounts()
        self.fd = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self.fd < 0:
            self._failed("folders")

    def enter(self, fd: int, path: str, is_root: bool) -> None:
        """Watch the folder that `fd` has open; its events are named below `path`.

        Of a root whose parent is not watched, `moved` tells whether its path still leads to the same folder.
        """
        if is_root and os.path.dirname(path) not in self._entered:
            self._places[path] = _identity(os.fstat(fd))
        self._entered.add(path)
        if self.fd < 0:
            return
        watch = _libc.inotify_add_watch(self.fd, b"/proc/self/fd/%d" % fd, _MASK)
        if watch < 0:
            self._failed(path)
            return
        names = self._names.get(watch, ())
        if path not in names:
            self._names[watch] = (*names, path)

    def has(self, path: str) -> bool:
        """Was this folder entered?"""
        return path in self._entered

    def enter_alone(self, path: str) -> None:
        """Watch one folder and nothing below it; nothing where there is none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as e:
            self.trouble = self.trouble or f"the kernel gives no watch on {path}: {e.strerror}"
            return
        try:
            self.enter(fd, path, True)
        finally:
            os.close(fd)

    def moved(self) -> bool:
        """Does a root's path lead elsewhere, or is something else mounted above or below one, than at first?

        Each such change is told once: who asks must enter and list the roots again.
        """
        swapped = [path for path, place in self._places.items() if _place(path) != place]
        for path in swapped:
            del self._places[path]
        before, self._mounts = self._mounts, _mounts()
        if before == self._mounts:
            return bool(swapped)
        return bool(swapped) or any(map(self._concerns, set(before) ^ set(self._mounts)))

    def _concerns(self, mount: str) -> bool:
        """Is the place of this mount above or below a root?"""
        place = _OCTAL.sub(lambda m: chr(int(m[1], 8)), mount.split(" ")[4]).rstrip("/") + "/"
        return any(f"{root}/".startswith(place) or place.startswith(f"{root}/") for root in self._places)

    def read(self) -> Seen:
        """Everything that has happened by now. Does not wait."""
        files: set[str] = set()
        folders: set[str] = set()
        dropped = False
        while data := self._queued():
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
                dropped = dropped or bool(mask & _OVERFLOW)
                if mask & _ISDIR and not mask & _NAMES:
                    continue  # times or rights of a folder: neither names nor bytes in it
                concerned = folders if mask & (_ISDIR | _SELF) else files
                for folder in self._names.get(watch, ()):
                    concerned.add(f"{folder.rstrip('/')}/{name}" if name else folder)
                if mask & _IGNORED:
                    self._names.pop(watch, None)
        return Seen(frozenset(files), frozenset(folders), dropped)

    def _queued(self) -> bytes:
        try:
            return os.read(self.fd, _BUFFER) if self.fd >= 0 else b""
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Give the watches up."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()  # a start that is refused before the watch begins leaves none behind

    def _failed(self, what: str) -> None:
        reason = os.strerror(ctypes.get_errno())
        self.trouble = self.trouble or f"the kernel gives no watch on {what}: {reason}"


def _place(path: str) -> tuple[int, int] | None:
    try:
        return _identity(os.stat(path))
    except OSError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _mounts() -> tuple[str, ...]:
    """The lines of the mount table, none where there is no /proc."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            return tuple(f.read().splitlines())
    except OSError:
        return ()
