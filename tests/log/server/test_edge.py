"""The right edge gives the tiles and the root of the whole tree, however the entries come."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogTampered
from trainwarden.log import merkle, tiles
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.server.edge import Edge, grow, read_edge
from trainwarden.log.tiles import ENTRIES, Tile


def entries_of(count: int) -> list[bytes]:
    return [b"entry %d" % i for i in range(count)]


def test_the_root_is_that_of_the_tree_at_every_size() -> None:
    edge, frontier = Edge(), merkle.Frontier()
    assert edge.root() == merkle.EMPTY_ROOT
    for entry in entries_of(600):
        edge, _ = grow(edge, [entry])
        frontier = frontier.extend([leaf_hash(entry)])
        assert edge.frontier() == frontier


@given(st.lists(st.integers(0, 700), min_size=1, max_size=6))
@example([255, 1, 1])
@example([256, 256])
@example([65_535, 1, 300])
@settings(max_examples=15, deadline=None)
def test_batches_make_exactly_the_tiles_that_the_format_names(batches: list[int]) -> None:
    whole = entries_of(sum(batches))
    tree = merkle.Tree(map(leaf_hash, whole))
    edge, files = Edge(), dict[Tile, bytes]()
    for count in batches:
        before = edge.size
        edge, made = grow(edge, whole[before : before + count])
        assert sorted(t for t, _ in made) == sorted(tiles.tiles_for(before, edge.size))
        files.update(made)
        assert edge.root() == tree.root(edge.size)
        assert read_edge(files.__getitem__, edge.size) == edge
    for tile, data in files.items():
        if tile.level == ENTRIES:
            first = tile.index * tiles.HASH_TILE
            assert tiles.read_bundle(data, tile.width) == whole[first : first + tile.width]
        else:
            assert data == tiles.tiles_from_hashes(tree.node, tile)


def test_an_edge_of_tiles_with_the_wrong_form_is_refused() -> None:
    _, made = grow(Edge(), entries_of(3))
    files = {tile: data[:-1] for tile, data in made}
    with pytest.raises(LogTampered):
        read_edge(files.__getitem__, 3)
