"""What the update began with: a step left out, optimizer state that was cleared or edited between two steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    not_tried,
    search_tensors,
    settings_of,
)
from trainwarden.audit.hypotheses.before import LIMITS, changes
from trainwarden.audit.hypotheses.updating import (
    STATE,
    complete,
    everywhere,
    executed,
    parameter_of,
    state_before,
    unusable,
    updated,
)
from trainwarden.audit.perturb import ClearState, SkipStep, TensorPerturbation
from trainwarden.audit.perturbing import transform
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor


def _skipped(q: Question, budget: Budget) -> Answer:
    if not any(q.before(r, Stage.WEIGHTS) for r in q.captures):
        return not_tried("the state before the step was not captured")

    def found(target: Target) -> Tensor:
        return q.before(target.rank, q.at.stage)[target.name]

    answer = search_tensors(q, budget, lambda t: [Recipe("it was left as the step found it", {}, found)])
    ranks = everywhere(q, answer)
    untouched = all(_untouched(q, rank) for rank in ranks or q.captures)
    return complete(q, answer, SkipStep(ranks=ranks)) if untouched else answer


def _untouched(q: Question, rank: int) -> bool:
    """Whether all recorded weights and state of a rank are those that the step found."""
    for stage in STATE:
        claimed = q.claimed(rank, stage)
        for name, tensor in q.before(rank, stage).items():
            if claimed.get(name) != q.digest(stage, tensor):
                return False
    return True


def _cleared(q: Question, budget: Budget) -> Answer:
    if reason := unusable(q):
        return not_tried(reason)
    name, _ = parameter_of(q.place, q.at.stage)
    keys = list(state_before(q, q.place.rank, name, None))
    if not keys:
        return not_tried("the optimizer had no state before this step")
    moments = [k for k in keys if k != "step"]
    every = [[], moments, keys, *([k] for k in keys)]
    drops = [drop for drop in every if _agrees(q, name, keys, drop)] or every

    def candidates(target: Target) -> Iterator[Recipe]:
        for drop in drops:
            what = ", ".join(drop) + " zeroed" if drop else "all state dropped"
            yield Recipe(
                f"the step began with {what}", {"keys": drop}, functools.partial(updated, q, edits={}, drop=drop)
            )

    answer = search_tensors(q, budget, candidates)
    if len({str(r.parameters) for r in answer.solved.values()}) != 1:
        return answer
    clear = ClearState(keys=tuple(answer.parameters["keys"]), ranks=everywhere(q, answer))
    return complete(q, answer, clear)


def _agrees(q: Question, name: str, keys: Sequence[str], drop: Sequence[str]) -> bool:
    """Whether this way of clearing gives every recorded state entry of a parameter, also those that do not differ."""
    rank = q.place.rank
    claimed = q.claimed(rank, Stage.OPTIMIZER_STATE)
    results = executed(q, rank, name, {}, drop=drop)[1]
    return all(
        claimed.get(f"{name}/{key}") == q.digest(Stage.OPTIMIZER_STATE, results[key]) for key in keys if key in results
    )


def _edited_before(q: Question, budget: Budget) -> Answer:
    if reason := unusable(q):
        return not_tried(reason)
    made: dict[str, tuple[str, TensorPerturbation]] = {}  # by what is said

    def candidates(target: Target) -> Iterator[Recipe]:
        name, _ = parameter_of(target, q.at.stage)
        for key, value in state_before(q, target.rank, name, None).items():
            for text, change in changes(value, len(q.captures)) if value.dim() else ():
                said = f"the step began with another {key}: {text}"
                made[said] = key, msgspec.structs.replace(change, stage=Stage.OPTIMIZER_STATE)
                yield Recipe(said, {"key": key, **settings_of(change)}, functools.partial(_begun_with, q, key, change))

    answer = search_tensors(q, budget, candidates, f"two entries at once, {LIMITS}")
    places: dict[tuple[str, TensorPerturbation], dict[str, set[int]]] = {}
    for target, r in answer.solved.items():
        name, _ = parameter_of(target, q.at.stage)
        places.setdefault(made[r.sentence], {}).setdefault(name, set()).add(target.rank)
    return complete(q, answer, *_state_edits(q, places))


def _begun_with(q: Question, key: str, change: TensorPerturbation, target: Target) -> Tensor:
    """The target where its parameter's state was edited before the update."""
    name, own = parameter_of(target, q.at.stage)
    was = state_before(q, target.rank, name, None)[key]
    weight, state = executed(q, target.rank, name, {}, begun={key: transform(change, was, {}, key)})
    return state[own] if own else weight


def _state_edits(
    q: Question, places: Mapping[tuple[str, TensorPerturbation], Mapping[str, set[int]]]
) -> Iterator[TensorPerturbation]:
    for (key, change), names in places.items():
        for name, ranks in names.items():
            every = () if ranks == set(q.captures) else tuple(sorted(ranks))
            yield msgspec.structs.replace(change, tensors=(f"{name}/{key}",), ranks=every)


IDEAS = (
    Idea("step skipped", "the update was left out", STATE, _skipped),
    Idea("state cleared", "the optimizer's state was cleared before the step", STATE, _cleared),
    Idea("state edited before the step", "the optimizer's state was edited between two steps", STATE, _edited_before),
)
