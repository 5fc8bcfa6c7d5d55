"""Tiles: one path for each, the tiles of every tree, and proofs from tiles that are those of the tree itself."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogTampered, UsageError
from trainwarden.log import merkle
from trainwarden.log.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion
from trainwarden.log.tiles import (
    ENTRIES,
    HASH_TILE,
    MAX_ENTRY,
    Tile,
    entry_bundle,
    node_hash,
    nodes,
    parse_tile_path,
    read_bundle,
    read_hashes,
    tile_of,
    tile_path,
    tiles_for,
    tiles_from_hashes,
)

MOST = 300
TREE = Tree(leaf_hash(b"%d" % i) for i in range(70_000))


def served(tile: Tile) -> bytes:
    """A tile of `TREE`, which begins every smaller tree."""
    return tiles_from_hashes(TREE.node, tile)


# From the text of tlog-tiles and the tests of golang.org/x/mod/sumdb/tlog (there with a height in the path).
@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(4, 123), "tile/4/123"),
        (Tile(4, 1234, 5), "tile/4/x001/234.p/5"),
        (Tile(ENTRIES, 1234067, 255), "tile/entries/x001/x234/067.p/255"),
        (Tile(63, 999), "tile/63/999"),
        (Tile(2, 1000, 1), "tile/2/x001/000.p/1"),
    ],
)
def test_the_published_paths(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert parse_tile_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile",
        "tile/0",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/00/000",
        "tile/01/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/+1/000",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/x001",
        "tile/0/x001/x002",
        "tile/0/X001/002",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/",
        "tile/0/000.p",
        "tile/0/000.p/-1",
        "tile/0/000/",
        "/tile/0/000",
        "tile//0/000",
        "tile/0/000\n",
        "tile/0/000 ",
        "tile/0/../000",
        "tile/data/000",
        "tile/Entries/000",
        "tile/8/0/000",
        "tile/0/\u0660\u0660\u0660",
        "tile/\u0661/000",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
        "tile/0/x001/" * 400,
    ],
)
def test_a_path_has_one_way_to_be_written(path: str) -> None:
    with pytest.raises(UsageError, match="not the path of a tile"):
        parse_tile_path(path)


@pytest.mark.parametrize("place", [(-2, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), (0, (1 << 62) + 1, 1)])
def test_what_is_no_tile_has_no_path(place: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="no tile"):
        tile_path(*place)


@settings(max_examples=150, deadline=None)
@given(st.integers(-1, 63), st.integers(0, 1 << 62), st.integers(1, 256))
def test_every_tile_comes_back_from_its_path(level: int, index: int, width: int) -> None:
    assert parse_tile_path(tile_path(level, index, width)) == Tile(level, index, width)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"tile/(entries|\d{1,3})/(x?\d{1,4}/){0,4}\d{1,4}(\.p/\d{1,4})?")))
@example("tile/0/000.p/1\n")
def test_any_path_names_the_tile_that_writes_it_or_none(path: str) -> None:
    try:
        tile = parse_tile_path(path)
    except UsageError:
        return
    assert tile.path == path


def test_the_tiles_of_the_published_trees() -> None:
    found = [tile for tile in tiles_for(0, 70_000) if tile.level >= 0]
    assert sum(tile == tile.full() for tile in found if tile.level == 0) == 273
    assert [tile for tile in found if tile != tile.full()] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert Tile(1, 0) in found
    assert list(tiles_for(0, 256)) == [Tile(-1, 0), Tile(0, 0), Tile(1, 0, 1)]
    assert list(tiles_for(0, 0)) == []


def test_growing_adds_exactly_the_tiles_that_changed() -> None:
    sizes = [*range(0, 20), *range(250, 262), *range(508, 516), 65_535, 65_536, 65_537, 65_792, 70_000]
    for old in sizes:
        for new in sizes:
            expected = set(tiles_for(0, new)) - set(tiles_for(0, old)) if old <= new else set()
            assert set(tiles_for(old, new)) == expected
            for tile in expected:
                assert tile_of(new, tile.level, tile.index) == tile


@cache
def naive(first: int, last: int) -> bytes:
    """MTH of RFC 6962, 2.1, over leaves first … last-1, word for word."""
    if last - first == 1:
        return leaf_hash(b"%d" % first)
    middle = first + (1 << ((last - first - 1).bit_length() - 1))
    return hashlib.sha256(b"\x01" + naive(first, middle) + naive(middle, last)).digest()


def test_a_tile_holds_the_hashes_that_the_specification_says() -> None:
    for tile in tiles_for(0, 70_000):
        if tile.level > 0:  # MTH(D[(n * 256 + i) * 256**l : (n * 256 + i + 1) * 256**l])
            span = 256**tile.level
            first = tile.index * 256
            expected = [naive((first + i) * span, (first + i + 1) * span) for i in range(tile.width)]
            assert read_hashes(served(tile), tile.width) == expected


def test_proofs_from_tiles_convince_at_all_sizes_to_300() -> None:
    for size in range(MOST + 1):
        node = cache(nodes(served, size))
        root = merkle.range_root(node, 0, size)
        assert root == TREE.root(size)
        for index in range(0, size, max(1, size // 12)):
            proof = merkle.inclusion_proof(node, index, size)
            verify_inclusion(TREE.leaf(index), index, size, proof, root)
        for old in range(0, size + 1, max(1, size // 12)):
            proof = merkle.consistency_proof(node, old, size)
            verify_consistency(old, size, proof, TREE.root(old), root)


@cache
def lazy(level: int, index: int) -> bytes:
    """A node of a tree of any size whose every 64k-th subtree of height 6 is the same: never built whole."""
    if level <= 6:
        return naive(index % (1 << (6 - level)) << level, (index % (1 << (6 - level)) + 1) << level)
    return merkle.node_hash(lazy(level - 1, 2 * index), lazy(level - 1, 2 * index + 1))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_proofs_from_tiles_convince_at_random_sizes_to_a_million(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 10**6))
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    asked: list[Tile] = []

    def read(tile: Tile) -> bytes:
        asked.append(tile)
        return tiles_from_hashes(lazy, tile)

    node = nodes(read, size)
    root = merkle.range_root(lazy, 0, size)
    verify_inclusion(lazy(0, index), index, size, merkle.inclusion_proof(node, index, size), root)
    before = merkle.range_root(lazy, 0, old)
    verify_consistency(old, size, merkle.consistency_proof(node, old, size), before, root)
    assert set(asked) <= set(tiles_for(0, size)), "only tiles that the tree has"


def test_a_node_that_is_not_whole_is_not_made_up() -> None:
    with pytest.raises(UsageError, match="no whole node"):
        node_hash(served, 3, 1, 1)
    with pytest.raises(UsageError, match="no tile"):
        node_hash(served, 256, 0, 256)


def test_a_tile_of_another_length_is_refused() -> None:
    for data in (b"", bytes(31), bytes(64)):
        with pytest.raises(LogTampered, match="expected 32"):
            node_hash(lambda tile, data=data: data, 1, 0, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_a_bundle_gives_back_its_entries(entries: list[bytes]) -> None:
    assert read_bundle(entry_bundle(entries), len(entries)) == entries


def test_the_bytes_of_a_bundle() -> None:
    assert entry_bundle([b"ab", b"", b"c" * 258]) == b"\x00\x02ab" + b"\x00\x00" + b"\x01\x02" + b"c" * 258
    assert len(entry_bundle([bytes(MAX_ENTRY)])) == 2 + MAX_ENTRY


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 256))
@example(b"\x00", 1)
@example(b"\x00\x01", 1)
@example(b"\x00\x00\x00\x00", 1)
def test_any_bytes_are_the_one_bundle_of_their_entries_or_refused(data: bytes, width: int) -> None:
    try:
        entries = read_bundle(data, width)
    except LogTampered:
        return
    assert entry_bundle(entries) == data


def test_an_entry_that_does_not_fit_and_a_bundle_of_another_width_are_refused() -> None:
    with pytest.raises(UsageError, match="65536 bytes"):
        entry_bundle([bytes(MAX_ENTRY + 1)])
    for wrong in ([], [b""] * (HASH_TILE + 1)):
        with pytest.raises(UsageError, match="1 to 256"):
            entry_bundle(wrong)
