"""Where a log server keeps its tiles: the seam between its logic and a place that holds named bytes.

    head               the newest signed tree head, the commit point; replaced by compare-and-swap
    checkpoint         the newest published one, what readers fetch; replaced by compare-and-swap
    staging/SIZE-ROOT  the entries of the batch that the head has and the checkpoint may not have yet
    tile/…             tiles and entry bundles (C2SP tlog-tiles)
    objects/AB/CDEF…   the larger bytes that entries bind, by BLAKE3
    evidence/DIGEST    requests that contradict what was logged before
    lock, tmp/         of a folder: its writer's process id, and files that are being written

Promises that every implementation makes
----------------------------------------
* After `put` or `swap` returned, the bytes are there for good, whole. If it raised or the process died, the old
  ones or the new ones are there, whole.
* Of two writers that `swap` the same version, one gets `LogFenced`.
* Failures are `OSError`; what they mean for the log is the writer's business.

Trust: whoever can write the place can remove bytes or put old ones back. Changed bytes are caught by the root; a
whole older state only by the run index, a witness or a client that saw more.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from trainwarden.durable import fsync_folder, make_folder, write_all
from trainwarden.errors import LogFenced, LogLocked, MissingExtra, UsageError

if TYPE_CHECKING:
    from obstore.store import S3Store

EXTRA_HINT = "pip install 'trainwarden[server]'"


class Versioned(msgspec.Struct, frozen=True):
    """Bytes, and what names this version of them in a swap."""

    data: bytes
    version: str


class TileStore(Protocol):
    """Named bytes, kept somewhere; names are relative paths."""

    def read(self, name: str) -> bytes | None:
        """The bytes of that name, or None."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Make these the bytes of that name."""
        ...

    def current(self, name: str) -> Versioned | None:
        """The bytes with their version, or None."""
        ...

    def swap(self, name: str, data: bytes, version: str) -> str:
        """Replace that version ("" = nothing is there yet); give the new one. `LogFenced` when it moved."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names directly in a folder; none when there is no such folder."""
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove what is there of these."""
        ...

    def close(self) -> None:
        """Give up the place and its lock."""
        ...


class FolderTiles:
    """A folder on disk. One process at a time writes: it holds a lock (not over NFS: use an object store there)."""

    def __init__(self, folder: Path) -> None:
        """Create or open it and take its lock.

        Raises:
            LogLocked: another process has it.
            OSError: it cannot be written.
        """
        self._folder = folder.absolute()
        make_folder(self._folder)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise LogLocked(
                f"the log server's folder {folder} is held by process {holder}, this is process {os.getpid()}",
                hint="a log has one writer: stop the other server first",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)
        self._temp = self._folder / "tmp"
        self._temp.mkdir(exist_ok=True)
        for left in self._temp.iterdir():  # of a writer that died: the lock says that there is no other
            left.unlink()

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, data: bytes) -> None:
        path = self._folder / name
        if not path.parent.is_dir():
            make_folder(path.parent)
        temp = self._temp / secrets.token_hex(8)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temp, path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)

    def current(self, name: str) -> Versioned | None:
        data = self.read(name)
        return None if data is None else Versioned(data, _version(data))

    def swap(self, name: str, data: bytes, version: str) -> str:
        found = self.current(name)
        if (found.version if found else "") != version:
            raise moved(name, version, found.version if found else "")
        self.put(name, data)
        return _version(data)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(f"{folder}/{p.name}" for p in (self._folder / folder).iterdir() if not p.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class BucketTiles:
    """A bucket of an S3-compatible object store that honours conditional writes (If-None-Match, If-Match)."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @classmethod
    def open(cls, url: str, endpoint: str = "") -> BucketTiles:
        """The bucket and prefix of `s3://BUCKET/PREFIX`; credentials and region from the AWS_* variables.

        Raises:
            UsageError: it is no such URL, or the variables are wrong.
            MissingExtra: obstore is not installed.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError:
            raise MissingExtra("an object store needs obstore, which is not installed", hint=EXTRA_HINT) from None
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise UsageError(f"{url!r} names no bucket", hint="s3://BUCKET or s3://BUCKET/PREFIX")
        try:
            plain = {"allow_http": True} if endpoint.startswith("http://") else {}
            named = {"endpoint": endpoint} if endpoint else {}
            return cls(S3Store(bucket, prefix=prefix or None, client_options=plain, **named))  # type: ignore[arg-type]
        except BaseError as e:
            raise UsageError(f"cannot use {url}: {_first_line(e)}", hint="check the AWS_* variables") from e

    def read(self, name: str) -> bytes | None:
        found = self.current(name)
        return found.data if found else None

    def put(self, name: str, data: bytes) -> None:
        import obstore

        with _bucket_errors(name):
            obstore.put(self._store, name, data, use_multipart=False)

    def current(self, name: str) -> Versioned | None:
        import obstore
        from obstore.exceptions import NotFoundError

        try:
            with _bucket_errors(name, NotFoundError):
                result = obstore.get(self._store, name)
                return Versioned(bytes(result.bytes()), result.meta["e_tag"] or "")
        except (NotFoundError, FileNotFoundError):
            return None

    def swap(self, name: str, data: bytes, version: str) -> str:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        try:
            with _bucket_errors(name, AlreadyExistsError, PreconditionError, NotFoundError):
                if version:
                    result = obstore.put(self._store, name, data, mode={"e_tag": version}, use_multipart=False)
                else:
                    result = obstore.put(self._store, name, data, mode="create", use_multipart=False)
                return result["e_tag"] or ""
        except (AlreadyExistsError, PreconditionError, NotFoundError, FileNotFoundError, FileExistsError):
            # The library sends a request again whose answer was lost: then it is our own bytes that are there.
            found = self.current(name)
            if found is not None and found.data == data:
                return found.version
            raise moved(name, version, found.version if found else "") from None

    def names(self, folder: str) -> list[str]:
        import obstore

        with _bucket_errors(folder):
            listed = obstore.list_with_delimiter(self._store, folder)
            return sorted(meta["path"] for meta in listed["objects"])

    def remove(self, names: Sequence[str]) -> None:
        import obstore

        if names:
            with _bucket_errors(names[0]):
                obstore.delete(self._store, list(names))

    def close(self) -> None:
        pass


def open_store(where: str, endpoint: str = "") -> TileStore:
    """The bucket of an `s3://` URL, else a folder.

    Raises:
        LogLocked, UsageError, MissingExtra, OSError: as `BucketTiles.open` and `FolderTiles`.
    """
    return BucketTiles.open(where, endpoint) if where.startswith("s3://") else FolderTiles(Path(where))


def moved(name: str, expected: str, found: str) -> LogFenced:
    """The error of a swap that lost."""
    return LogFenced(
        f"another writer has gone on with this log: {name} has version {found or 'none'}, "
        f"expected {expected or 'none'}",
        hint="a log has one writer: stop one of the two servers, then start the other again",
    )


class _bucket_errors:
    """Turn the library's errors into `OSError`, but for those that the caller judges."""

    def __init__(self, name: str, *judged: type[Exception]) -> None:
        self._name, self._judged = name, judged

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from obstore.exceptions import BaseError

        if isinstance(error, BaseError) and not isinstance(error, self._judged):
            raise OSError(errno.EREMOTEIO, f"object store, {self._name}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
