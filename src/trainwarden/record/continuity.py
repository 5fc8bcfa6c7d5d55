"""Are the weights still what the last update left? Looked at again before each step, up to a budget, in turns."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, TypeAlias

from trainwarden.record.fingerprint import stage_root, tensor_digests

CONTINUITY_BYTES = 8 << 20  # weights looked at again before each step; bigger models are looked at in turns
FOUND_KEPT = 32  # weights found changed that a record names; its root covers all

LeftWeights: TypeAlias = tuple[tuple[str, ...], list[bytes], list[weakref.ref[Any]]]
"""The names, digests and tensors of the weights that an update left, in one order."""


def look_again(key: bytes, left: LeftWeights, turn: int) -> tuple[str, dict[str, str]]:
    """The root over the weights with those of this turn digested anew, and the new digests of those that changed."""
    names, digests, references = left
    weights = [r() for r in references]
    fresh = list(digests)
    shares = in_turns([0 if p is None else p.nbytes for p in weights])
    looked = [(i, p) for i in shares[turn % len(shares)] if (p := weights[i]) is not None]
    for (i, _), digest in zip(looked, tensor_digests(key, [p for _, p in looked]), strict=True):
        fresh[i] = digest
    changed = ((n, new.hex()) for n, old, new in zip(names, digests, fresh, strict=True) if new != old)
    return stage_root(key, names, fresh), dict(itertools.islice(changed, FOUND_KEPT)) if fresh != digests else {}


def in_turns(sizes: list[int]) -> list[range]:
    """Neighbouring tensors, cut into shares of at most `CONTINUITY_BYTES` each (a bigger tensor is one share)."""
    cuts, held = [0], 0
    for i, size in enumerate(sizes):
        if held and held + size > CONTINUITY_BYTES:
            cuts.append(i)
            held = 0
        held += size
    return [range(a, b) for a, b in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]
