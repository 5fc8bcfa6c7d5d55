"""A keyed linear fingerprint of a tensor: computed where the tensor lies, and the same however it is cut.

Rules
-----
* F_a = Σ_i b[a, i div B]·k[a, i mod B]·x_i mod 2^64 over the tensor's 32-bit words x in row-major order, for four
  accumulators a; an element below four bytes is one word. Whatever holds a part of a tensor adds up its own words at
  their places in the whole: the sums of all parts, at any cut and in any order, are the sum of the whole.
* Two tensors of one dtype and shape that differ have one fingerprint with probability ≤ 2^-115 over the keys (product
  keys, each accumulator ≤ 17.5·2^-33). Words and not 64-bit lanes: in those a sign flip is a multiple of 2^63, which
  every even key hides.
* The keys are drawn from the run's key by BLAKE3 as an extendable output. Whoever knows them finds another tensor with
  the same fingerprint in no time, and so might whoever sees many fingerprints in the clear: they are logged masked, or
  under a keyed hash (docs/threat-model.md says what a rank that holds the key can do with it).
* Plain tensor operations, so it runs on whatever device torch does; only 32 bytes a tensor come to the host.
Source: multilinear universal hashing (J. L. Carter, M. N. Wegman, 1979; D. Lemire, O. Kaser, 2012).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from blake3 import blake3

from trainwarden.record.fingerprint import own_part
from trainwarden.record.shares import ACCUMULATORS, MASK64, NOTHING, Sum, combined

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS_A_ROW = 1 << 14
_ROWS_AT_ONCE = {"cpu": 8}  # of 64-bit products, 128 KiB each: they stay in the cache
_ROWS_AT_ONCE_ELSEWHERE = 128
_PLACES_AT_ONCE = 1 << 18
_ROWS_STEP = 1 << 10  # keys of rows are drawn so many at a time
_VIEWS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}


class Place(NamedTuple):
    """Where a part lies in its whole: the first index of each dimension, and the whole's shape."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]


def place_of(tensor: torch.Tensor) -> Place | None:
    """Where this rank's shard of a DTensor lies; None for any other tensor.

    Raises:
        ValueError: it is not placed in one block (a sum over ranks that is still to come).
    """
    if not hasattr(tensor, "to_local"):
        return None
    mesh = tensor.device_mesh
    return _placed(mesh, tuple(mesh.get_coordinate() or ()), tuple(tensor.placements), tuple(tensor.shape))


@functools.lru_cache(maxsize=1 << 14)  # asked for every weight at every step, and slow
def _placed(mesh: Any, at: tuple[int, ...], placements: tuple[Any, ...], shape: tuple[int, ...]) -> Place:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(type(p) not in (Shard, Replicate) for p in placements):
        raise ValueError(f"placed as {placements}")
    if any(isinstance(p, Replicate) and c for c, p in zip(at, placements, strict=True)):
        return Place((), ())  # another rank holds the same: it is counted there
    _, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Place(tuple(offsets), shape)


def share_of(key: bytes, named: Sequence[tuple[str, torch.Tensor]], rank: int) -> Sum | None:
    """This rank's share of the fingerprint of all these tensors as wholes; None when none of them is sharded.

    What every rank holds whole is counted on rank 0.

    Raises:
        ValueError: a tensor is placed so that its parts cannot be told apart.
    """
    places = [place_of(t) for _, t in named]
    if all(place is None for place in places):
        return None
    mine = [(name, own_part(t.detach()), p) for (name, t), p in zip(named, places, strict=True) if p or not rank]
    sums = fingerprinter(key).sums([(t, p) for _, t, p in mine])
    return combined(key, zip((name for name, _, _ in mine), sums, strict=True))


