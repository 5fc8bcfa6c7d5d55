"""In a replay: what the job would write outside of its workspace goes into it, and is read from there afterwards.

Rules
-----
* A path outside has its place below the workspace's `abs`, where `seal.places` puts it too. It is made there before
  the first write: a file as a copy unless it is written anew, a folder as an empty one.
* What has a place there is read from there; a folder of both is listed as one. What the job removes is noted as gone.
* Standard library only, put in place before the job's first line: it may take `open` by name. The stand-ins are no
  functions: as a class's attribute they must not become methods, as the originals.
* Devices and what the kernel shows (`/dev`, `/proc`, `/sys`) are left alone, and so are the folders named as its own.

Trust: Python's own doors (`open`, `os`, `sqlite3`; `record.files` for torch and safetensors). Native code that opens
an absolute path by itself, and programs that the job starts, are not led elsewhere.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_LEFT = ("/dev", "/proc", "/sys")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_open, _os = io.open, {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
_places: list[_Places] = []


class _Places:
    """Where paths lie in one replay."""

    def __init__(self, workspace: str, *own: str) -> None:
        space = os.path.realpath(workspace)
        self._abs, self._gone = f"{space}/abs", f"{space}/gone"
        self._own = (space, *map(os.path.realpath, own), *_LEFT)
        self._inside = threading.local()

    def find(self, path: Any, *, writes: bool = False, keep: bool = True, follow: bool = True, base: int = -1) -> Any:
        """The path to use in place of `path`; before it is written, what is there is brought unless `keep` is false."""
        if isinstance(path, int) or getattr(self._inside, "on", False):
            return path
        with self._alone():
            real = self.real(path, follow, base)
            if real is None:
                return path
            place = self._abs + real
            if writes:
                self._bring(real, place, keep)
                return place
            there = os.path.lexists(place) and not (os.path.isdir(place) and os.path.isdir(real))
            return place if there or self.gone(real) else path

    def real(self, path: Any, follow: bool = True, base: int = -1) -> str | None:
        """Where a path outside leads to, links followed; None for one inside."""
        try:
            name = os.fsdecode(path)
            full = os.path.abspath(os.path.join(os.readlink(f"/proc/self/fd/{base}"), name) if base >= 0 else name)
        except (OSError, TypeError, ValueError):
            return None  # the real function says what is wrong with it
        folder, last = os.path.split(full)
        real = os.path.realpath(full) if follow else os.path.join(os.path.realpath(folder), last)
        return None if any(real == own or real.startswith(own + "/") for own in self._own) else real

    def gone(self, real: str) -> bool:
        """Has the job removed it, or moved it away?"""
        return os.path.exists(self._gone) and os.path.exists(self._note(real))

    def remove(self, real: str) -> None:
        """From now on it is gone."""
        os.makedirs(self._gone, exist_ok=True)
        _os["close"](_os["open"](self._note(real), os.O_CREAT | os.O_WRONLY, 0o600))

    def names(self, real: str) -> list[str]:
        """What is in a folder, in both places."""
        with self._alone():
            place = self._abs + real
            there = [] if self.gone(real) else _os["listdir"](real)
            here = _os["listdir"](place) if os.path.isdir(place) else []
            return [*here, *(n for n in there if n not in here and not self.gone(os.path.join(real, n)))]

    def whole(self, real: str) -> None:
        """Bring a folder with everything in it, which is to be moved."""
        with self._alone():
            copy = lambda s, d: d if os.path.lexists(d) else shutil.copy2(s, d)  # noqa: E731
            shutil.copytree(real, self._abs + real, symlinks=True, dirs_exist_ok=True, copy_function=copy)

    def here(self, real: str) -> str:
        """Its place in the workspace."""
        return self._abs + real

    def _note(self, real: str) -> str:
        return f"{self._gone}/{hashlib.sha256(os.fsencode(real)).hexdigest()}"

    def _bring(self, real: str, place: str, keep: bool) -> None:
        if os.path.lexists(place):
            return
        there = os.path.lexists(real) and not self.gone(real)
        if there and os.path.isdir(real) and not os.path.islink(real):
            os.makedirs(place, exist_ok=True)
        elif there or os.path.isdir(os.path.dirname(real)):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if there and os.path.islink(real):
                os.symlink(os.readlink(real), place)
            elif there and keep and stat.S_ISREG(os.stat(real).st_mode):
                self._copy(real, place)

    def _copy(self, real: str, place: str) -> None:
        """Whole or not at all: other ranks may do the same."""
        part = f"{place}.{os.getpid()}-{threading.get_ident()}"
        shutil.copy2(real, part)
        try:
            os.link(part, place)
        except FileExistsError:
            pass
        finally:
            os.unlink(part)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """What is done to find a path is not led elsewhere itself."""
        before = getattr(self._inside, "on", False)
        self._inside.on = True
        try:
            yield
        finally:
            self._inside.on = before


class _StandIn:
    """Stands for a function of the standard library."""

    def __init__(self, original: Callable[..., Any], does: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._original, self._does = original, does

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._does(self._original, *args, **kwargs)

    def __reduce__(self) -> str:
        return self._original.__name__  # pickled by name, as the original

    def __repr__(self) -> str:
        return repr(self._original)


def install(told: str) -> None:
    """Lead this process's writes into the workspace; `told` is the value of `bootstrap.ELSEWHERE_ENV`."""
    if _places:
        return
    _places.append(_Places(*told.split(os.pathsep)))
    import builtins

    opens = _StandIn(_open, _opened)
    builtins.open = io.open = opens
    for name in ("stat", "access", "chdir"):
        _stand_in(name, _one)
    for name in ("lstat", "readlink"):
        _stand_in(name, functools.partial(_one, follow=False))
    for name in ("mkdir", "truncate", "utime", "chmod", "chown", "mkfifo", "setxattr", "removexattr"):
        _stand_in(name, functools.partial(_one, writes=True))
    for name, does in _OTHERS.items():
        _stand_in(name, does)


