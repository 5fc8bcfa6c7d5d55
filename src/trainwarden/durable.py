"""Bytes that survive a crash: the few file-system steps that the store, the log and the keys share.

Rules
-----
* A file appears whole or not at all: it is written beside its place, fsynced and renamed,
  and the folder is fsynced.
* A file system that acknowledges an fsync and then forgets is not defended against.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path

_HINTS = {
    errno.ENOSPC: "the disk is full: free some space and try again; nothing already stored was lost",
    errno.EDQUOT: "the disk quota is used up: free some space and try again; nothing already stored was lost",
    errno.EACCES: "check the owner and the permissions of that folder",
    errno.EPERM: "check the owner and the permissions of that folder",
    errno.EROFS: "the file system is mounted read-only: choose another place with TRAINWARDEN_STORE",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.EEXIST: "something else has that name: choose another path",
    errno.ENOTDIR: "a file is where a folder should be: choose another path",
    errno.ENOENT: "check the path: a folder on the way is missing",
    errno.EREMOTEIO: "check the address (--endpoint), the network and the AWS_* variables",
    errno.EIO: "the disk reports an error: look at the kernel's messages (`dmesg`)",
}


def hint_for(error: OSError) -> str:
    """What a user can do about an error of the file system, or "" when nothing is known."""
    return _HINTS.get(error.errno or 0, "")


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the folder cannot be opened or synced.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it that are missing, durably; one that is there stays as it is.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode, exist_ok=True)
    fsync_folder(path.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`, however many calls that takes.

    Raises:
        OSError: the disk is full or fails.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Put `data` at `path` durably; a reader sees the old file or the new one, never a part.

    Raises:
        FileExistsError: `replace` is false and the file is there.
        OSError: the file cannot be written; what was there before is unchanged.
    """
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        if replace:
            os.replace(temp, path)
        else:
            os.link(temp, path)  # unlike a rename, it fails when the name is taken
            temp.unlink()
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def read_up_to(fd: int, size: int) -> bytes:
    """Read `size` bytes, or what there is before the end.

    Raises:
        OSError: the file cannot be read.
    """
    parts: list[bytes] = []
    while size > 0 and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def sync_file_system(folder: Path) -> None:
    """One syncfs(2) on the file system of `folder` instead of an fsync for each of thousands of files.

    Raises:
        OSError: writing back failed.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "syncfs"):
            os.sync()
        elif libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)


def new_locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder under `parent` and the descriptor that holds its lock for as long as this process lives.

    Raises:
        OSError: it cannot be created.
    """
    parent.mkdir(exist_ok=True)
    while True:
        folder = parent / f"{os.getpid()}-{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # a cleaner took it before it was opened
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)  # a cleaner took it before it was locked


def remove_unlocked_folders(parent: Path) -> None:
    """Remove the folders under `parent` whose makers are dead: a live one holds its folder's lock.

    Raises:
        OSError: `parent` cannot be listed.
    """
    if not parent.is_dir():
        return
    for folder in parent.iterdir():
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
