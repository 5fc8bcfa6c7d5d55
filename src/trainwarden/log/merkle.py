"""Merkle trees over hashed leaves: roots, proofs of inclusion and of consistency. Pure: hashes in, verdict out.

Rules
-----
* Hashing is RFC 6962, section 2.1 (kept by RFC 9162): SHA-256, leaves prefixed 0x00 and inner nodes 0x01, so
  that a leaf never passes for a node.
* Every function but `leaf_hash` takes leaf *hashes*, never the leaves.
* A check returns nothing or raises `LogTampered` with both values: there is no boolean to forget.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from trainwarden.errors import LogTampered

HASH_SIZE = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

# The hash of the node (levels above the leaves, index) of a tree; asked only of nodes whose subtree is whole.
Nodes: TypeAlias = Callable[[int, int], bytes]


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier(msgspec.Struct, frozen=True):
    """All that is needed of a tree to append to it and to know its root: the roots of its perfect subtrees.

    `peaks[0]` is the largest; there is one for each bit of `size` that is set.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def extend(self, hashes: Iterable[bytes]) -> Frontier:
        """The tree with these leaf hashes appended, O(1) on average for each."""
        size, peaks = self.size, list(self.peaks)
        for h in hashes:
            bits = size
            while bits & 1:
                h = node_hash(peaks.pop(), h)
                bits >>= 1
            peaks.append(h)
            size += 1
        return Frontier(size, tuple(peaks))

    def root(self) -> bytes:
        """The root over all leaves appended so far."""
        if not self.peaks:
            return EMPTY_ROOT
        *rest, h = self.peaks
        for peak in reversed(rest):
            h = node_hash(peak, h)
        return h


class Tree:
    """A growing tree with all its perfect subtrees kept: a proof costs O(log² n) hashes at most."""

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        self.extend(hashes)

    @property
    def size(self) -> int:
        return len(self._levels[0])

    def extend(self, hashes: Iterable[bytes]) -> None:
        """Append leaf hashes."""
        self._levels[0].extend(hashes)
        for depth, below in enumerate(self._levels):
            if len(below) < 2:
                return
            if depth + 1 == len(self._levels):
                self._levels.append([])
            level = self._levels[depth + 1]
            for i in range(len(level), len(below) // 2):
                level.append(node_hash(below[2 * i], below[2 * i + 1]))

    def leaf(self, index: int) -> bytes:
        """The hash of leaf `index`."""
        return self._levels[0][index]

    def node(self, level: int, index: int) -> bytes:
        """The hash of the node `index`, `level` above the leaves."""
        return self._levels[level][index]

    def root(self, size: int | None = None) -> bytes:
        """The root of the tree as it was when it had `size` leaves."""
        size = self.size if size is None else size
        return range_root(self.node, 0, self._within(size))

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """The audit path of leaf `index` in the tree of `size` leaves (RFC 6962, 2.1.1).

        Raises:
            IndexError: there is no such leaf in that tree.
        """
        return inclusion_proof(self.node, index, self._within(self.size if size is None else size))

    def consistency_proof(self, old: int, size: int | None = None) -> list[bytes]:
        """The proof that the tree of `size` leaves begins with that of `old` (RFC 6962, 2.1.2).

        Raises:
            IndexError: the trees have no such sizes.
        """
        return consistency_proof(self.node, old, self._within(self.size if size is None else size))

    def _within(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise IndexError(f"a tree of {size} in a tree of {self.size}")
        return size


def range_root(node: Nodes, first: int, last: int) -> bytes:
    """The root over leaves `first … last-1`; `first` is a multiple of a power of two ≥ their number."""
    peaks: list[bytes] = []
    while first < last:
        depth = (last - first).bit_length() - 1
        peaks.append(node(depth, first >> depth))
        first += 1 << depth
    if not peaks:
        return EMPTY_ROOT
    h = peaks.pop()
    while peaks:
        h = node_hash(peaks.pop(), h)
    return h


def inclusion_proof(node: Nodes, index: int, size: int) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `size` leaves (RFC 6962, 2.1.1).

    Raises:
        IndexError: there is no such leaf in that tree.
    """
    if not 0 <= index < size:
        raise IndexError(f"leaf {index} of a tree of {size}")
    first, last, path = 0, size, []
    while last - first > 1:
        middle = first + _split(last - first)
        if index < middle:
            path.append(range_root(node, middle, last))
            last = middle
        else:
            path.append(range_root(node, first, middle))
            first = middle
    return path[::-1]


def consistency_proof(node: Nodes, old: int, size: int) -> list[bytes]:
    """The proof that the tree of `size` leaves begins with that of `old` (RFC 6962, 2.1.2).

    Raises:
        IndexError: the trees have no such sizes.
    """
    if not 0 <= old <= size:
        raise IndexError(f"tree of {old} before a tree of {size}")
    if old in (0, size):
        return []
    first, last, path = 0, size, []
    while last != old:
        middle = first + _split(last - first)
        if old <= middle:
            path.append(range_root(node, middle, last))
            last = middle
        else:
            path.append(range_root(node, first, middle))
            first = middle
    if first:  # the old tree is not one perfect subtree on the left edge: its last part starts the proof
        path.append(range_root(node, first, last))
    return path[::-1]


def root(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes (RFC 6962, 2.1)."""
    return Frontier().extend(hashes).root()


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash `leaf` is at `index` in the tree of that size and root (RFC 9162, 2.1.3.2).

    Raises:
        LogTampered: the proof does not lead to the root.
    """
    if not 0 <= index < size:
        raise LogTampered(f"no leaf {index} can be in a tree of {size}")
    node, last, h = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LogTampered(f"the inclusion proof of leaf {index} in a tree of {size} is too long: {len(proof)}")
        if node & 1 or node == last:
            h = node_hash(sibling, h)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            h = node_hash(h, sibling)
        node, last = node >> 1, last >> 1
    if last or h != root:
        raise LogTampered(f"leaf {index} is not in the tree of {size}: root {root.hex()}, proven {h.hex()}")


def verify_consistency(old: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes) -> None:
    """Check that the tree of `size` leaves only appends to that of `old` (RFC 9162, 2.1.4.2).

    Raises:
        LogTampered: the proof does not lead to both roots.
    """
    if not 0 <= old <= size:
        raise LogTampered(f"a tree of {size} leaves cannot continue one of {old}")
    if old in (0, size):
        expected = EMPTY_ROOT if old == 0 else root
        if proof or old_root != expected:
            raise LogTampered(
                f"trees of {old} and {size} leaves: root {old_root.hex()}, expected {expected.hex()}; "
                f"a proof of {len(proof)} hashes, expected none"
            )
        return
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        raise LogTampered(f"the consistency proof from {old} to {size} is empty")
    node, last = old - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise LogTampered(f"the consistency proof from {old} to {size} is too long: {len(proof)}")
        if node & 1 or node == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        node, last = node >> 1, last >> 1
    if last or before != old_root or after != root:
        raise LogTampered(
            f"the tree of {size} leaves does not continue that of {old}: "
            f"roots {old_root.hex()} → {root.hex()}, proven {before.hex()} → {after.hex()}"
        )


def _split(n: int) -> int:
    """The largest power of two below `n`."""
    return 1 << ((n - 1).bit_length() - 1)
