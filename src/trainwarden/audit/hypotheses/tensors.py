"""Changes of a tensor's value that make sense at any stage with values: gradients, optimizer state, weights.

Rules
-----
* Nothing is re-executed: each candidate is a function of captured clean values.
* A digest does not give a factor or a value away; what is not in these lists cannot be found here, and the
  answer's count says how many were tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    factors,
    no_value,
    not_tried,
    number,
    recipe,
    search_tensors,
)
from trainwarden.audit.perturb import (
    Assign,
    Noise,
    Rounding,
    Scale,
    ScaleRows,
    TakeFrom,
    TensorPerturbation,
    Ulp,
    Unary,
    UnaryOp,
    Zero,
)
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor
from trainwarden.record.fingerprint import value_digest

GRADIENTS = frozenset({Stage.LOCAL_GRADIENTS, Stage.REDUCED_GRADIENTS})
STATE = frozenset({Stage.OPTIMIZER_STATE, Stage.WEIGHTS})
ANY_VALUE = GRADIENTS | STATE
SOURCES = ANY_VALUE | {Stage.RNG}
FILES = GRADIENTS | {Stage.RNG, Stage.BATCH}

SPARSEST = 16  # one element in so many is the least of a thinned tensor that is tried
ROWS = 4096  # rows looked at one by one
ROW_FACTORS = (0.0, -1.0, 2.0, 0.5, 10.0, 0.1, 1.1, 0.9, 1.01, 0.99, 1.05, 0.95, 3.0, 1.5, 100.0, -2.0)
SEEDS = (*range(1000), 1234, 1337, 2020, 2021, 2022, 2023, 2024, 2025, 2026, 3407, 4242, 12345, 31337, 123456)
EDGE_ROWS = 2  # at either end of a tensor: where an edit by hand begins, every factor of the list is tried
STDS = (1.0, 0.1, 0.01, 0.001, 0.0001, 1e-5, 1e-6, 0.05, 0.005, 0.0005, 0.02, 0.002)
ULP_BYTES = 64 * 1024
ULP_REHASHES = 2000
OPS: tuple[UnaryOp, ...] = ("abs", "sign", "bfloat16", "float16", "flip", "nan_to_num", "reciprocal", "relu")


def _flipped(q: Question, budget: Budget) -> Answer:
    change = Scale(stage=q.at.stage, factor=-1.0)
    return search_tensors(q, budget, lambda t: [recipe(q, change, "its sign was flipped")])


def roundings(q: Question, target: Target) -> tuple[Rounding, ...]:
    """The ways to round a product that can give different bits for this tensor."""
    wide = q.value(target).element_size() >= 4
    return ("scalar", "double", "divide") if wide else ("scalar", "tensor", "double", "divide")


def _scaled(q: Question, budget: Budget) -> Answer:
    world = len(q.captures)

    def candidates(target: Target) -> Iterator[Recipe]:
        for factor in factors(world):
            for rounding in roundings(q, target):
                if rounding == "scalar" or factor != 0:
                    change = Scale(stage=q.at.stage, factor=factor, rounding=rounding)
                    yield recipe(q, change, f"it was multiplied by {number(factor)}")

    return search_tensors(q, budget, candidates, "factors outside the list")


def _spans(length: int) -> Iterator[tuple[int, int]]:
    half = length // 2
    yield from ((0, length), (0, half), (half, length))
    yield from ((0, length * p // 100) for p in range(1, 100))
    yield from ((length * p // 100, length) for p in range(1, 100))
    quarter = length // 4
    yield from ((i * quarter, (i + 1) * quarter) for i in range(4))


def _zeroed(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        tensor = q.value(target)
        for dim in (-1, *range(min(tensor.dim(), 2))):
            length = tensor.numel() if dim < 0 else tensor.shape[dim]
            single = ((i, i + 1) for i in range(min(length, ROWS)))
            spans = dict.fromkeys((*_spans(length), *(single if dim >= 0 else ())))
            for start, stop in spans:
                if start < stop:
                    what = "elements" if dim < 0 else ("rows", "columns")[dim]
                    change = Zero(stage=q.at.stage, dim=dim, start=start, stop=stop)
                    yield recipe(q, change, f"{what} {start} to {stop - 1} of {length} were zeroed")
        yield from _thinned(q, target)

    limits = f"parts other than spans of per cents, rows, columns and one element in 2 to {SPARSEST}"
    return search_tensors(q, budget, candidates, limits)


def _thinned(q: Question, target: Target) -> Iterator[Recipe]:
    """One element in so many zeroed, from each place on that makes a difference."""
    count = q.value(target).numel()
    for every in range(2, min(SPARSEST, count) + 1):
        for start in range(every):
            change = Zero(stage=q.at.stage, start=start, stop=count, every=every)
            yield recipe(q, change, f"one element in {every} was zeroed, from element {start} on")


def _noisy(q: Question, budget: Budget) -> Answer:
    seeds = dict.fromkeys((*SEEDS[:101], *SEEDS[1000:], q.at.step, q.at.rank, *SEEDS))

    def candidates(target: Target) -> Iterator[Recipe]:
        for seed in seeds:
            for distribution in ("normal", "uniform"):
                for std in STDS:
                    for form in ("sum", "alpha"):
                        change = Noise(stage=q.at.stage, seed=seed, std=std, distribution=distribution, form=form)
                        yield recipe(q, change, f"{distribution} noise ×{number(std)} of seed {seed} was added")

    return search_tensors(q, budget, candidates, f"other seeds than {len(seeds)} and other widths than {STDS}")


def local_changes(tensor: Tensor, world: int) -> Iterator[tuple[str, TensorPerturbation]]:
    """The likeliest changes of a rank's own gradient, where no record of it is left but what follows from it."""
    stage, count = Stage.LOCAL_GRADIENTS, tensor.numel()
    yield "its sign was flipped", Scale(stage=stage, factor=-1.0)
    for start, stop in ((0, count), (0, count // 2), (count // 2, count)):
        yield f"elements {start} to {stop - 1} of {count} were zeroed", Zero(stage=stage, start=start, stop=stop)
    for every in range(2, min(SPARSEST, count) + 1):
        for start in range(every):
            zero = Zero(stage=stage, start=start, stop=count, every=every)
            yield f"one element in {every} was zeroed, from element {start} on", zero
    for factor in factors(world):
        yield f"it was multiplied by {number(factor)}", Scale(stage=stage, factor=factor)
    for op in OPS:
        yield f"{op} was applied to it", Unary(stage=stage, op=op)


def _function(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        for op in OPS:
            yield recipe(q, Unary(stage=q.at.stage, op=op), f"{op} was applied to it")

    return search_tensors(q, budget, candidates)


def _same_shape(q: Question, target: Target) -> Iterator[str]:
    shape = q.value(target).shape
    for name, tensor in q.clean(target.rank, q.at.stage).items():
        if name != target.name and tensor.shape == shape:
            yield name


def _taken(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        for other in _same_shape(q, target):
            yield recipe(q, TakeFrom(stage=q.at.stage, other=other), f"it was replaced by that of {other}")

    return search_tensors(q, budget, candidates)


def _other_rank(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        for rank in sorted(q.captures):
            file = q.captures[rank].file(q.at.stage)
            if rank != target.rank and file is not None:
                change = Assign(stage=q.at.stage, path=str(file))
                yield recipe(q, change, f"it was replaced by that of rank {rank}")

    return search_tensors(q, budget, candidates)


def row_factors(tensor: Tensor, dim: int, row: int, world: int) -> Iterable[float]:
    """The factors to try on one row or column; of a vector these are elements, which have a hypothesis of their own."""
    edge = tensor.dim() > 1 and (row < EDGE_ROWS or row >= tensor.shape[dim] - EDGE_ROWS)
    return dict.fromkeys((*ROW_FACTORS, *factors(world))) if edge else ROW_FACTORS


def _rows(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        tensor = q.value(target)
        for dim in range(min(tensor.dim(), 2)):
            for row in range(min(tensor.shape[dim], ROWS)):
                for factor in row_factors(tensor, dim, row, len(q.captures)):
                    change = ScaleRows(stage=q.at.stage, dim=dim, start=row, stop=row + 1, factor=factor)
                    what = ("row", "column")[dim]
                    yield recipe(q, change, f"its {what} {row} was multiplied by {number(factor)}")

    return search_tensors(
        q, budget, candidates, f"rows beyond {ROWS}, in all but the outermost {EDGE_ROWS} factors beyond {ROW_FACTORS}"
    )


def _ulps(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterable[Recipe]:
        tensor = q.value(target)
        if tensor.nbytes > ULP_BYTES:
            return
        for index in range(min(tensor.numel(), ULP_REHASHES // 4)):
            for ulps in (1, -1, 2, -2):
                yield recipe(
                    q,
                    Ulp(stage=q.at.stage, index=index, ulps=ulps),
                    f"element {index} was moved by {ulps} ulp",
                )

    limits = (
        f"tensors above {ULP_BYTES >> 10} KiB, elements beyond the first {ULP_REHASHES // 4}, "
        "moves beyond 2 ulp and arbitrary values of one element"
    )
    return search_tensors(q, budget, candidates, limits)


def _missing(q: Question, budget: Budget) -> Answer:
    from trainwarden.record.stages import ABSENT

    if not q.targets:
        return not_tried(no_value(q))
    absent = value_digest(q.key, ABSENT)
    covered = frozenset(t for t in q.targets if q.wanted(t) == absent)
    if q.place not in covered:
        return Answer(tried=1)
    return Answer(tried=1, sentence="it had no value at all", covered=covered, digest=absent.hex())


IDEAS = (
    Idea("value missing", "there was no gradient: the parameter was frozen or cut off", GRADIENTS, _missing),
    Idea("sign flipped", "the sign of the values was flipped", ANY_VALUE, _flipped),
    Idea("scaled", "the values were multiplied by a factor", ANY_VALUE, _scaled),
    Idea("part zeroed", "all or part of the values were zeroed", ANY_VALUE, _zeroed),
    Idea("function applied", "a fixed function or a coarser type was applied", ANY_VALUE, _function),
    Idea("another tensor's values", "another tensor's values were put in its place", SOURCES, _taken),
    Idea("another rank's values", "another rank's values were put in its place", FILES, _other_rank),
    Idea("row scaled", "one row or column was multiplied by a factor", ANY_VALUE, _rows),
    Idea("seeded noise", "noise of a seeded generator was added", ANY_VALUE, _noisy),
    Idea("one element moved", "one element was moved by a few units in the last place", ANY_VALUE, _ulps),
)
