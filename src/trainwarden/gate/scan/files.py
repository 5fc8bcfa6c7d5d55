"""Files, folders and hubs' cache layouts: which files there are, and the decision on each."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from trainwarden.errors import UsageError
from trainwarden.gate.results import Decision, Scanned, Undecided, in_unicode
from trainwarden.gate.scan.judge import judge
from trainwarden.gate.scan.place import Budget, Place
from trainwarden.gate.scan.window import Window

_SKIPPED: Final = {".git"}  # no loader reads there; named itself, it is read
_EACH: Final = 64  # files a task of a worker
_WORTH_A_POOL: Final = 32


def scan_file(path: Path) -> Scanned:
    """The decision on one file, read through its links; a file that changes meanwhile is not decided."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        return Scanned(
            path=str(path), size=0, decision=Undecided(kind="unread", why=f"it cannot be read ({e.strerror})")
        )
    try:
        return scan_open(fd, str(path))
    finally:
        os.close(fd)


def scan_open(fd: int, path: str) -> Scanned:
    """The decision on the file that `fd` is open on; `path` is what it is called."""
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        folder = "a link to a folder, which is not followed: name the folder itself"
        why = folder if stat.S_ISDIR(before.st_mode) else "it is no regular file"
        return Scanned(path=path, size=0, decision=Undecided(kind="unread", why=why))
    decision = _decided(Window(fd, 0, before.st_size), os.path.basename(path))
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        decision = Undecided(kind=decision.kind, why="it changed while it was read")
    return Scanned(path=path, size=before.st_size, decision=in_unicode(decision))


def _decided(window: Window, name: str) -> Decision:
    try:
        return judge(window, Place("", 0, name, judge, Budget()))
    except OSError as e:
        return Undecided(kind="unread", why=f"it cannot be read ({e.strerror})")
    except (ValueError, ArithmeticError, RecursionError, MemoryError, LookupError, TypeError, AttributeError) as e:
        return Undecided(
            kind="unknown", why=f"it could not be followed ({type(e).__name__}: {e})"
        )  # a reader's own defect


def listed(paths: Iterable[Path]) -> list[Path]:
    """Every file at or below these paths, once; links out of a folder are followed only inside a hub's cache.

    Raises:
        UsageError: a path is not there.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path} is not there", hint="give files or folders")
        for file in _below(path) if path.is_dir() else [path]:
            found.setdefault(file)
    return list(found)


def _below(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED)
        linked = [f for f in folders if (Path(root) / f).is_symlink()]  # not entered, so not decided
        for name in sorted([*files, *linked]):
            path = Path(root) / name
            real = os.path.realpath(path)  # a hub's snapshots link to blobs: each is read once, under its first name
            if real not in seen:
                seen.add(real)
                yield path


def scan_paths(paths: Iterable[Path], jobs: int = 1) -> Iterator[Scanned]:
    """The decision on every file at or below these paths, in order, by `jobs` processes.

    Raises:
        UsageError: a path is not there.
    """
    return scan_files(listed(paths), jobs)


def scan_files(files: Sequence[Path], jobs: int = 1) -> Iterator[Scanned]:
    """The decision on each of these files, in order; what is left when a process dies is not decided."""
    if jobs <= 1 or len(files) < _WORTH_A_POOL:
        yield from map(scan_file, files)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    done = 0
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("forkserver")) as pool:
            for scanned in pool.map(scan_file, files, chunksize=max(1, min(_EACH, len(files) // jobs))):
                done += 1
                yield scanned
    except BrokenProcessPool:
        why = "a scanning process died, at this file or near it"
        for path in files[done:]:
            yield Scanned(path=str(path), size=0, decision=Undecided(kind="unread", why=why))


def nothing_found(paths: Iterable[Path]) -> Scanned:
    """What is said of folders without a file: nothing was checked."""
    return Scanned(path=", ".join(map(str, paths)), size=0, decision=Undecided(kind="empty", why="there is no file"))
