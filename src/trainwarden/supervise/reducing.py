"""Judges one update's reduction from the keyed sums of all ranks that took part. Pure: numbers in, faults out.

Rules
-----
* Linear sums commute with a mean: mean over ranks of the sums before the reduction = the sum after it, on every rank.
  Rounding leaves a residual, relative to the mean norm of the ranks' sums: up to 5.5e-6 was measured in float32. What
  is above `TOLERANCE` is a fault.
* The fault is explained by the smallest story that fits: another divisor, one rank that entered with another factor.
* From the reduction to the optimizer gradients may change by one common factor (clipping, a loss scale taken out).
* Sums that are infinite or not numbers are not judged: a loss scaler skips such steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_high

from trainwarden import wire
from trainwarden.model import ReductionFault

TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2}
_COARSE = 5e-2  # bfloat16 and whatever has fewer bits
_STORY = 5e-2  # of a fault, what may be left over by the story that explains it
_NOTHING = 1e-30

Vector = Sequence[float]


class Judged:
    """What came of one update: the parts compared, the numbers in them, and the faults."""

    def __init__(self, told: Mapping[int, wire.Sums]) -> None:
        self.parts = self.elements = 0
        self.faults: list[ReductionFault] = []
        self.unchecked = ""
        self._ranks = sorted(told)
        first = told[self._ranks[0]].rows
        shape = [(row.name, row.elements, len(row.local)) for row in first]
        for rank in self._ranks:
            if [(row.name, row.elements, len(row.local)) for row in told[rank].rows] != shape:
                self.unchecked = "ranks reduce tensors of different names or sizes"
                return
            if any(len(row.reduced) != len(row.local) for row in told[rank].rows):
                self.unchecked = "a rank tells sums of different lengths"
                return
        self._rows = {rank: told[rank].rows for rank in self._ranks}
        self._reduction([t for t in range(len(first)) if self._is_finite(t)])
        for rank in self._ranks:
            self._used(rank)
        self.faults = _merged(self.faults)

    def _is_finite(self, t: int) -> bool:
        rows = (self._rows[rank][t] for rank in self._ranks)
        return all(math.isfinite(x) for row in rows for x in (*row.local, *row.reduced))

    def _reduction(self, tensors: list[int]) -> None:
        """The means of the ranks' sums against what came of them."""
        self.parts += len(tensors)
        means: dict[int, Vector] = {}
        off: dict[int, dict[int, float]] = {}
        for t in tensors:
            rows = [self._rows[rank][t] for rank in self._ranks]
            self.elements += rows[0].elements
            mean = means[t] = [sum(parts) / len(parts) for parts in zip(*(row.local for row in rows), strict=True)]
            scale = sum(_norm(row.local) for row in rows) / len(rows)
            limit = _tolerance(rows[0]) * scale + _NOTHING
            for rank, row in zip(self._ranks, rows, strict=True):
                distance = math.dist(row.reduced, mean)
                if distance > limit:
                    off.setdefault(rank, {})[t] = distance / max(scale, _NOTHING)
        if not off:
            return
        bad = sorted({t for found in off.values() for t in found})
        residual = max(r for found in off.values() for r in found.values())
        names = tuple(self._rows[self._ranks[0]][t].name for t in bad)
        if set(off) != set(self._ranks) or not self._agree(bad):
            ranks = tuple(sorted(off))
            self.faults.append(ReductionFault(kind="received", ranks=ranks, tensors=names, residual=residual))
            return
        self.faults.append(self._story(bad, means, names, residual))

    def _agree(self, tensors: list[int]) -> bool:
        """Whether all ranks got the same."""
        first = self._rows[self._ranks[0]]
        for t in tensors:
            limit = _tolerance(first[t]) * _norm(first[t].reduced) + _NOTHING
            if any(math.dist(self._rows[rank][t].reduced, first[t].reduced) > limit for rank in self._ranks):
                return False
        return True

    def _story(
        self, bad: list[int], means: Mapping[int, Vector], names: tuple[str, ...], residual: float
    ) -> ReductionFault:
        """The one rank or the divisor that explains the difference, if one does."""
        outcome = _joined(self._rows[self._ranks[0]][t].reduced for t in bad)
        mean = _joined(means[t] for t in bad)
        wrong = [a - b for a, b in zip(outcome, mean, strict=True)]
        stories: list[tuple[float, str, tuple[int, ...], float]] = []
        factor, left = _fit(wrong, mean)
        stories.append((left, "divisor", (), 1 + factor))
        for rank in self._ranks if len(self._ranks) > 1 else ():
            own = _joined(self._rows[rank][t].local for t in bad)
            factor, left = _fit(wrong, own)
            stories.append((left, "rank", (rank,), 1 + factor * len(self._ranks)))
        left, kind, ranks, factor = min(stories)
        if left > _STORY:
            return ReductionFault(kind="unexplained", tensors=names, residual=residual)
        return ReductionFault(kind=kind, ranks=ranks, tensors=names, factor=round(factor, 4), residual=residual)

    def _used(self, rank: int) -> None:
        """What the optimizer of a rank got against the reduction's outcome: one common factor, or a fault."""
        factors: dict[str, tuple[float, float, float]] = {}  # name → factor, what is left over, tolerance
        for row in self._rows[rank]:
            got = row.last or row.reduced
            if len(row.used) != len(got) or not all(map(math.isfinite, (*got, *row.used))) or not any(got):
                continue
            factor, _ = _fit(row.used, got)
            left = math.dist(row.used, [factor * x for x in got]) / max(
                _norm(row.used), _norm(got) * abs(factor), _NOTHING
            )
            factors[row.name] = factor, left, _tolerance(row)
        if len(factors) < 2:
            return
        common = median_high(f for f, _, _ in factors.values())
        changed = {
            n: f
            for n, (f, left, limit) in factors.items()
            if left > limit or abs(f - common) > limit * max(abs(f), abs(common))
        }
        if common < 0:
            self.faults.append(ReductionFault(kind="all turned", ranks=(rank,), factor=round(common, 4)))
        turned = tuple(n for n, f in changed.items() if factors[n][1] <= factors[n][2] and f * common < 0)
        others = tuple(n for n in changed if n not in turned)
        if turned:
            self.faults.append(ReductionFault(kind="turned", ranks=(rank,), tensors=turned))
        if others:
            self.faults.append(ReductionFault(kind="changed", ranks=(rank,), tensors=others))


def _merged(faults: list[ReductionFault]) -> list[ReductionFault]:
    """One fault for all ranks that have the same."""
    found: dict[tuple[object, ...], ReductionFault] = {}
    for fault in faults:
        key = (fault.kind, fault.tensors, fault.factor, fault.residual)
        before = found.get(key)
        ranks = (*before.ranks, *fault.ranks) if before else fault.ranks
        found[key] = ReductionFault(
            kind=fault.kind, ranks=ranks, tensors=fault.tensors, factor=fault.factor, residual=fault.residual
        )
    return list(found.values())


def _fit(values: Vector, base: Vector) -> tuple[float, float]:
    """The factor of `base` that comes nearest to `values`, and the share of `values` that it leaves over."""
    size = _product(base, base)
    factor = _product(values, base) / size if size else 0.0
    left = math.dist(values, [factor * x for x in base])
    return factor, left / max(_norm(values), _NOTHING)


def _norm(vector: Vector) -> float:
    return math.hypot(*vector)


def _joined(vectors: Iterable[Vector]) -> list[float]:
    return [x for vector in vectors for x in vector]


def _product(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _tolerance(row: wire.SumsOf) -> float:
    return TOLERANCE.get(row.dtype, _COARSE)
