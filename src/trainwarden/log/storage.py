"""Where a log lies: the seam between the journal's logic and a place that keeps bytes.

`FolderStorage` is a folder on disk:

    journal   frames, append-only (see `frames`)
    head      the newest signed tree head, replaced whole
    lock      held by the one writer, with its process id; not part of the log

Promises that every implementation makes
----------------------------------------
* `append` may be torn by a crash anywhere; after `sync` returned, all that was appended is there for good.
* After `write_head` returned, the new head is there for good; if it raised or the process died, the head is
  either the old one or the new one, whole.
* Failures are `OSError`; what they mean for the log is the journal's business.
"""

from __future__ import annotations

import errno
import fcntl
import os
from io import FileIO
from pathlib import Path
from typing import Protocol

from trainwarden.durable import fsync_folder, make_folder, write_all
from trainwarden.errors import LogLocked

JOURNAL, HEAD, LOCK = "journal", "head", "lock"


class Storage(Protocol):
    """A journal and a head, kept somewhere."""

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes of the journal from `offset`; fewer only at its end."""
        ...

    def size(self) -> int:
        """The journal's length in bytes."""
        ...

    def read_head(self) -> bytes | None:
        """The head, or None when none was ever written."""
        ...

    def append(self, data: bytes) -> None:
        """Write at the journal's end."""
        ...

    def sync(self) -> None:
        """Make the journal durable."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the journal to `size` bytes."""
        ...

    def write_head(self, note: bytes) -> None:
        """Replace the head, durably and at once."""
        ...

    def close(self) -> None:
        """Give up the place and, if it was held, its lock."""
        ...


class FolderStorage:
    """A log in a folder on disk, for one writer or any number of readers."""

    def __init__(self, folder: Path, journal: FileIO, lock: FileIO | None) -> None:
        self._folder, self._journal, self._lock = folder, journal, lock

    @classmethod
    def for_reading(cls, folder: Path) -> FolderStorage:
        """Open the log without a lock; a writer may be at work.

        Raises:
            OSError: there is no journal, or it cannot be read.
        """
        return cls(folder, FileIO(folder / JOURNAL, "r"), None)

    @classmethod
    def for_writing(cls, folder: Path, *, create: bool = False) -> FolderStorage:
        """Open the log for its one writer.

        Raises:
            LogLocked: another process has it.
            OSError: it is not there (unless `create`), or cannot be written.
        """
        if create:
            make_folder(folder)
        elif not (folder / JOURNAL).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / JOURNAL))
        lock = _take_lock(folder / LOCK)
        try:
            return cls(folder, FileIO(folder / JOURNAL, "a+" if create else "r+"), lock)
        except BaseException:
            lock.close()
            raise

    def read(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := os.pread(self._journal.fileno(), size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def size(self) -> int:
        return os.fstat(self._journal.fileno()).st_size

    def read_head(self) -> bytes | None:
        try:
            return (self._folder / HEAD).read_bytes()
        except FileNotFoundError:
            return None

    def append(self, data: bytes) -> None:
        self._journal.seek(0, os.SEEK_END)
        write_all(self._journal.fileno(), data)

    def sync(self) -> None:
        os.fsync(self._journal.fileno())

    def truncate(self, size: int) -> None:
        os.ftruncate(self._journal.fileno(), size)

    def write_head(self, note: bytes) -> None:
        temp = self._folder / (HEAD + ".new")  # one name is enough: there is one writer
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, note)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temp, self._folder / HEAD)
        fsync_folder(self._folder)

    def close(self) -> None:
        self._journal.close()
        if self._lock is not None:
            self._lock.close()


def look_at(head: Path) -> bytes | None:
    """The head that lies there, None for none.

    Not its times: two that are written within one tick of the clock have the same, and may have the same inode.
    """
    try:
        return head.read_bytes()
    except OSError:
        return None


def _take_lock(path: Path) -> FileIO:
    lock = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock.fileno(), 32, 0).decode("ascii", "replace").strip() or "unknown"
        lock.close()
        raise LogLocked(
            f"the log {path.parent} is held by process {holder}, this is process {os.getpid()}",
            hint="a run has one supervisor: wait for the other one, or stop it",
        ) from None
    lock.truncate(0)
    os.pwrite(lock.fileno(), b"%d\n" % os.getpid(), 0)
    return lock
