"""The log as static tiles: paths, hash tiles, entry bundles, and proofs made from them (C2SP tlog-tiles). Pure.

    checkpoint                       the signed tree head
    tile/<L>/<N>[.p/<W>]             up to 256 hashes of 32 bytes: the nodes 8·L levels above the leaves
    tile/entries/<N>[.p/<W>]         the up to 256 entries under a tile of level 0: uint16 length · bytes, each

Rules
-----
* A full tile is 256 wide and has no `.p/<W>`; the tile at the right edge of a level is partial, or not there.
* Tiles never change: a tree that grew has the old full tiles and new ones.
* One way to write a path: what parses is what `tile_path` writes. Nothing else names a tile.
* An entry has at most 65,535 bytes: `publish` refuses a larger one, a log server's client sends it as an object.

Trust: nothing here is checked against a signed head; `tilelog` does that. A hash taken from a tile that was not
checked is only a claim.
Source: https://c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from trainwarden.errors import LogTampered, UsageError
from trainwarden.log import merkle
from trainwarden.log.merkle import HASH_SIZE

HASH_TILE = 256
HEIGHT = 8  # a tile spans this many levels of the tree
ENTRIES = -1  # the level of entry bundles
MAX_LEVEL = 63
MAX_INDEX = 1 << 62
MAX_ENTRY = 65_535
_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([0-9]{1,3}))?", re.ASCII)


class Tile(msgspec.Struct, frozen=True, order=True):
    """One tile by its place; `level` −1 is an entry bundle, `width` the number of its hashes or entries."""

    level: int
    index: int
    width: int = HASH_TILE

    @property
    def path(self) -> str:
        """Its path below the log's prefix."""
        return tile_path(self.level, self.index, self.width)

    def full(self) -> Tile:
        """The tile of the same place once it has 256."""
        return Tile(self.level, self.index)


TileReader: TypeAlias = Callable[[Tile], bytes]


def tile_path(level: int, index: int, width: int = HASH_TILE) -> str:
    """Where a tile lies below the log's prefix (tlog-tiles, "Merkle Tree").

    Raises:
        UsageError: no tile has that place.
    """
    if not (ENTRIES <= level <= MAX_LEVEL and 0 <= index <= MAX_INDEX and 1 <= width <= HASH_TILE):
        raise UsageError(f"no tile has level {level}, index {index} and width {width}")
    digits = f"{index:d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    parts = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    name = "/".join([*("x" + part for part in parts[:-1]), parts[-1]])
    suffix = "" if width == HASH_TILE else f".p/{width}"
    return f"tile/{'entries' if level == ENTRIES else level}/{name}{suffix}"


def parse_tile_path(path: str) -> Tile:
    """The tile that `path` names; only the form that `tile_path` writes is read.

    Raises:
        UsageError: it names none.
    """
    if (match := _PATH.fullmatch(path)) is not None:
        level, name, width = match.groups()
        index = int(name.replace("x", "").replace("/", ""))
        tile = Tile(ENTRIES if level == "entries" else int(level), index, int(width) if width else HASH_TILE)
        if tile.level <= MAX_LEVEL and index <= MAX_INDEX and 1 <= tile.width <= HASH_TILE and tile.path == path:
            return tile
    raise UsageError(f"{path[:80]!r} is not the path of a tile", hint="tile/<L>/<N>[.p/<W>], as in tile/0/x001/234.p/5")


def entry_bundle(entries: Sequence[bytes]) -> bytes:
    """The bytes of a bundle of at most 256 entries (tlog-tiles, "Log entries").

    Raises:
        UsageError: there are none or too many, or one is larger than 65,535 bytes.
    """
    if not 1 <= len(entries) <= HASH_TILE:
        raise UsageError(f"an entry bundle has 1 to {HASH_TILE} entries, not {len(entries)}")
    largest = max(map(len, entries))
    if largest > MAX_ENTRY:
        raise UsageError(
            f"an entry of {largest} bytes does not fit a bundle, the limit is {MAX_ENTRY}",
            hint="store the bytes as an object and log the leaf that binds its digest",
        )
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def read_bundle(data: bytes, width: int) -> list[bytes]:
    """The entries of a bundle, which are `width`.

    Raises:
        LogTampered: it is cut short, or has more or fewer entries.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < width:
        size = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + size]
        if at + 2 > len(data) or len(entry) != size:
            raise LogTampered(f"an entry bundle of {width} is cut short in entry {len(entries)}")
        entries.append(entry)
        at += 2 + size
    if len(entries) != width or at != len(data):
        raise LogTampered(f"an entry bundle of {width} has {len(entries)} entries and {len(data) - at} bytes more")
    return entries


def read_hashes(data: bytes, width: int) -> list[bytes]:
    """The hashes of a tile, which are `width`.

    Raises:
        LogTampered: there are more or fewer.
    """
    if len(data) != width * HASH_SIZE:
        raise LogTampered(f"a tile of {width} hashes has {len(data)} bytes, expected {width * HASH_SIZE}")
    return [data[i : i + HASH_SIZE] for i in range(0, len(data), HASH_SIZE)]


def tiles_for(old: int, new: int) -> Iterator[Tile]:
    """The tiles that the tree of `new` leaves has and that of `old` has not: bundles first, then upwards."""
    for level in range(ENTRIES, MAX_LEVEL + 1):
        shift = HEIGHT * max(level, 0)
        before, after = old >> shift, new >> shift
        if after == 0:
            return
        if before < after:
            for index in range(before // HASH_TILE, -(-after // HASH_TILE)):
                yield Tile(level, index, min(HASH_TILE, after - index * HASH_TILE))


def tile_of(size: int, level: int, index: int) -> Tile:
    """The tile at a place as it is in the tree of `size` leaves.

    Raises:
        UsageError: that tree has no such tile.
    """
    width = min(HASH_TILE, (size >> (HEIGHT * max(level, 0))) - index * HASH_TILE)
    if width < 1:
        raise UsageError(f"a tree of {size} has no tile {index} of level {level}")
    return Tile(level, index, width)


def node_hash(read: TileReader, size: int, level: int, index: int) -> bytes:
    """The hash of the inner node `index`, `level` above the leaves, whose subtree is whole in the tree of `size`.

    Raises:
        UsageError: that tree has no such node.
        LogTampered: a tile has the wrong length.
    """
    tile_level, within = divmod(level, HEIGHT)
    first = index << within
    tile = tile_of(size, tile_level, first // HASH_TILE)
    start = first % HASH_TILE
    if start + (1 << within) > tile.width:
        raise UsageError(f"a tree of {size} has no whole node {index} at level {level}")
    hashes = read_hashes(read(tile), tile.width)
    return merkle.root(hashes[start : start + (1 << within)])


def nodes(read: TileReader, size: int) -> merkle.Nodes:
    """The nodes of the tree of `size`, read from tiles: what merkle's proofs are made of."""
    return lambda level, index: node_hash(read, size, level, index)


def tiles_from_hashes(hashes: Callable[[int, int], bytes], tile: Tile) -> bytes:
    """The bytes of a hash tile from a function (level above the leaves, index) → node hash."""
    first = tile.index * HASH_TILE
    return b"".join(hashes(tile.level * HEIGHT, i) for i in range(first, first + tile.width))
