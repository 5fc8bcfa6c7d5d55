"""Digests of files, and a cache of them that a restored modification time does not fool.

Rules
-----
* A cached digest counts only while device, inode, ctime, size and mtime are all what they were. A program can
  set a file's mtime back, but not its ctime: the kernel stamps it at every write, rename and change of mode.
* A file whose ctime is younger than two seconds when it is hashed is not cached: a second write within the
  same tick of the clock would not show (git calls such an entry racily clean).
* A file that changes while it is being hashed is hashed again. A digest counts for the identity of the open file that
  was hashed: swapping folders under a path cannot lend one file's digest to another.
* A whole manifest is known by the digest of every item that it was made of (`Known`): all the fields above, of all
  its files. One difference in one of them, or one file that is not cached, and it is made anew file by file.

What remains possible: root can set the system clock back and then write, write to the raw block device, or
edit this cache (as can any process of the same user). Some network and FUSE file systems have a coarse or an
invented ctime. `check_seal(deep=True)` uses no cache and sees all of these.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from trainwarden.errors import StoreError, UsageError
from trainwarden.model import ManifestRef

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and what is being read."""

RACY_NS = 2_000_000_000
_CHUNK = 4 * 1024 * 1024
_TASK_BYTES = 4 * 1024 * 1024
_TASK_FILES = 64
_QUERY = 900  # SQLite's old limit on variables is 999
_SCHEMA = """CREATE TABLE IF NOT EXISTS files (
    dev INTEGER, ino INTEGER, ctime_ns INTEGER, size INTEGER, mtime_ns INTEGER, digest BLOB, head BLOB,
    PRIMARY KEY (dev, ino)) WITHOUT ROWID"""
_SCHEMA_MANIFESTS = "CREATE TABLE IF NOT EXISTS manifests (state BLOB PRIMARY KEY, known BLOB)"
_MANIFESTS = 64  # the newest that are kept


class Item(NamedTuple):
    """A file as the walk saw it: absolute path, what `lstat` said, and the target if it is a symbolic link."""

    path: str
    mode: int
    size: int
    dev: int
    ino: int
    ctime_ns: int
    mtime_ns: int
    link: str | None


class Digest(NamedTuple):
    """A file's BLAKE3 in hex and its first 16 bytes (the header, if it is a `.pyc`)."""

    digest: str
    head: bytes


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A manifest that is known from the state of its files."""

    ref: ManifestRef
    inert: tuple[str, ...]  # paths of caches that did not fit their sources
    kept: bytes  # the digests of its files that are kept in the store, sorted and joined


Reader: TypeAlias = Callable[[str, int], Digest]
"""Hashes an open file: its path, and its descriptor."""


def item_of(path: str) -> Item | None:
    """`lstat` of one path; None when it is gone or neither a regular file nor a symbolic link."""
    try:
        status = os.lstat(path)
        link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    if link is None and not stat.S_ISREG(status.st_mode):
        return None
    return make_item(path, status, link)


def make_item(path: str, status: os.stat_result, link: str | None) -> Item:
    """An item from what `lstat` and `readlink` said."""
    inode = status.st_ino
    if inode >= 1 << 63:
        inode -= 1 << 64  # SQLite's integers are signed; some overlay file systems use numbers above 2^63
    return Item(
        path,
        status.st_mode,
        status.st_size,
        status.st_dev,
        inode,
        status.st_ctime_ns,
        status.st_mtime_ns,
        link,
    )


def settled_before() -> int:
    """A file with an older ctime has had its last write within this tick of the clock: a further one would show."""
    return time.time_ns() - RACY_NS


def read_digest(path: str) -> Digest:
    """Hash a file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as f:
            return digest_open(path, f.fileno())
    except OSError as e:
        raise unreadable(path, e) from e


def digest_open(path: str, fd: int) -> Digest:
    """Hash what is left of an open file.

    Raises:
        UsageError: it cannot be read.
    """
    hasher = blake3()
    try:
        chunk = os.read(fd, _CHUNK)
        head = chunk[:16]
        while chunk:
            hasher.update(chunk)
            chunk = os.read(fd, _CHUNK)
    except OSError as e:
        raise unreadable(path, e) from e
    return Digest(hasher.hexdigest(), head)


def unreadable(path: str, error: OSError) -> UsageError:
    """The error for a file or folder that should be sealed and cannot be read."""
    return UsageError(
        f"cannot read {path!r}: {error.strerror or error}",
        hint="everything that the command can load must be readable to be sealed: check its permissions",
    )


