"""Moving files away and putting files back, so that a crash at any moment loses nothing.

Rules
-----
* Nothing is deleted: a file leaves its place only when its bytes are durable in the store and the log says so.
* A file is put back whole, beside its place first, then renamed over it.
* A file that changes while it is being moved is left where it is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.casefile import file_digest
from trainwarden.durable import fsync_folder, hint_for, write_atomically
from trainwarden.errors import CannotDecide, StoreError
from trainwarden.seal.manifest import path_text
from trainwarden.store import RunDir, Store


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


def digest_now(path: str) -> str:
    """The digest of what is at `path`: a file's bytes, a link's target; "" when there is neither."""
    if os.path.islink(path):
        return blake3(os.fsencode(os.readlink(path))).hexdigest()
    return file_digest(Path(path)) if os.path.isfile(path) else ""


def keep(store: Store, run: RunDir, path: str, reason: str) -> tuple[str, os.stat_result]:
    """Make the bytes at `path` durable in the store and in the run's quarantine; their digest, and the file's state.

    Raises:
        UsageError: it cannot be read.
        StoreError: the store cannot be written.
    """
    with disk_errors(f"move {path} to quarantine"):
        before = os.lstat(path)
        link = os.path.islink(path)
        digest = store.put_bytes(os.fsencode(os.readlink(path))) if link else store.put_file(Path(path))
        note = Note(
            path=path_text(path),
            digest=digest,
            reason=reason,
            link=link,
            mode=before.st_mode,
            uid=before.st_uid,
            gid=before.st_gid,
            mtime_ns=before.st_mtime_ns,
            wall_ns=time.time_ns(),
        )
        run.quarantine.mkdir(exist_ok=True)
        _link_or_copy(store.object_path(digest), run.quarantine / digest)
        name = f"{digest}.{blake3(os.fsencode(path)).hexdigest()[:8]}.json"
        write_atomically(run.quarantine / name, msgspec.json.encode(note))
    return digest, before


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def take_away(path: str, seen: os.stat_result) -> None:
    """Remove a file whose bytes are kept, if it still is what it was then.

    Raises:
        CannotDecide: somebody wrote to it meanwhile.
        StoreError: it cannot be removed.
    """
    with disk_errors(f"move {path} to quarantine"):
        now = os.lstat(path)
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (seen.st_ino, seen.st_size, seen.st_mtime_ns):
            raise CannotDecide(
                f"{path} was written to while it was moved to quarantine",
                hint="stop the job that writes it, then recover again",
            )
        os.unlink(path)
        fsync_folder(Path(path).parent)


def remove_if_empty(folder: str) -> bool:
    """Remove a folder that nothing is left in, so that no script takes it for a checkpoint."""
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def put_back(store: Store, path: str, digest: str, mode: int, link: str = "", mtime: int = -1) -> None:
    """Put an object, or a link to `link`, at `path`, durably and in one step.

    Raises:
        StoreTampered: the object is not what it was stored as.
        StoreError: there is no such object, or the place cannot be written.
    """
    target = Path(path)
    with disk_errors(f"restore {path}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
        try:
            if link:
                os.symlink(link, temp)
            else:
                _copy_object(store, digest, temp, mode, mtime)
            os.replace(temp, target)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        fsync_folder(target.parent)


def _copy_object(store: Store, digest: str, temp: Path, mode: int, mtime: int) -> None:
    store.check(digest)
    shutil.copyfile(store.object_path(digest), temp)
    os.chmod(temp, mode)
    if mtime >= 0:
        os.utime(temp, (mtime, mtime))
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
