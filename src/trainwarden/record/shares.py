"""Fingerprints of parts as numbers: added up, combined over names, masked (pure, without torch).

`record.linear` computes them. A rank tells its share of the whole state's fingerprint; the watcher adds a mask that no
rank knows before it logs it, so that the log gives nobody equations for the keys. Who holds the mask's key takes the
masks off and adds up: the shares of all ranks are the fingerprint of the whole, however it was cut.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from blake3 import blake3

ACCUMULATORS = 4
MASK64 = (1 << 64) - 1
_FORM = struct.Struct(f"<{ACCUMULATORS}Q")

Sum = tuple[int, int, int, int]
NOTHING: Sum = (0, 0, 0, 0)


def add(sums: Iterable[Sum]) -> Sum:
    """The fingerprint of what these are the parts of."""
    a = b = c = d = 0
    for one in sums:
        a, b, c, d = a + one[0], b + one[1], c + one[2], d + one[3]
    return a & MASK64, b & MASK64, c & MASK64, d & MASK64


def combined(key: bytes, sums: Iterable[tuple[str, Sum]]) -> Sum:
    """One fingerprint of many tensors by name, in any order; of parts of each, a part of the whole one."""
    found: list[Sum] = []
    for name, one in sums:
        a, b, c, d = _FORM.unpack(blake3(f"tensor {name}".encode(), key=key).digest(_FORM.size))
        found.append((a * one[0] & MASK64, b * one[1] & MASK64, c * one[2] & MASK64, d * one[3] & MASK64))
    return add(found)


def packed(one: Sum) -> bytes:
    """A fingerprint as 32 bytes."""
    return _FORM.pack(*one)


def unpacked(data: bytes) -> Sum:
    """The fingerprint in 32 bytes. Raises ValueError when they are not as many."""
    if len(data) != _FORM.size:
        raise ValueError(f"a fingerprint of {len(data)} bytes")
    a, b, c, d = _FORM.unpack(data)
    return a, b, c, d


def masked(key: bytes, place: str, one: Sum) -> Sum:
    """A share with the mask of its place added; `key` is one that no rank is given."""
    return add([one, _mask(key, place)])


def unmasked(key: bytes, place: str, one: Sum) -> Sum:
    """What `masked` was given."""
    a, b, c, d = _mask(key, place)
    return add([one, (-a & MASK64, -b & MASK64, -c & MASK64, -d & MASK64)])


def _mask(key: bytes, place: str) -> Sum:
    return unpacked(blake3(f"mask {place}".encode(), key=key).digest(_FORM.size))