class DigestCache:
    """The cache, held open. Used from one thread; a damaged cache file is thrown away.

    Raises (on construction):
        StoreError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            try:
                self._db = _open(path)
            except sqlite3.DatabaseError as e:
                raise StoreError(f"cannot open the digest cache {path}: {e}", hint="free some space on its disk") from e

    def __enter__(self) -> DigestCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def known(self, items: Iterable[Item]) -> dict[Item, Digest]:
        """Those items whose digest is known and whose identity is what it was."""
        try:
            return self._lookup(items)
        except sqlite3.DatabaseError:
            return {}

    def _lookup(self, items: Iterable[Item]) -> dict[Item, Digest]:
        found: dict[Item, Digest] = {}
        for dev, same in groupby(sorted(items, key=attrgetter("dev")), key=attrgetter("dev")):
            on_device = list(same)
            for at in range(0, len(on_device), _QUERY):
                part = on_device[at : at + _QUERY]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(
                    f"SELECT ino, ctime_ns, size, mtime_ns, digest, head FROM files WHERE dev = ? AND ino IN ({marks})",
                    (dev, *(item.ino for item in part)),
                )
                by_inode = {row[0]: row[1:] for row in rows}
                for item in part:
                    row = by_inode.get(item.ino)
                    if row and row[:3] == (item.ctime_ns, item.size, item.mtime_ns):
                        found[item] = Digest(row[3].hex(), row[4])
        return found

    def remember(self, digests: Iterable[tuple[Item, Digest]]) -> None:
        """Keep digests; a cache that cannot be written is no error, it is only slower next time."""
        rows = [(i.dev, i.ino, i.ctime_ns, i.size, i.mtime_ns, bytes.fromhex(d.digest), d.head) for i, d in digests]
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.DatabaseError:
            pass

    def holds(self, items: Sequence[Item]) -> bool:
        """Is the digest of every one of these known?"""
        return len(self.known(items)) == len(items)

    def manifest(self, state: bytes) -> Known | None:
        """The manifest of files in that state, if it is known."""
        try:
            row = self._db.execute("SELECT known FROM manifests WHERE state = ?", (state,)).fetchone()
            return _known_decoder.decode(row[0]) if row else None
        except (sqlite3.DatabaseError, msgspec.DecodeError):
            return None

    def remember_manifest(self, state: bytes, known: Known) -> None:
        """Keep a manifest for next time."""
        oldest = "SELECT max(rowid) - ? FROM manifests"
        try:
            with self._db:
                self._db.execute(
                    "INSERT OR REPLACE INTO manifests VALUES (?, ?)", (state, _known_encoder.encode(known))
                )
                self._db.execute(f"DELETE FROM manifests WHERE rowid <= ({oldest})", (_MANIFESTS,))
        except sqlite3.DatabaseError:
            pass


_known_encoder = msgspec.msgpack.Encoder()
_known_decoder = msgspec.msgpack.Decoder(Known)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")  # losing it costs time only
    db.execute(_SCHEMA)
    db.execute(_SCHEMA_MANIFESTS)
    with closing(db.execute("SELECT dev, ino, head FROM files LIMIT 1")) as cursor:
        cursor.fetchone()
    return db


def digest_files(
    items: Sequence[Item],
    cache: DigestCache | None,
    *,
    read: Reader = digest_open,
    must_read: Callable[[Item, Digest], bool] = lambda _item, _digest: False,
    strict: bool = True,
    progress: Progress | None = None,
    label: str = "",
) -> dict[str, Digest]:
    """The digest of every item by path: from the cache where it holds, else read, several files at a time.

    A symbolic link's digest is that of its target text. With `must_read` a cached item is read all the same.
    Unless `strict`, files that cannot be read, vanish or keep changing are left out of the answer.

    Raises:
        UsageError: a file cannot be read, vanishes, or changes without end.
    """
    result: dict[str, Digest] = {}
    files = [item for item in items if item.link is None]
    for item in items:
        if item.link is not None:
            result[item.path] = Digest(blake3(os.fsencode(item.link)).hexdigest(), b"")
    known = cache.known(files) if cache else {}
    total = sum(item.size for item in files)
    done = 0
    left: list[Item] = []
    for item in files:
        digest = known.get(item)
        if digest is None or must_read(item, digest):
            left.append(item)
        else:
            result[item.path] = digest
            done += item.size
    fresh: list[tuple[Item, Digest]] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for part in pool.map(lambda task: [_read_stable(item, read, strict) for item in task], _tasks(left)):
            for item, digest, settled in filter(None, part):
                result[item.path] = digest
                done += item.size
                if settled:
                    fresh.append((item, digest))
            if progress and part:
                progress(done, total, label)
    if cache and fresh:
        cache.remember(fresh)
    if progress:
        progress(total, total, label)
    return result


def _tasks(items: Sequence[Item]) -> list[list[Item]]:
    tasks: list[list[Item]] = []
    size = _TASK_BYTES
    for item in items:
        if size >= _TASK_BYTES or len(tasks[-1]) >= _TASK_FILES:
            tasks.append([])
            size = 0
        tasks[-1].append(item)
        size += item.size
    return tasks


def _read_stable(item: Item, read: Reader, strict: bool) -> tuple[Item, Digest, bool] | None:
    try:
        return _read_until_still(item, read)
    except UsageError:
        if strict:
            raise
        return None


def _read_until_still(item: Item, read: Reader) -> tuple[Item, Digest, bool]:
    """Hash until the file was the same before and after; True if it may be cached."""
    for _ in range(8):
        digest, opened, settled_ns = _read_once(item.path, read)
        after = item_of(item.path)
        if after is None:
            raise UsageError(
                f"{item.path!r} went away while it was being read",
                hint="wait until the installation or the copy that is going on has ended",
            )
        if after == item == opened:
            return item, digest, item.ctime_ns < settled_ns
        item = after
    raise UsageError(
        f"{item.path!r} keeps changing while it is being read",
        hint="wait until whatever writes to it has ended, or keep it outside the code and data folders",
    )


def _read_once(path: str, read: Reader) -> tuple[Digest, Item, int]:
    """The digest of the file that the path leads to, what it is after that, and which ctimes are settled then."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise unreadable(path, e) from e
    try:
        digest = read(path, fd)
        return digest, make_item(path, os.fstat(fd), None), settled_before()
    finally:
        os.close(fd)
