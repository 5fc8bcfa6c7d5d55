"""The order in which PyTorch's own samplers hand out a data set, re-derived without the rank's PyTorch.

Rules
-----
* The generator is the standard library's Mersenne Twister (Matsumoto and Nishimura 1998), started from PyTorch's
  seeding; the shuffle is that of `aten/src/ATen/native/TensorFactories.cpp` (`randperm_cpu`). The tests compare every
  bit with PyTorch's own.
* Permutations grow as they are asked for, so an epoch that is left early costs what was looked at.
"""

from __future__ import annotations

import random
import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_SAMPLES = 1 << 24  # of a data set whose order is re-derived: 64 MiB a permutation
_WORDS = 624
_OPEN = 4  # permutations kept
_STATE = struct.Struct("<QiiQ624Q")  # at::mt19937 within the state of a CPU generator (CPUGeneratorImpl.cpp)

At = Callable[[int], int]


def seeded(seed: int) -> random.Random:
    """A generator whose 32-bit words are those of `torch.Generator().manual_seed(seed)`."""
    words = [seed & 0xFFFFFFFF]
    for i in range(1, _WORDS):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + i) & 0xFFFFFFFF)
    return _from_words(words, _WORDS)


def from_state(state: bytes) -> random.Random:
    """A generator that goes on where a CPU generator of PyTorch with this state stands (`Generator.get_state`).

    Raises:
        ValueError: these bytes are no such state.
    """
    if len(state) < _STATE.size:
        raise ValueError(f"{len(state)} bytes are no state of a generator")
    _, left, _, following, *words = _STATE.unpack_from(state)
    place = _WORDS if left == 1 else following
    if not 0 <= place <= _WORDS or max(words) >> 32:
        raise ValueError("the state of a generator does not hold together")
    return _from_words(words, place)


def initial_seed(state: bytes) -> int:
    """The seed that a generator with this state was last given."""
    return int.from_bytes(state[:8], "little")


def _from_words(words: list[int], place: int) -> random.Random:
    generator = random.Random()
    generator.setstate((3, (*words, place), None))
    return generator


def drawn_seed(generator: random.Random) -> int:
    """What `torch.empty((), dtype=torch.int64).random_()` draws: RandomSampler's seed where it has no generator."""
    high, low = generator.getrandbits(32), generator.getrandbits(32)
    return (high << 32 | low) & ((1 << 63) - 1)


@dataclass
class Permutation:
    """`torch.randperm(n, generator=…)`, as far as it was asked for."""

    n: int
    generator: random.Random
    _places: array[int] = field(init=False)
    _done: int = 0

    def __post_init__(self) -> None:
        self._places = array("I", range(self.n))

    def __getitem__(self, place: int) -> int:
        while self._done <= place:
            self._extend(min(self.n, max(place + 1, self._done + 1024)))
        return self._places[place]

    def _extend(self, to: int) -> None:
        places, n, bits = self._places, self.n, self.generator.getrandbits
        for i in range(self._done, to):
            if i < n - 1:  # the last one draws nothing
                other = i + bits(32) % (n - i)
                places[i], places[other] = places[other], places[i]
        self._done = to


class Permutations:
    """The few permutations in use: ranks of one epoch share theirs."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[int, object], Permutation] = OrderedDict()

    def of_seed(self, n: int, seed: int) -> Permutation:
        """`torch.randperm(n)` after `manual_seed(seed)`."""
        return self._kept((n, seed), lambda: seeded(seed))

    def of_state(self, n: int, state: bytes) -> Permutation:
        """`torch.randperm(n)` of a generator with this state. Raises ValueError when it is none."""
        return self._kept((n, state), lambda: from_state(state))

    def _kept(self, key: tuple[int, object], generator: Callable[[], random.Random]) -> Permutation:
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = Permutation(key[0], generator())
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return found


def distributed(n: int, replicas: int, rank: int, drop_last: bool, order: At) -> tuple[int, At]:
    """How many samples a `DistributedSampler` hands to `rank`, and which one is at a place of its part."""
    each = -(-(n - replicas) // replicas) if drop_last and n % replicas else -(-n // replicas)
    return each, lambda place: order((rank + place * replicas) % n)