def placed(path: str, *, writes: bool = False) -> str:
    """Where a path lies in this replay, for native code that is about to open it; itself outside of a replay."""
    found: str = _places[0].find(path, writes=writes, keep=False) if _places else path
    return found


def _stand_in(name: str, does: Callable[..., Any]) -> None:
    original = _os[name]
    stands = _StandIn(original, does)
    setattr(os, name, stands)
    for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
        if original in able:
            able.add(stands)


def _opened(original: Any, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    writes = isinstance(mode, str) and not {*"wax+"}.isdisjoint(mode)
    return original(_places[0].find(file, writes=writes, keep="w" not in mode), mode, *args, **kwargs)


def _os_open(original: Any, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
    found = _found(path, dir_fd, writes=bool(flags & _WRITING), keep=not flags & os.O_TRUNC)
    return original(found, flags, mode, dir_fd=dir_fd if found is path else None)


def _one(original: Any, path: Any, *args: Any, writes: bool = False, follow: bool = True, **kwargs: Any) -> Any:
    """A function whose first argument is a path."""
    found = _found(path, kwargs.get("dir_fd"), writes=writes, follow=follow and kwargs.get("follow_symlinks", True))
    if found is not path:
        kwargs.pop("dir_fd", None)
    return original(found, *args, **kwargs)


def _found(path: Any, folder: int | None, **how: Any) -> Any:
    return _places[0].find(path, base=-1 if folder is None else folder, **how)


def _removed(original: Any, path: Any, *, dir_fd: int | None = None) -> None:
    places = _places[0]
    real = places.real(path, False, -1 if dir_fd is None else dir_fd)
    if real is None:
        original(path, dir_fd=dir_fd)
        return
    place, there = places.here(real), os.path.lexists(real) and not places.gone(real)
    if original.__name__ == "rmdir" and there and places.names(real):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
    if os.path.lexists(place) or not there:
        original(place)
    if there:
        places.remove(real)


def _moved(original: Any, src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
    places = _places[0]
    real = places.real(src, False, -1 if src_dir_fd is None else src_dir_fd)
    if real is not None and os.path.isdir(real) and not places.gone(real):
        places.whole(real)
    source = _found(src, src_dir_fd, writes=real is not None, follow=False)
    target = _found(dst, dst_dir_fd, writes=True, keep=False, follow=False)
    original(
        source,
        target,
        src_dir_fd=src_dir_fd if source is src else None,
        dst_dir_fd=dst_dir_fd if target is dst else None,
    )
    if real is not None:
        places.remove(real)


def _linked(original: Any, src: Any, dst: Any, *args: Any, **kwargs: Any) -> None:
    """`os.link`: a second name of a file outside would be written through."""
    source = _found(src, kwargs.pop("src_dir_fd", None), writes=True)
    original(source, _found(dst, kwargs.pop("dst_dir_fd", None), writes=True, follow=False), *args, **kwargs)


def _symlinked(original: Any, src: Any, dst: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> None:
    target = _found(dst, dir_fd, writes=True, keep=False, follow=False)
    original(src, target, *args, dir_fd=dir_fd if target is dst else None, **kwargs)


def _listed(original: Any, path: Any = ".") -> Any:
    real = _both(path)
    if real is None:
        return original(path)
    names = _places[0].names(real)
    return [os.fsencode(n) for n in names] if isinstance(path, bytes) else names


def _scanned(original: Any, path: Any = ".") -> Any:
    real = _both(path)
    return original(path) if real is None else _Entries(original, real)


def _both(path: Any) -> str | None:
    """The folder outside that has a place here too, or of which something is gone."""
    places = _places[0]
    real = places.real("", base=path) if isinstance(path, int) else places.real("." if path is None else path)
    return real if real is not None and (os.path.isdir(places.here(real)) or places.gone(real)) else None


class _Entries:
    """`os.scandir` of a folder that lies in two places."""

    def __init__(self, scan: Any, real: str) -> None:
        names = _places[0].names(real)
        folders = [f for f in (_places[0].here(real), real) if os.path.isdir(f)]
        found = {entry.name: entry for folder in reversed(folders) for entry in scan(folder)}
        self._entries = iter([found[name] for name in names])

    def __iter__(self) -> _Entries:
        return self

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """As the original's."""


_OTHERS: dict[str, Callable[..., Any]] = {
    "open": _os_open,
    "remove": _removed,
    "unlink": _removed,
    "rmdir": _removed,
    "rename": _moved,
    "replace": _moved,
    "link": _linked,
    "symlink": _symlinked,
    "listdir": _listed,
    "scandir": _scanned,
}


def database(module: ModuleType) -> None:
    """`sqlite3` opens its files by itself."""
    connect = module.connect

    def connected(original: Any, database: Any, *args: Any, **kwargs: Any) -> Any:
        named = isinstance(database, str) and database[:1] not in ("", ":") and not kwargs.get("uri")
        if named or isinstance(database, bytes | os.PathLike):
            database = _places[0].find(database, writes=True)
        return original(database, *args, **kwargs)

    stands = _StandIn(connect, connected)
    for name in ("sqlite3", "sqlite3.dbapi2"):
        if name in sys.modules:
            vars(sys.modules[name])["connect"] = stands
