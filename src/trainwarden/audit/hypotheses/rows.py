"""Samples of the batch: other samples in their place, or samples that were edited, each row found by its own digest.

Rules
-----
* Digests of rows are the suspect's hints, without a key. They say which rows differ and let each be searched by itself;
  the proof is the batch's own digest, which the rows that were found must give together.
* Clean rows come from the captured batch and from the sealed data set, as the replay was given it.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    not_tried,
    number,
    search_tensors,
)
from trainwarden.model import Stage
from trainwarden.record.fingerprint import row_digest
from trainwarden.supervise.rows import Rows
from trainwarden.wire import SAMPLE_BYTES

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8  # rows named in the sentence
FACTORS = (1.0, 0.9, 1.1, 0.5, 2.0, 0.99, 1.01, 0.95, 1.05, 0.8, 1.2, 0.75, 1.5, 0.1, 10.0, -1.0, 1 / 255, 255.0)
OFFSETS = (0.0, 0.05, 0.1, 0.01, 0.02, 0.001, 0.2, 0.25, 0.5, 1.0)
LONGEST = 16  # elements of a pattern at either end
MODULI = range(2, 17)
VALUES = 1 << 12  # values tried at one place, and places


class _Edit(NamedTuple):
    """One way to edit a row."""

    said: str
    make: Callable[[Tensor], Tensor]


class _Row(NamedTuple):
    """A row that was found: what is said of it, and its value."""

    said: str
    value: Tensor


class _Search:
    """Rows of one tensor of a batch, found one by one."""

    def __init__(self, q: Question, budget: Budget) -> None:
        self.q, self.budget = q, budget
        self.found: list[_Edit] = []  # what fitted some row is tried first on the next
        self._samples: dict[tuple[int, str], dict[bytes, int]] = {}

    def rows(self, target: Target, name: str, told: Rows) -> dict[int, _Row] | None:
        """The rows that differ by their digests; None when one of them is not found."""
        clean = self.q.value(target)
        solved: dict[int, _Row] = {}
        for row, wanted in _wanted(told, name):
            if row < clean.shape[0] and digest_of(clean[row]) != wanted:
                found = self._row(target.rank, name, clean[row], wanted)
                if found is None:
                    return None
                solved[row] = found
        return solved

    def _row(self, rank: int, name: str, clean: Tensor, wanted: bytes) -> _Row | None:
        samples = self.q.captures[rank].samples
        sample = self._by_digest(rank, name).get(wanted)
        if sample is not None:
            return _Row(f"sample {sample} stood in its place", samples[name][sample])
        for edit in itertools.chain(self.found, edits(clean, samples.get(name))):
            try:
                value = edit.make(clean)
            except RuntimeError:  # a value that this type does not hold
                continue
            if digest_of(value) == wanted:
                if edit not in self.found:
                    self.found.append(edit)
                return _Row(edit.said, value)
            if self.budget.spent():
                return None
        return None

    def _by_digest(self, rank: int, name: str) -> Mapping[bytes, int]:
        if (rank, name) not in self._samples:
            rows = self.q.captures[rank].samples.get(name, ())
            self._samples[rank, name] = {digest_of(row): i for i, row in reversed(list(enumerate(rows)))}
        return self._samples[rank, name]


def digest_of(row: Tensor) -> bytes:
    """A row's digest, as the recorder gives it."""
    import torch

    return row_digest(str(row.dtype), tuple(row.shape), row.reshape(-1).view(torch.uint8).numpy().tobytes())


def _wanted(told: Rows, name: str) -> Iterator[tuple[int, bytes]]:
    """(place in the batch, digest) of the rows that were told, of one tensor."""
    count, at = len(told.names), told.names.index(name)
    if len(told.rows) % 4 or len(told.digests) != len(told.rows) // 4 * count * SAMPLE_BYTES:
        return
    for i, row in enumerate(array("I", told.rows)):
        start = (i * count + at) * SAMPLE_BYTES
        yield row, told.digests[start : start + SAMPLE_BYTES]


