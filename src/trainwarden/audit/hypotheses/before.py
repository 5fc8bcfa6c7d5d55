"""Weights changed between two steps: seen by the root over the weights as the step's first forward found them.

Rules
-----
* The record names the tensors that were found changed, and each is searched for its own digest. Where it does not
  (it contradicts itself, or several optimizers share the step) only the root is known: each candidate is then a
  change of one tensor, or of all, whose new root is the recorded one, in the optimizer's order.
* Of a model above the recorder's budget for this check only some tensors are looked at in a step; a change of
  the others shows one step later, or in the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    factors,
    not_tried,
    number,
    recipe,
    search_tensors,
)
from trainwarden.audit.hypotheses.tensors import ROW_FACTORS, row_factors
from trainwarden.audit.perturb import Scale, ScaleRows, TensorPerturbation, Ulp, Zero, decode
from trainwarden.audit.perturbing import transform
from trainwarden.model import STAGES, Location, Stage
from trainwarden.record.fingerprint import stage_root

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 512
_W = Stage.WEIGHTS
LOSS = "loss/0"
ELEMENTS = 256
LIMITS = "arbitrary values of one element, other rows and factors"


def changed_before(q: Question) -> tuple[int, ...]:
    """The ranks whose record says that the step began with other weights than the replay had."""
    return tuple(r for r in sorted(q.captures) if r in q.records and _claimed(q, r) not in ("", _clean(q, r)))


def _claimed(q: Question, rank: int) -> str:
    return q.records[rank].before


def _clean(q: Question, rank: int) -> str:
    digests = q.clean_start(rank)
    return stage_root(q.key, digests, digests.values()) if digests else _claimed(q, rank)


def changes(tensor: Tensor, world: int) -> Iterator[tuple[str, TensorPerturbation]]:
    """What is tried on one tensor, with what is said of it."""
    yield "its sign was flipped", Scale(stage=_W, before=True, factor=-1.0)
    length = tensor.numel()
    for start, stop in ((0, length), (0, length // 2), (length // 2, length)):
        yield (
            f"elements {start} to {stop - 1} of {length} were zeroed",
            Zero(stage=_W, before=True, start=start, stop=stop),
        )
    rows = range(min(tensor.shape[0], ROWS) if tensor.dim() else 0)
    for row in rows:
        yield f"its row {row} was zeroed", Zero(stage=_W, before=True, dim=0, start=row, stop=row + 1)
        yield from (_row(row, k) for k in ROW_FACTORS)
    for k in factors(world):
        yield f"it was multiplied by {number(k)}", Scale(stage=_W, before=True, factor=k)
    for row in rows:
        yield from (_row(row, k) for k in row_factors(tensor, 0, row, world) if k not in ROW_FACTORS)
    for index in range(min(length, ELEMENTS)):
        for ulps in (1, -1):
            yield f"element {index} was moved by {ulps} ulp", Ulp(stage=_W, before=True, index=index, ulps=ulps)


def _row(row: int, factor: float) -> tuple[str, TensorPerturbation]:
    change = ScaleRows(stage=_W, before=True, start=row, stop=row + 1, factor=factor)
    return f"its row {row} was multiplied by {number(factor)}", change


def _edited(q: Question, budget: Budget) -> Answer:
    ranks = changed_before(q)
    if not ranks:
        return not_tried("the record says that the step began with the weights of the replay")
    if q.at.before and q.targets:
        return search_tensors(q, budget, lambda t: _recipes(q, t), LIMITS)
    rank = ranks[0]
    tensors, digests = q.before(rank, Stage.WEIGHTS), q.clean_start(rank)
    tried = 0
    for name, text, change in _candidates(q, tensors, digests):
        tried += 1
        new = dict(digests) | _changed(q, tensors, (name,) if name else tuple(digests), change)
        if stage_root(q.key, new, new.values()) == _claimed(q, rank):
            return _proved(q, ranks, name, text, change, tried)
        if budget.spent():
            return Answer(tried=tried, limits="stopped at its time limit")
    return Answer(tried=tried, limits=f"two tensors at once, {LIMITS}")


def _recipes(q: Question, target: Target) -> Iterator[Recipe]:
    if q.value(target).is_floating_point():
        for text, change in changes(q.value(target), len(q.captures)):
            yield recipe(q, change, f"before the step {text}")


def _candidates(
    q: Question, tensors: Mapping[str, Tensor], digests: Mapping[str, bytes]
) -> Iterator[tuple[str, str, TensorPerturbation]]:
    for k in (-1.0, *factors(len(q.captures))):
        change = Scale(stage=Stage.WEIGHTS, before=True, factor=k)
        yield "", f"all weights were multiplied by {number(k)}", change
    for name in sorted(digests, key=lambda n: (tensors[n].numel(), n)):
        if tensors[name].is_floating_point():
            yield from ((name, text, change) for text, change in changes(tensors[name], len(q.captures)))


def _changed(
    q: Question, tensors: Mapping[str, Tensor], names: Iterable[str], change: TensorPerturbation
) -> dict[str, bytes]:
    floating = [n for n in names if tensors[n].is_floating_point()]
    return {n: q.digest(Stage.WEIGHTS, transform(change, tensors[n], tensors, n)) for n in floating}


def _proved(
    q: Question, ranks: tuple[int, ...], name: str, text: str, change: TensorPerturbation, tried: int
) -> Answer:
    same = tuple(r for r in ranks if _reproduces(q, r, name, change))
    everywhere = () if same == tuple(sorted(q.captures)) else same
    names = (name,) if name else tuple(q.clean_start(same[0]))
    said = msgspec.structs.replace(change, tensors=names, ranks=everywhere)
    skipped = {"kind", "stage", "before", "ranks", "tensors"}
    return Answer(
        tried=tried,
        sentence=f"before the step {name + ': ' if name else ''}{text}",
        parameters={k: v for k, v in msgspec.to_builtins(change).items() if k not in skipped}
        | {"tensor": name, "ranks": list(same)},
        perturbations=(said,),
        covered=frozenset(Target(r, n) for r in same for n in names),
        digest=_claimed(q, same[0]),
    )


def _reproduces(q: Question, rank: int, name: str, change: TensorPerturbation) -> bool:
    digests = q.clean_start(rank)
    names = (name,) if name else tuple(digests)
    new = digests | _changed(q, q.before(rank, Stage.WEIGHTS), names, change)
    return stage_root(q.key, new, new.values()) == _claimed(q, rank)


def _unrecorded(q: Question, budget: Budget) -> Answer:
    found = {r: c.meta.sought for r, c in q.captures.items() if c.meta.sought}
    here = found.get(q.at.rank)
    if here is None:
        return not_tried("the replay did not look for it")
    if not here.change:
        return Answer(tried=here.tried, limits=here.limits) if here.tried else not_tried(here.limits)
    ranks = tuple(r for r in sorted(found) if found[r].change == here.change)
    everywhere = () if ranks == tuple(sorted(q.captures)) else ranks
    return Answer(
        tried=here.tried,
        sentence=f"before the step {here.tensor}: {here.said}, and the record says that nothing was",
        parameters={"tensor": here.tensor, "ranks": list(ranks)},
        perturbations=tuple(msgspec.structs.replace(c, ranks=everywhere) for c in decode(here.change.encode())),
        covered=frozenset(Target(r, q.at.tensor) for r in ranks),
        digest=q.claimed(q.at.rank, Stage.ACTIVATIONS)[LOSS].hex(),
        place=Location(
            step=q.at.step, rank=q.at.rank, stage=_W, tensor=here.tensor, optimizer=q.at.optimizer, before=True
        ),
    )


IDEAS = (
    Idea(
        "weights changed unrecorded",
        "weights were changed between two steps, and the recorder was made to say that they were not",
        frozenset({Stage.ACTIVATIONS}),
        _unrecorded,
    ),
    Idea(
        "weights changed before the step",
        "weights were changed between two steps",
        frozenset(STAGES),
        _edited,
    ),
)
