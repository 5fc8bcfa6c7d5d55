"""Publishes a run's journal as a static tile log that other tools read: a folder to be served as it is.

Rules
-----
* The tree and its signed heads are the journal's own; nothing is signed anew, no key is needed.
* The checkpoint is written last, after every tile that it needs is durable. Whatever stops it in between leaves the
  earlier checkpoint, which holds; publishing again goes on from there.
* Only what is new since that checkpoint is written. A folder that holds another log, or another or a later history
  of this one, is not written to: that is an alarm.
* An entry over 65,535 bytes has no place in a bundle: such a journal is refused before its checkpoint is written.

Trust: as the journal. A folder that others write to is only as good as its readers' checks, which need none of ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from trainwarden.durable import hint_for, sync_file_system, write_atomically
from trainwarden.errors import LogError, LogTampered, UsageError
from trainwarden.log.merkle import Tree, leaf_hash
from trainwarden.log.notes import parse_head
from trainwarden.log.reader import LogReader
from trainwarden.log.tilelog import CHECKPOINT
from trainwarden.log.tiles import ENTRIES, HASH_TILE, MAX_ENTRY, Tile, entry_bundle, tiles_for, tiles_from_hashes
from trainwarden.model import TreeHead


class Published(msgspec.Struct, frozen=True):
    """What a publication wrote: the tree's size before and now, and the new tiles' number and bytes."""

    origin: str
    before: int
    size: int
    tiles: int
    bytes: int


def publish(log: LogReader, folder: Path, note: str = "", progress: Callable[[int], None] | None = None) -> Published:
    """Bring `folder` up to the head of `log`, under `note` where that head was cosigned.

    Raises:
        UsageError: an entry is too large for a bundle.
        LogTampered: the journal contradicts its head, or the folder has another history.
        LogError: the folder cannot be written.
    """
    head = log.head
    if note and parse_head(note.encode()) != msgspec.structs.replace(head, note=note):
        raise UsageError("the cosigned head is another than the log's")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _published(folder)
        if before is not None and (before.origin != head.origin or before.size > head.size):
            raise LogTampered(
                f"{folder} has the log {before.origin!r} of size {before.size}, "
                f"this is {head.origin!r} of size {head.size}",
                hint="a log goes on in its own folder; one that is shorter than what was published was rolled back",
            )
        writing = _Writing(folder, before, head.size)
        writing.hashes(writing.bundles(log.entries(), progress))
        sync_file_system(folder)
        if not before or note or before.size < head.size:
            write_atomically(folder / CHECKPOINT, (note or head.note).encode())
    except OSError as e:
        raise LogError(f"cannot publish to {folder}: {e.strerror or e}", hint=hint_for(e)) from e
    return Published(head.origin, writing.old, head.size, writing.count, writing.size)


def _published(folder: Path) -> TreeHead | None:
    try:
        return parse_head((folder / CHECKPOINT).read_bytes())
    except FileNotFoundError:
        return None


def _check_same(before: TreeHead, tree: Tree) -> None:
    if (found := tree.root(before.size).hex()) != before.root:
        raise LogTampered(
            f"split view: the published log had root {before.root} at size {before.size}, this one had {found}",
            hint="two histories of one log were signed: keep both as evidence",
        )


class _Writing:
    """The tiles that a tree of `new` has and the published one has not, on their way to a folder."""

    def __init__(self, folder: Path, before: TreeHead | None, new: int) -> None:
        self._folder, self._before, self.old = folder, before, before.size if before else 0
        wanted = list(tiles_for(self.old, new))
        self._bundles = {tile.index: tile for tile in wanted if tile.level == ENTRIES}
        self._hashes = [tile for tile in wanted if tile.level != ENTRIES]
        self.count = self.size = 0

    def bundles(self, entries: Iterable[tuple[int, bytes]], progress: Callable[[int], None] | None) -> Tree:
        """Write the new bundles from all entries of the log; gives the tree over all of them.

        Nothing is written before the entries that were published are known to be the same.
        """
        tree, held = Tree(), list[bytes]()
        self._compare(tree)
        for i, entry in entries:
            if len(entry) > MAX_ENTRY:
                raise UsageError(
                    f"entry {i} has {len(entry)} bytes; a published entry has at most {MAX_ENTRY}",
                    hint="this log can be verified and witnessed, but not published as tiles",
                )
            tree.extend((leaf_hash(entry),))
            held.append(entry)
            self._compare(tree)
            if len(held) == HASH_TILE:
                self._bundle(i // HASH_TILE, held)
                held.clear()
                if progress is not None:
                    progress(i + 1)
        if held:
            self._bundle(tree.size // HASH_TILE, held)
        return tree

    def _compare(self, tree: Tree) -> None:
        if self._before is not None and self._before.size == tree.size:
            _check_same(self._before, tree)

    def hashes(self, tree: Tree) -> None:
        """Write the new hash tiles."""
        for tile in self._hashes:
            self._write(tile, tiles_from_hashes(tree.node, tile))

    def _bundle(self, index: int, entries: list[bytes]) -> None:
        if (tile := self._bundles.get(index)) is not None:
            self._write(tile, entry_bundle(entries))

    def _write(self, tile: Tile, data: bytes) -> None:
        """Whole or not at all; made durable with all others, before the checkpoint."""
        path = self._folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temp.write_bytes(data)
        os.replace(temp, path)
        self.count, self.size = self.count + 1, self.size + len(data)
