"""Stops a log server at every write, restarts it, and looks for what it had acknowledged: points tried, entries lost.

`Faulty` is a store in memory whose every effect has two points: before it (not persisted) and after it (persisted,
but the process never learns). At a chosen point the process dies, or the store fails with an errno.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trainwarden.errors import RequestRefused
from trainwarden.keys import SigningKey
from trainwarden.log import merkle, tiles
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.notes import verify_head
from trainwarden.log.protocol import Append, Appended, Item, entry_bytes
from trainwarden.log.server.index import Logged, RunIndex
from trainwarden.log.server.metrics import Metrics
from trainwarden.log.server.sequencer import Sequencer
from trainwarden.log.server.stores import TileStore, Versioned, moved
from trainwarden.log.server.tilelog import CHECKPOINT, TileLog, object_name, read_tile
from trainwarden.model import TreeHead

KEY = SigningKey(b"\x07" * 32)
ORIGIN = "log.test/crash"


class Crash(BaseException):
    """The process died here."""


class Faults:
    """Counts points, and makes one of them (or some in a row) go wrong."""

    def __init__(self, *, crash_at: int = -1, fail_at: int = -1, fail_for: int = 1, code: int = errno.ENOSPC) -> None:
        self.crash_at, self.fail_at, self.fail_for, self.code = crash_at, fail_at, fail_for, code
        self.points, self.dead = 0, False
        self._guard = threading.Lock()

    def point(self) -> None:
        with self._guard:
            now, self.points = self.points, self.points + 1
            if self.dead or now == self.crash_at:
                self.dead = True
                raise Crash
            if self.fail_at <= now < self.fail_at + self.fail_for:
                raise OSError(self.code, os.strerror(self.code))


class Faulty:
    """A `TileStore` in memory; several may share the bytes, as several writers share a bucket."""

    def __init__(self, files: dict[str, bytes], faults: Faults) -> None:
        self.files, self.faults = files, faults

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def put(self, name: str, data: bytes) -> None:
        self.faults.point()
        self.files[name] = data
        self.faults.point()

    def current(self, name: str) -> Versioned | None:
        data = self.files.get(name)
        return None if data is None else Versioned(data, hashlib.sha256(data).hexdigest())

    def swap(self, name: str, data: bytes, version: str) -> str:
        self.faults.point()
        found = self.current(name)
        if (found.version if found else "") != version:
            raise moved(name, version, found.version if found else "")
        self.files[name] = data
        self.faults.point()
        return hashlib.sha256(data).hexdigest()

    def names(self, folder: str) -> list[str]:
        return sorted(n for n in self.files if n.rpartition("/")[0] == folder)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.faults.point()
            self.files.pop(name, None)

    def close(self) -> None:
        pass


class FaultyIndex(RunIndex):
    """The run index, which can die before and after a transaction as well."""

    faults = Faults()

    def add(self, items: Sequence[Logged], head: TreeHead) -> None:
        self.faults.point()
        super().add(items, head)
        self.faults.point()


class Server:
    """The parts of a log server without HTTP and without its thread: a test takes its steps."""

    def __init__(self, store: TileStore, index: RunIndex) -> None:
        self.store = store
        self.log = TileLog.open(store, ORIGIN, KEY)
        self.sequencer = Sequencer(self.log, index, Metrics())

    def close(self) -> None:
        """Give up the threads; what a dead process could not have written is not written."""
        self.log.close()

    def send(self, *appends: Append) -> list[Appended | RequestRefused]:
        """Give requests at once, as one group; their answers."""
        futures = [self.sequencer.submit(append, 1) for append in appends]
        self.sequencer.step()
        answers: list[Appended | RequestRefused] = []
        for future in futures:
            error = future.exception(timeout=0)
            if isinstance(error, RequestRefused):
                answers.append(error)
            else:
                answers.append(future.result(timeout=0))
        return answers


@contextmanager
def running(files: dict[str, bytes], index: RunIndex, faults: Faults) -> Iterator[Server]:
    """A server over these bytes that is closed at the end."""
    if isinstance(index, FaultyIndex):
        index.faults = faults
    server = Server(Faulty(files, faults), index)
    try:
        yield server
    finally:
        server.close()


def new_index() -> FaultyIndex:
    """An index in memory."""
    index = FaultyIndex.open("sqlite://", ORIGIN)
    assert isinstance(index, FaultyIndex)
    return index


def request(host: str, run: str, first: int, count: int, salt: str = "") -> Append:
    """A request of small items, of which every third has an object."""
    items = tuple(
        Item(
            leaf=f'{{"type":"step","of":"{host}/{run}/{seq}{salt}"}}'.encode(),
            object=f"object {host} {seq}{salt}".encode() * 9 if seq % 3 == 0 else b"",
        )
        for seq in range(first, first + count)
    )
    return Append(host=host, run=run, first=first, items=items)


GROUPS: tuple[tuple[Append, ...], ...] = (
    (request("a", "r", 0, 3), request("b", "r", 0, 1)),
    (request("a", "r", 3, 2),),
    (request("b", "r", 1, 250), request("a", "s", 0, 4)),
    (request("a", "r", 5, 1), request("b", "r", 251, 9)),
)

SMALL: tuple[tuple[Append, ...], ...] = ((request("a", "r", 0, 2),), (request("b", "r", 0, 1), request("a", "r", 2, 1)))


def run_until(server: Server, acked: dict[tuple[str, str, int], int], groups: Sequence[Sequence[Append]]) -> None:
    """Send the groups, noting each item that was acknowledged with its index."""
    for group in groups:
        for append, answer in zip(group, server.send(*group), strict=True):
            if isinstance(answer, Appended):
                for seq, index in enumerate(answer.indexes, append.first):
                    if acked.setdefault((append.host, append.run, seq), index) != index:
                        raise AssertionError(f"item {seq} of {append.host} has two indexes")


def read_log(files: dict[str, bytes]) -> list[bytes]:
    """Every entry of the published log, checked against its signed root as a reader would."""
    store = Faulty(files, Faults())
    head = verify_head(files[CHECKPOINT], KEY.public)
    entries: list[bytes] = []
    for first in range(0, head.size, tiles.HASH_TILE):
        tile = tiles.tile_of(head.size, tiles.ENTRIES, first // tiles.HASH_TILE)
        bundle = read_tile(store, tile)
        if bundle is None:
            raise AssertionError(f"{tile.path} is missing")
        entries += tiles.read_bundle(bundle, tile.width)
    if merkle.root([leaf_hash(e) for e in entries]).hex() != head.root:
        raise AssertionError("the entries do not give the root")
    for tile in tiles.tiles_for(0, head.size):
        if tile.level >= 0 and read_tile(store, tile) is None:
            raise AssertionError(f"{tile.path} is missing")
    return entries


def losses(files: dict[str, bytes], acked: dict[tuple[str, str, int], int], groups: Sequence[Sequence[Append]]) -> int:
    """How many acknowledged items are not in the log at their index, with their object."""
    entries, lost = read_log(files), 0
    for append in (append for group in groups for append in group):
        for seq, item in enumerate(append.items, append.first):
            index = acked.get((append.host, append.run, seq))
            if index is not None:
                entry = entry_bytes(append.host, append.run, seq, item)
                kept = index < len(entries) and entries[index] == entry
                digest = entry.partition(b'"object":"')[2][:64].decode()
                lost += not kept or bool(item.object and files.get(object_name(digest)) != item.object)
    return lost


def crashes(
    groups: Sequence[Sequence[Append]] = GROUPS, *, first: int = 0, every: int = 1
) -> Iterator[tuple[int, int]]:
    """Die at each (or every n-th) point, restart with the index kept and lost; (point, acknowledged items lost)."""
    point, finished = first, False
    while not finished:
        finished = True
        for keep_index in (True, False):
            files: dict[str, bytes] = {}
            acked: dict[tuple[str, str, int], int] = {}
            index, faults = new_index(), Faults(crash_at=point)
            try:
                with running(files, index, faults) as server:
                    run_until(server, acked, groups)
            except Crash:
                finished = False
            lost = losses(files, acked, groups) if acked else 0
            with running(files, index if keep_index else new_index(), Faults()) as again:
                run_until(again, acked, groups)
            lost += losses(files, acked, groups)
            items = sum(len(append.items) for group in groups for append in group)
            if len(acked) != items or len(read_log(files)) != items:
                raise AssertionError(f"point {point}: {len(acked)} of {items} items, {len(read_log(files))} entries")
            if not finished:
                yield point, lost
        point += every
