"""Tiles believed only as far as a tree head vouches for them. Pure: bytes are asked for and judged, never fetched here.

Rules
-----
* The root is computed from the tiles at the right edge; unless it is the head's, nothing is handed out.
* A full tile's hash has to be the one that the tile above it holds, up to the right edge.
* An entry's hash has to be the one in its tile of level 0. So whatever comes out is under the head's root.

Trust: the head, whose signature the caller checked. Where the bytes come from does not matter.
Source: https://c2sp.org/tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable

from trainwarden.errors import LogTampered, UsageError
from trainwarden.log.merkle import consistency_proof, inclusion_proof, leaf_hash, range_root, root
from trainwarden.log.tiles import (
    ENTRIES,
    HASH_TILE,
    Tile,
    TileReader,
    node_hash,
    nodes,
    read_bundle,
    read_hashes,
    tile_of,
)
from trainwarden.model import TreeHead

_KEPT = 512  # tiles held in memory, 8 KiB each


class CheckedTiles:
    """The tiles of the tree of `head`, each checked when it is first read."""

    def __init__(self, head: TreeHead, read: TileReader) -> None:
        self.head, self._read = head, read
        self._kept: dict[Tile, bytes] = {}
        self._edge_holds = False

    def tile(self, tile: Tile) -> bytes:
        """The bytes of a hash tile of this tree.

        Raises:
            LogTampered: it is not the tile under the head's root.
            UsageError: the tree has no such tile.
        """
        if tile != tile_of(self.head.size, tile.level, tile.index):
            raise UsageError(f"the tree of {self.head.size} has no tile {tile.path}")
        self._check_edge()
        if (kept := self._kept.get(tile)) is not None:
            return kept
        data = self._fetched(tile)
        above = tile_of(self.head.size, tile.level + 1, tile.index // HASH_TILE)  # full, so there is a tile above
        expected = read_hashes(self.tile(above), above.width)[tile.index % HASH_TILE]
        found = root(read_hashes(data, tile.width))
        if found != expected:
            raise LogTampered(
                f"the tile {tile.path} has root {found.hex()}, the tile above it holds {expected.hex()}",
                hint="the tile was changed after it was published, or belongs to another log",
            )
        self._keep(tile, data)
        return data

    def node(self, level: int, index: int) -> bytes:
        """The hash of a node of the tree, `level` above the leaves. Raises as `tile`."""
        return node_hash(self.tile, self.head.size, level, index)

    def entries(self, bundle: int) -> list[bytes]:
        """The entries of bundle `bundle`: those from 256 · `bundle` on.

        Raises:
            LogTampered: they are not those under the head's root.
            UsageError: the tree has no such bundle.
        """
        tile = tile_of(self.head.size, ENTRIES, bundle)
        hashes = read_hashes(self.tile(Tile(0, tile.index, tile.width)), tile.width)
        found = read_bundle(self._read(tile), tile.width)
        for i, (entry, expected) in enumerate(zip(found, hashes, strict=True), tile.index * HASH_TILE):
            if (leaf := leaf_hash(entry)) != expected:
                raise LogTampered(
                    f"entry {i} was rewritten: its tile holds leaf hash {expected.hex()}, its content has {leaf.hex()}",
                    hint="the entry was changed after it was published: keep it as evidence",
                )
        return found

    def inclusion_proof(self, index: int) -> list[bytes]:
        """The hashes from leaf `index` to the root. Raises UsageError when there is no such leaf, else as `tile`."""
        return self._proof(lambda: inclusion_proof(self.node, index, self.head.size))

    def consistency_proof(self, old: int) -> list[bytes]:
        """The hashes from the tree of `old` leaves to this one. Raises UsageError if there was none, else as `tile`."""
        return self._proof(lambda: consistency_proof(self.node, old, self.head.size))

    def root_at(self, size: int) -> bytes:
        """The root that this log had at `size` leaves. Raises UsageError if it is not that long, else as `tile`."""
        if not 0 <= size <= self.head.size:
            raise UsageError(f"the log has {self.head.size} entries, not yet {size}")
        return range_root(self.node, 0, size)

    def _proof(self, make: Callable[[], list[bytes]]) -> list[bytes]:
        self._check_edge()
        try:
            return make()
        except IndexError as e:
            raise UsageError(f"no such proof: {e}") from None

    def _check_edge(self) -> None:
        """Check the partial tiles, which hold every peak of the tree, against the head."""
        if self._edge_holds:
            return
        size, edge = self.head.size, {}
        for level in range((size.bit_length() + 7) // 8):
            if width := (size >> 8 * level) % HASH_TILE:
                tile = Tile(level, size >> 8 * (level + 1), width)
                edge[tile] = self._fetched(tile)
        found = range_root(nodes(edge.__getitem__, size), 0, size)
        if found.hex() != self.head.root:
            raise LogTampered(
                f"the tiles of size {size} have root {found.hex()}, the tree head has {self.head.root}",
                hint="the tiles were changed after they were published, or belong to another log",
            )
        self._kept |= edge
        self._edge_holds = True

    def _fetched(self, tile: Tile) -> bytes:
        data = self._read(tile)
        read_hashes(data, tile.width)
        return data

    def _keep(self, tile: Tile, data: bytes) -> None:
        if len(self._kept) >= _KEPT:
            del self._kept[next(t for t in self._kept if t.width == HASH_TILE)]
        self._kept[tile] = data
