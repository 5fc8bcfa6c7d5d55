"""Moving files away and putting files back, so that a crash at any moment loses nothing.

Rules
-----
* Nothing is deleted: a file leaves its place only when its bytes are durable in the store and the log says so.
* A file is put back whole, beside its place first, then renamed over it.
* Many files are made durable by one sync of their file system (a package is thousands of files), a few by their own.
* A file that changes while it is being moved is left where it is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.casefile import file_digest
from trainwarden.durable import fsync_folder, hint_for, sync_file_system, write_atomically
from trainwarden.errors import CannotDecide, StoreError
from trainwarden.seal.manifest import path_text
from trainwarden.store import RunDir, Store

_FEW = 8


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Kept beside quarantined bytes: where they came from."""

    path: str
    digest: str
    reason: str
    link: bool
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    wall_ns: int


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is put back from the store. `link`: the target, when it is a symbolic link."""

    path: str
    digest: str
    kind: str = ""  # "environment" | "code" | "data" | "checkpoint", "" where that is not asked
    mode: int = 0o644
    link: str = ""
    mtime: int = -1  # seconds, −1: now


def digest_now(path: str) -> str:
    """The digest of what is at `path`: a file's bytes, a link's target; "" when there is neither."""
    if os.path.islink(path):
        return blake3(os.fsencode(os.readlink(path))).hexdigest()
    return file_digest(Path(path)) if os.path.isfile(path) else ""


def keep(store: Store, run: RunDir, moves: Sequence[tuple[str, str]]) -> list[tuple[str, os.stat_result]]:
    """Make the bytes at paths durable in the store and in the run's quarantine; their digests, and the files' states.

    `moves` are paths with the reason of each. Many are made durable together.

    Raises:
        UsageError: one cannot be read.
        StoreError: the store cannot be written.
    """
    few = len(moves) <= _FEW
    kept = [_stored(store, path, few) for path, _ in moves]
    store.sync()
    with disk_errors("move files to quarantine"):
        run.quarantine.mkdir(exist_ok=True)
        for (path, reason), (digest, before) in zip(moves, kept, strict=True):
            _link_or_copy(store.object_path(digest), run.quarantine / digest)
            name = run.quarantine / f"{digest}.{blake3(os.fsencode(path)).hexdigest()[:8]}.json"
            note = msgspec.json.encode(_note(path, digest, reason, before))
            if few:
                write_atomically(name, note)
            else:
                name.write_bytes(note)
        if not few:
            sync_file_system(run.quarantine)
    return kept


def _stored(store: Store, path: str, fsync: bool) -> tuple[str, os.stat_result]:
    with disk_errors(f"move {path} to quarantine"):
        before = os.lstat(path)
        if stat.S_ISLNK(before.st_mode):
            return store.put_bytes(os.fsencode(os.readlink(path)), fsync=fsync), before
        return store.put_file(Path(path), fsync=fsync), before


def _note(path: str, digest: str, reason: str, seen: os.stat_result) -> Note:
    return Note(
        path=path_text(path),
        digest=digest,
        reason=reason,
        link=stat.S_ISLNK(seen.st_mode),
        mode=seen.st_mode,
        uid=seen.st_uid,
        gid=seen.st_gid,
        mtime_ns=seen.st_mtime_ns,
        wall_ns=time.time_ns(),
    )


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def take_away(kept: Sequence[tuple[str, os.stat_result]]) -> None:
    """Remove files whose bytes are kept, those that still are what they were then; durable on return.

    Raises:
        CannotDecide: somebody wrote to one meanwhile; those before it are gone.
        StoreError: one cannot be removed.
    """
    folders: dict[Path, None] = {}
    try:
        for path, seen in kept:
            with disk_errors(f"move {path} to quarantine"):
                _remove(path, seen)
                folders[Path(path).parent] = None
    finally:
        with disk_errors("move files to quarantine"):
            for folder in folders:
                fsync_folder(folder)


def _remove(path: str, seen: os.stat_result) -> None:
    now = os.lstat(path)
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (seen.st_ino, seen.st_size, seen.st_mtime_ns):
        raise CannotDecide(
            f"{path} was written to while it was moved to quarantine",
            hint="stop the job that writes it, then recover again",
        )
    os.unlink(path)


def remove_if_empty(folder: str) -> bool:
    """Remove a folder that nothing is left in, so that no script takes it for a checkpoint."""
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def put_back(store: Store, files: Sequence[Restore]) -> None:
    """Put objects at their places, each in one step; durable on return, many together.

    Raises:
        StoreTampered: an object is not what it was stored as.
        StoreError: there is no such object, or a place cannot be written.
    """
    few = len(files) <= _FEW
    ready: list[tuple[Path, Path]] = []
    try:
        for file in files:
            target = Path(file.path)
            with disk_errors(f"restore {file.path}"):
                target.parent.mkdir(parents=True, exist_ok=True)
                ready.append((target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp"), target))
                _make(store, file, ready[-1][0], few)
        folders = dict.fromkeys(target.parent for _, target in ready)
        with disk_errors("restore files"):
            for folder in {os.stat(f).st_dev: f for f in folders}.values() if not few else ():
                sync_file_system(folder)
            for temp, target in ready:
                os.replace(temp, target)
            for folder in folders:
                fsync_folder(folder)
    except BaseException:
        for temp, _ in ready:
            temp.unlink(missing_ok=True)
        raise


def _make(store: Store, file: Restore, temp: Path, fsync: bool) -> None:
    if file.link:
        os.symlink(file.link, temp)
        return
    store.check(file.digest)
    shutil.copyfile(store.object_path(file.digest), temp)
    os.chmod(temp, file.mode)
    if file.mtime >= 0:
        os.utime(temp, (file.mtime, file.mtime))
    if fsync:
        fd = os.open(temp, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Errors of the file system as errors that say what was being done."""
    try:
        yield
    except OSError as e:
        raise StoreError(f"cannot {what}: {e.strerror or e}", hint=hint_for(e)) from e