class Fingerprinter:
    """Holds the keys, on every device where they are needed."""

    def __init__(self, key: bytes) -> None:
        self._key = blake3(b"linear fingerprint", key=key).digest()
        self._columns: dict[torch.device, torch.Tensor] = {}
        self._rows: dict[torch.device, torch.Tensor] = {}

    def sums(self, parts: Sequence[tuple[torch.Tensor, Place | None]]) -> list[Sum]:
        """The fingerprints of dense tensors, or of parts at their places; one transfer to the host for each device."""
        found: list[Sum] = [NOTHING] * len(parts)
        by_device: dict[torch.device, list[int]] = {}
        for i, (tensor, _) in enumerate(parts):
            by_device.setdefault(tensor.device, []).append(i)
        with torch.no_grad():
            for numbers in by_device.values():
                rows = torch.stack([self._sum(*parts[i]) for i in numbers]).tolist()
                for i, row in zip(numbers, rows, strict=True):
                    a, b, c, d = row
                    found[i] = a & MASK64, b & MASK64, c & MASK64, d & MASK64
        return found

    def _sum(self, tensor: torch.Tensor, place: Place | None) -> torch.Tensor:
        total = torch.zeros(ACCUMULATORS, dtype=torch.int64, device=tensor.device)
        if not tensor.numel() or place == Place((), ()):
            return total
        flat = tensor.detach().contiguous()
        each = max(1, flat.element_size() // 4)
        words = flat.view(-1).view(_VIEWS[flat.element_size()])
        if place is None:
            return total + self._run(words, 0)
        runs = _runs(tuple(tensor.shape), place)
        if len(runs.starts) == 1:
            return total + self._run(words, runs.starts[0] * each)
        for at in range(0, words.numel(), _PLACES_AT_ONCE):
            total += self._scattered(words[at : at + _PLACES_AT_ONCE], at, runs, each)
        return total

    def _run(self, words: torch.Tensor, first: int) -> torch.Tensor:
        """The sum of neighbouring words, the first of which is word `first` of the whole."""
        columns, rows = self._keys(words.device, (first + words.numel() - 1) // WORDS_A_ROW + 1)
        head = min(-first % WORDS_A_ROW, words.numel())
        whole = (words.numel() - head) // WORDS_A_ROW
        total = torch.zeros(ACCUMULATORS, dtype=torch.int64, device=words.device)
        if head:
            column = first % WORDS_A_ROW
            total += _row(words[:head], columns[:, column : column + head]) * rows[:, first // WORDS_A_ROW]
        row = (first + head) // WORDS_A_ROW
        at_once = _ROWS_AT_ONCE.get(words.device.type, _ROWS_AT_ONCE_ELSEWHERE)
        for r in range(0, whole, at_once):
            count = min(at_once, whole - r)
            block = words[head + r * WORDS_A_ROW :][: count * WORDS_A_ROW].view(count, WORDS_A_ROW)
            total += (row_sums(block.device)(block, columns) * rows[:, row + r : row + r + count]).sum(1)
        if rest := words.numel() - head - whole * WORDS_A_ROW:
            total += _row(words[-rest:], columns[:, :rest]) * rows[:, row + whole]
        return total

    def _scattered(self, words: torch.Tensor, at: int, runs: _Runs, each: int) -> torch.Tensor:
        """The sum of words at places that are computed one by one: `words` begin at word `at` of the part."""
        mine = torch.arange(at, at + words.numel(), device=words.device)
        element = mine // each
        starts = torch.tensor(runs.starts, dtype=torch.int64, device=words.device)
        places = (starts[element // runs.length] + element % runs.length) * each + mine % each
        columns, rows = self._keys(words.device, (runs.starts[-1] + runs.length) * each // WORDS_A_ROW + 1)
        keys = columns[:, places % WORDS_A_ROW] * rows[:, places // WORDS_A_ROW]
        return (keys * words).sum(1)

    def _keys(self, device: torch.device, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        columns = self._columns.get(device)
        if columns is None:
            columns = self._columns[device] = self._drawn("column", WORDS_A_ROW).to(device)
        held = self._rows.get(device)
        if held is None or held.shape[1] < rows:
            held = self._rows[device] = self._drawn("row", -(-rows // _ROWS_STEP) * _ROWS_STEP).to(device)
        return columns, held

    def _drawn(self, what: str, count: int) -> torch.Tensor:
        """`count` 64-bit keys for each accumulator; more of them begin with the same ones."""
        drawn = [blake3(f"{what} {a}".encode(), key=self._key).digest(8 * count) for a in range(ACCUMULATORS)]
        return torch.stack([torch.frombuffer(bytearray(keys), dtype=torch.int64) for keys in drawn])


@functools.lru_cache(maxsize=4)
def fingerprinter(key: bytes) -> Fingerprinter:
    """The fingerprinter of a run's key."""
    return Fingerprinter(key)


def _row(words: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return (columns * words).sum(1)


def plain_row_sums(block: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """accumulators × rows: the sum of each row of words under each accumulator's column keys."""
    wide = block.to(torch.int64)
    return torch.stack([(wide * column).sum(1) for column in columns])


@functools.cache
def row_sums(device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """`plain_row_sums`, on an accelerator as one kernel that reads each word once, where torch can build it there."""
    if device.type == "cpu":
        return plain_row_sums
    try:
        fused = fused_row_sums()
        probe = torch.arange(2 * WORDS_A_ROW, dtype=torch.int32, device=device).view(2, WORDS_A_ROW)
        columns = torch.arange(ACCUMULATORS * WORDS_A_ROW, device=device).view(ACCUMULATORS, WORDS_A_ROW)
        same = torch.equal(fused(probe, columns), plain_row_sums(probe, columns))
    except Exception:  # noqa: BLE001  no compiler for this device, or one that fails: the plain operations do the same
        return plain_row_sums
    return fused if same else plain_row_sums


def fused_row_sums() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """`plain_row_sums` as one kernel."""

    def sums(block: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return (columns[:, None, :] * block[None]).sum(2)

    fused: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.compile(sums, dynamic=True)
    return fused


class _Runs(NamedTuple):
    """A part as runs of neighbouring elements of the whole: where each starts, and how long all are."""

    starts: list[int]
    length: int


def _runs(shape: tuple[int, ...], place: Place) -> _Runs:
    """The runs of a block of this shape, in row-major order."""
    last = len(shape)
    while last > 0 and shape[last - 1] == place.shape[last - 1]:
        last -= 1
    # From dimension `last` on all of the whole is here: what lies one step further out is neighbouring too.
    outer = max(0, last - 1)
    strides = [math.prod(place.shape[d + 1 :]) for d in range(len(shape))]
    base = sum(o * s for o, s in zip(place.offsets, strides, strict=True))
    starts = [base + step for step in _steps(shape[:outer], strides[:outer])]
    return _Runs(starts, math.prod(shape[outer:]))


def _steps(shape: tuple[int, ...], strides: Sequence[int]) -> Iterator[int]:
    if not shape:
        yield 0
        return
    for i in range(shape[0]):
        for rest in _steps(shape[1:], strides[1:]):
            yield i * strides[0] + rest
