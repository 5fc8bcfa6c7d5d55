"""The right edge of a tile log: all that is needed to append to it. Pure: an edge and entries in, tiles out.

Rules
-----
* An edge keeps the partial tile of every level and the entries of the partial bundle; full tiles are never
  needed again. Growing gives every tile that is new or wider, and these only.

Trust: an edge read from tiles is a claim until its root was compared with a signed head (`tilelog` does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from trainwarden.log import merkle
from trainwarden.log.merkle import Frontier, leaf_hash
from trainwarden.log.tiles import ENTRIES, HASH_TILE, HEIGHT, Tile, TileReader, entry_bundle, read_bundle, read_hashes


class Edge(msgspec.Struct, frozen=True):
    """A tree's size, the entries of its partial bundle, and the hashes of the partial tile of each level."""

    size: int = 0
    bundle: tuple[bytes, ...] = ()
    levels: tuple[tuple[bytes, ...], ...] = ()

    def frontier(self) -> Frontier:
        """The roots of the perfect subtrees, the largest first."""
        peaks: list[bytes] = []
        for hashes in reversed(self.levels):
            start = 0
            for bit in reversed(range(HEIGHT)):
                if len(hashes) & (1 << bit):
                    peaks.append(merkle.root(hashes[start : start + (1 << bit)]))
                    start += 1 << bit
        return Frontier(self.size, tuple(peaks))

    def root(self) -> bytes:
        """The root over all entries."""
        return self.frontier().root()


def grow(edge: Edge, entries: Sequence[bytes]) -> tuple[Edge, list[tuple[Tile, bytes]]]:
    """The edge after appending entries, and the new tiles with their bytes: bundles first, then upwards.

    Raises:
        UsageError: an entry is too large for a bundle.
    """
    if not entries:
        return edge, []
    bundle, made = _cut(edge.bundle, entries, ENTRIES, edge.size // HASH_TILE, entry_bundle)
    levels = list(edge.levels)
    new: Sequence[bytes] = [leaf_hash(entry) for entry in entries]
    for level in range(len(levels) + 1 + HEIGHT):
        if not new:
            break
        if level == len(levels):
            levels.append(())
        levels[level], tiles = _cut(levels[level], new, level, edge.size >> (HEIGHT * (level + 1)), b"".join)
        made += tiles
        whole = [data for tile, data in tiles if tile.width == HASH_TILE]
        new = [merkle.root(read_hashes(data, HASH_TILE)) for data in whole]
    return Edge(edge.size + len(entries), bundle, tuple(levels)), made


def read_edge(read: TileReader, size: int) -> Edge:
    """The edge of the tree of `size`, read from its tiles.

    Raises:
        LogTampered: a tile has the wrong form.
    """
    bundle: tuple[bytes, ...] = ()
    if within := size % HASH_TILE:
        bundle = tuple(read_bundle(read(Tile(ENTRIES, size // HASH_TILE, within)), within))
    levels: list[tuple[bytes, ...]] = []
    while nodes := size >> (HEIGHT * len(levels)):
        tile = Tile(len(levels), nodes // HASH_TILE, nodes % HASH_TILE)
        levels.append(tuple(read_hashes(read(tile), tile.width)) if tile.width else ())
    return Edge(size, bundle, tuple(levels))


def _cut(
    kept: Sequence[bytes], new: Sequence[bytes], level: int, index: int, write: Callable[[Sequence[bytes]], bytes]
) -> tuple[tuple[bytes, ...], list[tuple[Tile, bytes]]]:
    """Fill a level's partial tile `index` with new members, and those after it; what is left is partial again."""
    members, made = [*kept, *new], list[tuple[Tile, bytes]]()
    for start in range(0, len(members), HASH_TILE):
        part = members[start : start + HASH_TILE]
        made.append((Tile(level, index + start // HASH_TILE, len(part)), write(part)))
    return tuple(members[len(members) // HASH_TILE * HASH_TILE :]), made
