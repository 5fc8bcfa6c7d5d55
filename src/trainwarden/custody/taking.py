"""Takes records in: the file as it is becomes an object of the store, its events a table, both an entry of the log.

Rules
-----
* What is read is the copy in the store, so that what was read is what was kept.
* A file is known by its bytes: taking the same ones in again changes nothing, unless a new reading is asked for.
* Lines that cannot be read are counted and shown with their numbers; the others are taken in.
* A reader may fail on one line, never on a file: what it raises beyond that is a defect of ours and is not hidden.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from trainwarden.custody import ledger, readers
from trainwarden.custody.readers.interface import Context, Item, Reader
from trainwarden.custody.table import write_events
from trainwarden.errors import UsageError
from trainwarden.model import Evidence, SourceKind, Unread
from trainwarden.store import Store, store_errors

_GZIP = b"\x1f\x8b"
_EVERY = 4096  # items between two reports of progress


class State(StrEnum):
    """What became of a file that was to be taken in."""

    NEW = "new"
    AGAIN = "read again"
    THERE = "was in already"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever takes a file in says of it."""

    kind: SourceKind | None = None  # None: as its content says
    host: str = ""
    account: str = ""
    editors: tuple[str, ...] = ()  # who could have edited it, in place of whom its kind supposes
    users: Mapping[int, str] = {}
    zone: tzinfo = UTC
    year: int = 0  # of times without one; 0 = when the file was last written
    again: bool = False  # read it anew where it is in already


def take_in(
    store: Store, by: ledger.Signer, path: Path, told: Told, progress: Callable[[int], None] = lambda at: None
) -> tuple[Evidence, State]:
    """Take one file in; the evidence, and what became of it. `progress(bytes read)`.

    Raises:
        UsageError: it cannot be read, or nothing here knows what it is.
        CustodyTampered, StoreError, LogError, LogLocked: it could not be kept.
    """
    digest = store.put_file(path)
    known = ledger.read_custody(store).evidence.get(digest)
    if known is not None and not told.again:
        return known.evidence, State.THERE
    copy = store.object_path(digest)
    with opened(copy) as file:
        head = file.read(readers.HEAD_BYTES)
    reader = readers.reader_for(told.kind) if told.kind else readers.recognised(head, path.name)
    year = told.year or datetime.fromtimestamp(path.stat().st_mtime, UTC).year
    context = Context(source=digest, host=told.host, account=told.account, users=told.users, zone=told.zone, year=year)
    with store_errors(f"write to the store {store.path}"), tempfile.TemporaryDirectory(dir=store.path) as temp:
        table = Path(temp) / "events"
        with opened(copy) as file:
            counted = write_events(_watched(read_all(reader, file, context), file, progress), table)
        evidence = Evidence(
            id=digest,
            kind=reader.kind,
            name=path.name,
            bytes=copy.stat().st_size,
            table=store.put_file(table),
            host=told.host,
            editors=told.editors or reader.editors,
            weak=reader.weak,
            **msgspec.structs.asdict(counted),
        )
    if known is not None and known.evidence == evidence:
        return evidence, State.THERE
    ledger.take(store, by, evidence)
    return evidence, State.NEW if known is None else State.AGAIN


def read_all(reader: Reader, file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every item of a file; a compressed one that breaks off ends there, and says so."""
    last = 0
    try:
        for item in reader.read(file, context):
            last = item.line if item is not None else last
            yield item
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        yield Unread(line=last + 1, reason=f"the compressed file breaks off: {e}")


def _watched(items: Iterator[Item], file: BinaryIO, progress: Callable[[int], None]) -> Iterator[Item]:
    for count, item in enumerate(items):
        if count % _EVERY == 0:
            progress(file.tell())
        yield item


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file for reading, unpacked where it is gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as plain:
            yield cast(BinaryIO, plain)


def users_of(paths: Sequence[Path]) -> dict[int, str]:
    """Names of user ids, from files like /etc/passwd.

    Raises:
        UsageError: one cannot be read, or is no such file.
    """
    users: dict[int, str] = {}
    for path in paths:
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                name, _, uid = line.split(":")[:3]
                users.setdefault(int(uid), name)
        except (OSError, ValueError) as e:
            raise UsageError(f"{path} does not read like /etc/passwd: {e}", hint="getent passwd > FILE") from e
    return users