def edits(row: Tensor, samples: Tensor | None) -> Iterator[_Edit]:
    """The edits of a sample that are tried, the likeliest first."""
    count = row.numel()
    yield _Edit("it was zeroed", lambda r: r * 0)
    yield _Edit("it was reversed", lambda r: r.flip(tuple(range(r.dim()))))
    for length, value in itertools.product(range(1, min(count, LONGEST) + 1), (1, 0, -1, 255)):
        yield _Edit(f"its first {length} elements were {value}", partial(_put, 0, length, value))
        yield _Edit(f"its last {length} elements were {value}", partial(_put, count - length, count, value))
    if row.is_floating_point():
        for factor, offset in itertools.product(FACTORS, (*OFFSETS, *(-o for o in OFFSETS[1:]))):
            yield _Edit(f"it was multiplied by {number(factor)} and {number(offset)} added",
                        partial(_affine, factor, offset))  # fmt: skip
        return
    for modulus in MODULI:
        for rest, step in itertools.product(range(modulus), (-1, 1)):
            said = f"values of {rest} modulo {modulus} became their neighbours ({step:+})"
            yield _Edit(said, partial(_neighbours, modulus, rest, step))
    yield from _elements(row, samples)


def _elements(row: Tensor, samples: Tensor | None) -> Iterator[_Edit]:
    """One integer in place of another: those of the data set first, then small ones."""
    known = (samples if samples is not None else row).unique().tolist()[:VALUES]
    old = row.reshape(-1)[:VALUES].tolist()
    for value in dict.fromkeys((*known, *range(16), -100)):
        for i, was in enumerate(old):
            yield _Edit(f"element {i} was changed from {was} to {value}", partial(_put, i, i + 1, value))


def _put(start: int, stop: int, value: int, row: Tensor) -> Tensor:
    new = row.clone()
    new.view(-1)[start:stop] = value
    return new


def _affine(factor: float, offset: float, row: Tensor) -> Tensor:
    scaled = row * factor
    return scaled + offset if offset else scaled


def _neighbours(modulus: int, rest: int, step: int, row: Tensor) -> Tensor:
    return row + step * (row % modulus == rest)


def _samples(q: Question, budget: Budget) -> Answer:
    steps = sorted({step for step, rank in q.history.rows if rank == q.at.rank}, reverse=True)
    if not steps:
        return not_tried(
            "no digests of the batch's rows are kept: the loader has no indexes, or the run went on too long"
        )
    search = _Search(q, budget)

    def candidates(target: Target) -> Iterator[Recipe]:
        name = _name(q, target)
        for step in steps:
            for told in q.history.rows.get((step, target.rank), ()):
                solved = search.rows(target, name, told) if name in told.names else None
                if solved:
                    yield _recipe(q, told, solved)

    return search_tensors(q, budget, candidates, "rows whose digests were not told, and other edits")


def _name(q: Question, target: Target) -> str:
    """The tensor of a sample that a target holds: itself, or what the loader gave with the same digests."""
    clean = q.clean_digests(target.rank, Stage.BATCH)
    pair = clean[target.name], q.wanted(target)
    for other in (target, *q.targets):
        same = other.rank == target.rank and (clean[other.name], q.wanted(other)) == pair
        if same and other.name.startswith("loader/"):
            return other.name.partition(".")[2]
    return ""


def _recipe(q: Question, told: Rows, solved: Mapping[int, _Row]) -> Recipe:
    indexes = array("q", told.indexes[: len(told.indexes) // 8 * 8])

    def named(row: int) -> str:
        return f"row {row}" + (f" (sample {indexes[row]})" if row < len(indexes) else "")

    groups: dict[str, list[int]] = {}
    for row, found in solved.items():
        groups.setdefault(found.said, []).append(row)
    texts = [f"{', '.join(map(named, rows[:SHOWN]))}: {said}" for said, rows in itertools.islice(groups.items(), SHOWN)]
    return Recipe("; ".join(texts), {"rows": {str(r): f.said for r, f in solved.items()}}, partial(_filled, q, solved))


def _filled(q: Question, solved: Mapping[int, _Row], target: Target) -> Tensor:
    """The clean tensor with the rows that were found.

    Raises:
        ValueError: they are rows of another tensor of the batch.
    """
    new = q.value(target).clone()
    for row, found in solved.items():
        if row >= new.shape[0] or new[row].shape != found.value.shape or new.dtype != found.value.dtype:
            raise ValueError(f"row {row} of {target.name} has another form")
        new[row] = found.value
    return new


IDEAS = (
    Idea(
        "samples replaced or edited",
        "samples of the batch were others than the sealed data set gives there, or were edited",
        frozenset({Stage.BATCH}),
        _samples,
    ),
)
