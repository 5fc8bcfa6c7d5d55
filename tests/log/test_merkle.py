"""Merkle trees: the reference roots, and proofs that convince exactly when they should."""

from __future__ import annotations

import base64
from functools import cache

import published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogTampered
from trainwarden.log.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)
from trainwarden.log.notes import verify_head
from trainwarden.log.vkeys import ED25519, parse_vkey

# The reference inputs, roots and inner hashes published with Certificate Transparency (RFC 6962 hashing).
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
H = {
    h[:6]: h
    for h in (
        *ROOTS,
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    )
}
LEAVES = [leaf_hash(bytes.fromhex(x)) for x in INPUTS]
MOST = 300


@cache
def big(size: int = 10_000) -> Tree:
    return Tree(leaf_hash(b"%d" % i) for i in range(size))


def naive_root(hashes: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not hashes:
        return EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return node_hash(naive_root(hashes[:k]), naive_root(hashes[k:]))


@pytest.mark.parametrize("size", range(9))
def test_reference_roots(size: int) -> None:
    assert root(LEAVES[:size]).hex() == ROOTS[size]
    assert Tree(LEAVES).root(size).hex() == ROOTS[size]


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [
        (0, 1, []),
        (0, 8, ["96a296", "5f083f", "6b47aa"]),
        (5, 8, ["bc1a06", "ca854e", "d37ee4"]),
        (2, 3, ["fac542"]),
        (1, 5, ["6e340b", "5f083f", "bc1a06"]),
    ],
)
def test_reference_inclusion_proofs(index: int, size: int, path: list[str]) -> None:
    assert [h.hex() for h in Tree(LEAVES).inclusion_proof(index, size)] == [H[p] for p in path]


@pytest.mark.parametrize(
    ("old", "size", "path"),
    [
        (1, 1, []),
        (1, 8, ["96a296", "5f083f", "6b47aa"]),
        (6, 8, ["0ebc5d", "ca854e", "d37ee4"]),
        (2, 5, ["5f083f", "bc1a06"]),
    ],
)
def test_reference_consistency_proofs(old: int, size: int, path: list[str]) -> None:
    assert [h.hex() for h in Tree(LEAVES).consistency_proof(old, size)] == [H[p] for p in path]


def test_every_inclusion_in_every_tree_up_to_300() -> None:
    tree = big()
    for size in range(1, MOST + 1):
        whole = tree.root(size)
        for index in range(size):
            verify_inclusion(tree.leaf(index), index, size, tree.inclusion_proof(index, size), whole)


def test_every_consistency_between_trees_up_to_300() -> None:
    tree = big()
    roots = [tree.root(size) for size in range(MOST + 1)]
    for size in range(MOST + 1):
        for old in range(size + 1):
            verify_consistency(old, size, tree.consistency_proof(old, size), roots[old], roots[size])


def test_roots_of_all_sizes_are_those_of_the_rfc_in_every_way_to_make_them() -> None:
    tree, frontier = big(), Frontier()
    for size in range(MOST + 1):
        assert frontier.root() == tree.root(size) == naive_root([tree.leaf(i) for i in range(size)])
        frontier = frontier.extend([tree.leaf(size)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12))
def test_a_tree_does_not_depend_on_how_it_was_fed(parts: list[int]) -> None:
    tree, frontier, at = Tree(), Frontier(), 0
    for part in parts:
        hashes = [big().leaf(i) for i in range(at, at + part)]
        at += part
        tree.extend(hashes)
        frontier = frontier.extend(hashes)
        assert frontier.size == tree.size == at
        assert frontier.root() == tree.root() == big().root(at)


sizes = st.integers(1, 10_000)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.data())
def test_random_inclusions_hold_and_any_changed_part_breaks_them(a: int, b: int, data: st.DataObject) -> None:
    tree, (index, size) = big(), (min(a, b) - 1, max(a, b))
    proof, whole, leaf = tree.inclusion_proof(index, size), tree.root(size), tree.leaf(index)
    verify_inclusion(leaf, index, size, proof, whole)
    broken = [
        (leaf_hash(leaf), index, size, proof, whole),
        (leaf, index, size, proof, leaf_hash(whole)),
        (leaf, index, size, [*proof, leaf], whole),
        (leaf, size, size, proof, whole),
        (leaf, -1, size, proof, whole),
    ]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        flipped = bytearray(proof[at])
        flipped[bit // 8] ^= 1 << bit % 8
        broken.append((leaf, index, size, [*proof[:at], bytes(flipped), *proof[at + 1 :]], whole))
        broken.append((leaf, index, size, proof[:-1], whole))
        broken.append((leaf, index ^ 1, size, proof, whole))
    for args in broken:
        with pytest.raises(LogTampered):
            verify_inclusion(*args)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.data())
def test_random_consistencies_hold_and_any_changed_part_breaks_them(a: int, b: int, data: st.DataObject) -> None:
    tree, (old, size) = big(), (min(a, b), max(a, b))
    proof, before, after = tree.consistency_proof(old, size), tree.root(old), tree.root(size)
    verify_consistency(old, size, proof, before, after)
    broken = [
        (old, size, proof, leaf_hash(before), after),
        (old, size, proof, before, leaf_hash(after)),
        (old, size, [*proof, before], before, after),
        (size + 1, size, proof, before, after),
    ]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        broken.append((old, size, [*proof[:at], leaf_hash(proof[at]), *proof[at + 1 :]], before, after))
        broken.append((old, size, proof[:-1], before, after))
        broken.append((old, size, [], before, after))
    for args in broken:
        with pytest.raises(LogTampered):
            verify_consistency(*args)


def test_nothing_is_consistent_with_another_empty_tree() -> None:
    verify_consistency(0, 5, [], EMPTY_ROOT, big().root(5))
    with pytest.raises(LogTampered):
        verify_consistency(0, 5, [], big().root(1), big().root(5))


def test_a_leaf_that_looks_like_a_node_has_another_hash() -> None:
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (0, 0), (0, 10_001)])
def test_proofs_of_what_is_not_there_are_refused(index: int, size: int) -> None:
    with pytest.raises(IndexError):
        big().inclusion_proof(index, size)
    with pytest.raises(IndexError):
        big().consistency_proof(size + 1, size)


def test_an_entry_of_sigstores_public_log_is_proven_under_its_signed_head() -> None:
    key = parse_vkey(published.REKOR_VKEY, ED25519)
    head = verify_head(published.REKOR_HEAD.encode(), key.public, key.name)
    proof, top = [base64.b64decode(h) for h in published.REKOR_PROOF], bytes.fromhex(head.root)
    leaf = leaf_hash(published.REKOR_ENTRY)
    verify_inclusion(leaf, published.REKOR_INDEX, head.size, proof, top)
    for index, size, changed in (
        (published.REKOR_INDEX - 1, head.size, leaf),
        (published.REKOR_INDEX, head.size - 1, leaf),
        (published.REKOR_INDEX, head.size, leaf_hash(published.REKOR_ENTRY + b" ")),
    ):
        with pytest.raises(LogTampered):
            verify_inclusion(changed, index, size, proof, top)
