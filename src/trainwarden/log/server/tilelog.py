"""The one writer of a log server's log: entries in, tiles and a signed head out, durable on return.

A batch is committed in this order, each step durable before the next:

    1. objects      by digest; one too many does no harm
       staging      at the same time: the batch's entries, under the size and root that they lead to
    2. head         compare-and-swap: from here on the batch is in the log, and no other writer's
    3. tiles        they follow from staging alone, so that whoever writes them writes the same bytes
    4. checkpoint   compare-and-swap: readers see the batch

Rules
-----
* Who loses a swap is fenced for good: it has touched nothing that readers see.
* Opening looks at head and checkpoint. A head ahead of the checkpoint is finished from staging; at most one batch
  can be. Anything else that does not fit (a root, a signature, a missing part) is `LogTampered`.
* After a failure it is not known how far a step came: the next call begins with what opening does.
* The head's note is the only place where a new root is signed, so no signed head is seen that is not committed.

Trust: as `stores`; the key signs what this process says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from trainwarden.errors import LogFenced, LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log import merkle, tiles
from trainwarden.log.frames import EntryFrame, entry_frame, read_frames
from trainwarden.log.journal import log_errors
from trainwarden.log.merkle import HASH_SIZE, leaf_hash
from trainwarden.log.notes import check_origin, sign_head, verify_head
from trainwarden.log.server.edge import Edge, grow, read_edge
from trainwarden.log.server.stores import TileStore, Versioned
from trainwarden.log.tiles import ENTRIES, HASH_TILE, Tile
from trainwarden.model import TreeHead

HEAD, CHECKPOINT, STAGING, OBJECTS = "head", "checkpoint", "staging", "objects"
_TAMPERED = "the store was changed by someone else: keep it as evidence, compare it with a client's last head"


class TileLog:
    """A log held open for appending, by one thread."""

    def __init__(self, store: TileStore, origin: str, key: SigningKey) -> None:
        self._store, self._origin, self._key = store, origin, key
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="tiles")
        self._fenced: LogFenced | None = None
        self._settled = False
        self._edge, self._head = Edge(), TreeHead(origin=origin, size=0, root="", note="")
        self._head_version = self._checkpoint_version = ""

    @classmethod
    def open(cls, store: TileStore, origin: str, key: SigningKey) -> TileLog:
        """Open the log in `store` after finishing what a crash left, or begin it.

        Raises:
            UsageError: `origin` cannot name a log.
            LogTampered: head, checkpoint and tiles do not fit together, or it is another log.
            SignatureInvalid: another key signed it.
            LogFenced: another writer is at work.
            LogError: the store cannot be read or written.
        """
        check_origin(origin)
        log = cls(store, origin, key)
        log.settle()
        return log

    @property
    def head(self) -> TreeHead:
        """The newest published head."""
        return self._head

    def append(self, entries: Sequence[bytes], objects: dict[str, bytes]) -> TreeHead:
        """Append entries as one batch; on return they are durable and published under the head.

        Raises:
            LogFenced: another writer has gone on with the log; this one is of no more use.
            LogError: they could not be written; whether they are in the log shows when `settle` works again.
        """
        self.settle()
        if not entries:
            return self._head
        edge, made = grow(self._edge, entries)
        head = sign_head(self._origin, edge.size, edge.root(), self._key)
        self._settled = False
        with self._writing("append to"):
            staged = staging_name(head)
            first = {object_name(digest): data for digest, data in objects.items()}
            self._put(first | {staged: b"".join(_frames(self._edge.size, entries))})
            self._head_version = self._store.swap(HEAD, head.note.encode(), self._head_version)
            self._publish(head, made)
            done = self._edge
            self._edge, self._head, self._settled = edge, head, True
        self._pool.submit(self._tidy, done, edge, [staged])  # nobody has to wait for it
        return head

    def settle(self) -> None:
        """Make sure that what this writer knows is what the store has, and that all of it is published.

        Raises:
            LogFenced, LogTampered, SignatureInvalid, LogError: as `open`.
        """
        if self._fenced is not None:
            raise self._fenced
        if not self._settled:
            with self._writing("open"):
                self._recover()
                self._settled = True

    def entries(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Entries `first … last − 1` of the published log with their indexes, each bundle checked by its hash tile.

        Raises:
            LogTampered: a bundle contradicts its hash tile, or is missing.
            LogError: the store cannot be read.
        """
        with log_errors(f"read the log {self._origin}"):
            while first < last:
                bundle = tiles.tile_of(self._head.size, ENTRIES, first // HASH_TILE)
                found = tiles.read_bundle(self._tile(bundle), bundle.width)
                hashes = tiles.read_hashes(self._tile(Tile(0, bundle.index, bundle.width)), bundle.width)
                start = bundle.index * HASH_TILE
                for index in range(first, min(last, start + bundle.width)):
                    if leaf_hash(found[index - start]) != hashes[index - start]:
                        raise _tampered(f"entry {index} was rewritten: its hash tile has {hashes[index - start].hex()}")
                    yield index, found[index - start]
                first = start + bundle.width

    def root(self, size: int) -> bytes:
        """The root of the published log as it was with `size` entries.

        Raises:
            LogError, LogTampered: as `entries`.
        """
        with log_errors(f"read the log {self._origin}"):
            return merkle.range_root(tiles.nodes(self._tile, self._head.size), 0, size)

    def close(self) -> None:
        """Give up the store."""
        self._pool.shutdown()
        self._store.close()

    # ------------------------------------------------------------------ recovery

    def _recover(self) -> None:
        head, checkpoint = self._store.current(HEAD), self._store.current(CHECKPOINT)
        if head is None:
            if checkpoint is not None:
                raise _tampered("the log's head was removed, but there is a checkpoint")
            note = sign_head(self._origin, 0, merkle.EMPTY_ROOT, self._key).note.encode()
            head = Versioned(note, self._store.swap(HEAD, note, ""))
        committed = self._checked(head.data)
        if checkpoint is None:
            if committed.size:
                raise _tampered(f"the log's checkpoint was removed, the head has size {committed.size}")
            note = sign_head(self._origin, 0, merkle.EMPTY_ROOT, self._key).note.encode()
            checkpoint = Versioned(note, self._store.swap(CHECKPOINT, note, ""))
        published = self._checked(checkpoint.data)
        self._head_version, self._checkpoint_version = head.version, checkpoint.version
        if published.size > committed.size or (published.size == committed.size and published.root != committed.root):
            raise _tampered(f"the head was put back: it has {_named(committed)}, the checkpoint {_named(published)}")
        self._head, self._edge = published, self._read_edge(published)
        before = self._edge
        if published.size < committed.size:
            self._finish(committed)
        # What is staged beyond the head may be another writer's next batch: it stays until the log has passed it.
        passed = [name for name in self._store.names(STAGING) if _staged_size(name) <= self._head.size]
        self._tidy(before, self._edge, passed)

    def _read_edge(self, head: TreeHead) -> Edge:
        edge = read_edge(self._tile, head.size)
        if edge.root().hex() != head.root:
            raise _tampered(f"the tiles at the right edge give root {edge.root().hex()}, the head has {_named(head)}")
        return edge

    def _finish(self, head: TreeHead) -> None:
        staged = self._store.read(staging_name(head))
        if staged is None:
            raise _tampered(f"the staged entries {self._edge.size} to {head.size - 1} of the head were removed")
        frames = [f for f in read_frames(_Bytes(staged), 0, len(staged)) if isinstance(f, EntryFrame)]
        edge, made = grow(self._edge, [f.data for f in frames])
        if edge.size != head.size or edge.root().hex() != head.root:
            raise _tampered(f"the staged entries give {edge.size}, root {edge.root().hex()}; the head {_named(head)}")
        self._publish(head, made)
        self._edge, self._head = edge, head

    def _checked(self, note: bytes) -> TreeHead:
        head = verify_head(note, self._key.public)
        if head.origin != self._origin:
            raise _tampered(f"this is the log {head.origin!r}, expected {self._origin!r}")
        return head

    # ------------------------------------------------------------------ writing

    def _publish(self, head: TreeHead, made: Sequence[tuple[Tile, bytes]]) -> None:
        self._put({tile.path: data for tile, data in made})
        self._checkpoint_version = self._store.swap(CHECKPOINT, head.note.encode(), self._checkpoint_version)

    def _put(self, files: dict[str, bytes]) -> None:
        for _ in self._pool.map(self._store.put, files.keys(), files.values()):
            pass

    def _tidy(self, before: Edge, after: Edge, staged: Sequence[str]) -> None:
        """Remove what nothing needs any more: staging, and the partial tiles of tiles that are full now."""
        try:
            old = [f"{t.full().path}.p" for t in _filled(before.size, after.size)]
            self._store.remove([*staged, *(name for folder in old for name in self._store.names(folder))])
        except OSError:
            pass  # it only takes space; opening removes what is left in staging

    def _tile(self, tile: Tile) -> bytes:
        data = read_tile(self._store, tile)
        if data is None:
            raise _tampered(f"{tile.path} is missing")
        return data

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            with log_errors(f"{what} the log {self._origin}"):
                yield
        except LogFenced as e:
            self._fenced = e
            raise


class _Bytes:
    """Bytes as a source of frames."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def size(self) -> int:
        return len(self._data)


def staging_name(head: TreeHead) -> str:
    """Where the entries lie that lead to `head`."""
    return f"{STAGING}/{head.size}-{head.root}"


def _staged_size(name: str) -> int:
    size = name.rpartition("/")[2].partition("-")[0]
    return int(size) if size.isascii() and size.isdigit() else 0


def object_name(digest: str) -> str:
    """Where an object lies."""
    return f"{OBJECTS}/{digest[:2]}/{digest[2:]}"


def read_tile(store: TileStore, tile: Tile) -> bytes | None:
    """A tile's bytes; a partial one that was tidied away is cut from the full one.

    Raises:
        LogTampered: the full one has the wrong form.
        OSError: the store cannot be read.
    """
    data = store.read(tile.path)
    if data is not None or tile.width == HASH_TILE:
        return data
    full = store.read(tile.full().path)
    if full is None:
        return None
    if tile.level == ENTRIES:
        return tiles.entry_bundle(tiles.read_bundle(full, HASH_TILE)[: tile.width])
    return full[: tile.width * HASH_SIZE]


def _frames(first: int, entries: Sequence[bytes]) -> Iterator[bytes]:
    return (entry_frame(i, leaf_hash(entry), entry) for i, entry in enumerate(entries, first))


def _filled(old: int, new: int) -> Iterator[Tile]:
    """The tiles that were partial in the tree of `old` and are full in that of `new`."""
    for tile in tiles.tiles_for(old, new):
        before = old >> (tiles.HEIGHT * max(tile.level, 0))
        if tile.width == HASH_TILE and tile.index == before // HASH_TILE and before % HASH_TILE:
            yield tile


def _named(head: TreeHead) -> str:
    return f"size {head.size}, root {head.root}"


def _tampered(message: str) -> LogTampered:
    return LogTampered(message, hint=_TAMPERED)
