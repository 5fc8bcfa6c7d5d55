"""The optimizer's update: left out, reversed, done with other settings than recorded, from cleared state.

Rules
-----
* The update is executed again in this process, from the captured state and reduced gradients, by the class of
  that name in `torch.optim`: the auditor's clean torch, never the suspect's.
* Before anything is tried the honest update must rebuild the captured result bit for bit; where it does not
  (a foreign optimizer, one that mixes parameters), these hypotheses are not tried and say so.
* One parameter at a time: true of every optimizer accepted here, as each treats parameters on their own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
    search_tensors,
    settings_of,
)
from trainwarden.audit.hypotheses.before import LIMITS, changes
from trainwarden.audit.perturb import ClearState, Perturbation, SetHyper, SkipStep, TensorPerturbation
from trainwarden.audit.perturbing import transform
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor

KNOWN = frozenset({"AdamW", "Adam", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "ASGD"})
STATE = frozenset({Stage.OPTIMIZER_STATE, Stage.WEIGHTS})
Settings = Mapping[str, Any]
CLOSE = 1e-3  # updates scaled by less than this differ in a few last bits only, as many other changes do


def parameter_of(target: Target, stage: Stage) -> tuple[str, str]:
    """(parameter, state key); the key is empty for a weight."""
    if stage is Stage.WEIGHTS:
        return target.name, ""
    name, _, key = target.name.rpartition("/")
    return name, key


def group_of(q: Question, rank: int, parameter: str) -> tuple[int, Settings]:
    """The index and settings of the parameter group that holds a parameter.

    Raises:
        ValueError: none does (a buffer).
    """
    for index, group in enumerate(q.captures[rank].meta.groups):
        if parameter in group.get("params", ()):
            return index, {k: _tuple(v) for k, v in group.items() if k != "params"}
    raise ValueError(f"{parameter} is in no parameter group")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def updated(
    q: Question,
    target: Target,
    edits: Settings,
    *,
    drop: Sequence[str] | None = None,
    gradient: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The target's value after the captured update of its parameter, executed again with edited settings.

    `drop` names state keys to zero first; an empty list drops all state. `gradient` changes the gradient.

    Raises:
        ValueError, KeyError: the update cannot be executed with these settings, or has no such tensor.
    """
    name, key = parameter_of(target, q.at.stage)
    weight, state = _executed(q, target.rank, name, edits, drop=drop, gradient=gradient)
    return state[key] if key else weight


def _executed(
    q: Question,
    rank: int,
    name: str,
    edits: Settings,
    *,
    drop: Sequence[str] | None = None,
    gradient: Callable[[Tensor], Tensor] | None = None,
    begun: Mapping[str, Tensor] = {},
) -> tuple[Tensor, dict[str, Tensor]]:
    import torch

    _, settings = group_of(q, rank, name)
    kind = getattr(torch.optim, _class_name(q, rank))
    weight = torch.nn.Parameter(q.before(rank, Stage.WEIGHTS)[name].clone())
    reduced = q.clean(rank, Stage.REDUCED_GRADIENTS)[name]
    weight.grad = gradient(reduced).clone() if gradient is not None else reduced.clone()
    try:
        optimizer = kind([{"params": [weight], **settings, **edits}])
        state = _state_before(q, rank, name, drop)
        if state:
            optimizer.state[weight] = state | {k: t.clone() for k, t in begun.items()}
        optimizer.step()
    except (RuntimeError, TypeError, KeyError) as e:
        raise ValueError(f"the update does not run: {e}") from e
    after = {k: v for k, v in optimizer.state[weight].items() if isinstance(v, torch.Tensor)}
    return weight.detach(), after


def _state_before(q: Question, rank: int, name: str, drop: Sequence[str] | None) -> dict[str, Tensor]:
    if drop is not None and not drop:
        return {}
    prefix = name + "/"
    before = q.before(rank, Stage.OPTIMIZER_STATE)
    state = {k.removeprefix(prefix): t.clone() for k, t in before.items() if k.startswith(prefix)}
    for key in drop or ():
        state[key].zero_()
    return state


def _class_name(q: Question, rank: int) -> str:
    return q.captures[rank].meta.optimizer_class.rpartition(".")[2]


def unusable(q: Question) -> str:
    """Why the update cannot be executed again here, or ""."""
    if not q.targets:
        return f"the replay captured no value at stage {q.at.stage} that differs from the record"
    meta = q.captures[q.place.rank].meta
    kind = meta.optimizer_class
    if not kind.startswith("torch.optim.") or _class_name(q, q.place.rank) not in KNOWN:
        return f"the update of {kind or 'an unnamed optimizer'} is not one that can be executed here"
    try:
        value = updated(q, q.place, {})
    except (ValueError, KeyError) as e:
        return f"the honest update cannot be executed here: {e}"
    clean = q.clean_digests(q.place.rank, q.at.stage)[q.place.name]
    if q.digest(q.at.stage, value) != clean:
        return "the honest update, executed here, does not rebuild the captured result bit for bit"
    return ""


def _everywhere(q: Question, answer: Answer) -> tuple[int, ...]:
    ranks = tuple(sorted({t.rank for t in answer.covered}))
    return () if ranks == tuple(sorted(q.captures)) else ranks


def _complete(q: Question, answer: Answer, *perturbations: Perturbation) -> Answer:
    """The answer, said by these perturbations if it covers every tensor that differs."""
    if not answer.found or len(answer.solved) < len(q.targets):
        return answer
    return replace(answer, perturbations=perturbations)


def _skipped(q: Question, budget: Budget) -> Answer:
    if not any(q.before(r, Stage.WEIGHTS) for r in q.captures):
        return not_tried("the state before the step was not captured")

    def found(target: Target) -> Tensor:
        return q.before(target.rank, q.at.stage)[target.name]

    answer = search_tensors(q, budget, lambda t: [Recipe("it was left as the step found it", {}, found)])
    ranks = _everywhere(q, answer)
    untouched = all(_untouched(q, rank) for rank in ranks or q.captures)
    return _complete(q, answer, SkipStep(ranks=ranks)) if untouched else answer


def _untouched(q: Question, rank: int) -> bool:
    """Whether all recorded weights and state of a rank are those that the step found."""
    for stage in STATE:
        claimed = q.claimed(rank, stage)
        for name, tensor in q.before(rank, stage).items():
            if claimed.get(name) != q.digest(stage, tensor):
                return False
    return True


def _reversed(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        for form in _REVERSALS:
            make = functools.partial(_moved, q, _REVERSALS[form])
            yield Recipe("its update was reversed", {"form": form}, make)
        for k in factors(len(q.captures)):
            if k == 0 or abs(k - 1) < CLOSE:
                continue
            text = f"its update was multiplied by {number(k)}"
            for form, move in (("old + k·(new − old)", _stretched), ("lerp", _interpolated)):
                make = functools.partial(_moved, q, functools.partial(move, k))
                yield Recipe(text, {"factor": k, "form": form}, make)

    return search_tensors(q, budget, candidates, "factors outside the list")


def _moved(q: Question, move: Callable[[Tensor, Tensor], Tensor], target: Target) -> Tensor:
    return move(q.before(target.rank, Stage.WEIGHTS)[target.name], q.value(target))


def _stretched(k: float, old: Tensor, new: Tensor) -> Tensor:
    return old + k * (new - old)


def _interpolated(k: float, old: Tensor, new: Tensor) -> Tensor:
    return old.lerp(new, k)


_REVERSALS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "2·old − new": lambda old, new: 2 * old - new,
    "old − (new − old)": lambda old, new: old - (new - old),
    "old + (old − new)": lambda old, new: old + (old - new),
}


def _cleared(q: Question, budget: Budget) -> Answer:
    if reason := unusable(q):
        return not_tried(reason)
    name, _ = parameter_of(q.place, q.at.stage)
    keys = list(_state_before(q, q.place.rank, name, None))
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
    clear = ClearState(keys=tuple(answer.parameters["keys"]), ranks=_everywhere(q, answer))
    return _complete(q, answer, clear)


def _agrees(q: Question, name: str, keys: Sequence[str], drop: Sequence[str]) -> bool:
    """Whether this way of clearing gives every recorded state entry of a parameter, also those that do not differ."""
    rank = q.place.rank
    claimed = q.claimed(rank, Stage.OPTIMIZER_STATE)
    results = _executed(q, rank, name, {}, drop=drop)[1]
    return all(
        claimed.get(f"{name}/{key}") == q.digest(Stage.OPTIMIZER_STATE, results[key]) for key in keys if key in results
    )


_DECAYS = (0.0, 0.1, 0.01, 0.001, 0.0001, 0.05, 0.02, 0.2, 0.5, 1.0, 1e-5)
_EPS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 1e-9, 1e-10, 1e-12, 0.0)
_FIRST = (*(round(i / 100, 2) for i in range(100)), 0.995, 0.999)
_SECOND = (*(round(i / 1000, 3) for i in range(900, 1000)), 0.0, 0.5, 0.8, 0.9999, 0.99999)


def other_settings(settings: Settings, world: int) -> Iterator[tuple[str, Any]]:
    """(key, value) of the changes tried behind an honest record, in the order in which they are tried."""
    lr = float(settings.get("lr", 0.0))
    yield "lr", -lr
    yield from (("lr", lr * k) for k in factors(world))
    for key in ("maximize", "nesterov", "amsgrad"):
        if key in settings:
            yield key, not settings[key]
    if "weight_decay" in settings:
        decay = float(settings["weight_decay"])
        yield from (("weight_decay", v) for v in _DECAYS)
        yield from (("weight_decay", decay * k) for k in factors(world) if decay)
    if "betas" in settings:
        first, second = settings["betas"]
        yield from (("betas", (b, second)) for b in _FIRST)
        yield from (("betas", (first, b)) for b in _SECOND)
        yield from (("betas", p) for p in itertools.product((0.0, 0.5, 0.8, 0.9, 0.95), (0.9, 0.95, 0.98, 0.99, 0.999)))
        yield "betas", (second, first)
    if "eps" in settings:
        yield from (("eps", v) for v in _EPS)
    for key in ("momentum", "dampening", "alpha", "momentum_decay"):
        if key in settings:
            yield from ((key, v) for v in _FIRST)


def _hidden_settings(q: Question, budget: Budget) -> Answer:
    if reason := unusable(q):
        return not_tried(reason)
    world = len(q.captures)

    def candidates(target: Target) -> Iterator[Recipe]:
        name, _ = parameter_of(target, q.at.stage)
        group, settings = group_of(q, target.rank, name)
        for key, value in other_settings(settings, world):
            was = settings[key]
            yield Recipe(
                f"the update used {key} {shown(value)} where {shown(was)} is recorded",
                {"key": key, "value": value, "recorded": was, "group": group},
                functools.partial(updated, q, edits={key: value}),
            )

    answer = search_tensors(q, budget, candidates, "settings outside the lists, and two settings at once")
    return _complete(q, answer, *_hyper(q, answer))


def _hyper(q: Question, answer: Answer) -> Iterator[SetHyper]:
    edits: dict[tuple[str, Any, int], set[int]] = {}
    for target, r in answer.solved.items():
        group, _ = group_of(q, target.rank, parameter_of(target, q.at.stage)[0])
        edits.setdefault((r.parameters["key"], r.parameters["value"], group), set()).add(target.rank)
    for (key, value, group), ranks in edits.items():
        every = () if ranks == set(q.captures) else tuple(sorted(ranks))
        yield SetHyper(key=key, value=value, group=group, ranks=every, hidden=True)


def _times(k: float, gradient: Tensor) -> Tensor:
    return gradient * k


def _inside(q: Question, budget: Budget) -> Answer:
    if reason := unusable(q):
        return not_tried(reason)

    def candidates(target: Target) -> Iterator[Recipe]:
        for k in (-1.0, *factors(len(q.captures))):
            yield Recipe(
                f"inside the update its gradient was multiplied by {number(k)}",
                {"factor": k},
                functools.partial(updated, q, edits={}, gradient=functools.partial(_times, k)),
            )

    answer = search_tensors(q, budget, candidates, "factors outside the list")
    if q.at.stage is not Stage.OPTIMIZER_STATE:
        return answer
    used: dict[int, dict[str, float]] = {}
    for target, r in answer.solved.items():
        used.setdefault(target.rank, {})[parameter_of(target, q.at.stage)[0]] = r.parameters["factor"]
    return replace(
        answer,
        follow={(rank, Stage.WEIGHTS): functools.partial(_moved_by, q, rank, ks) for rank, ks in used.items()},
    )


def _moved_by(q: Question, rank: int, used: Mapping[str, float]) -> dict[str, Tensor]:
    """The weights that follow when each parameter's gradient was multiplied by its factor."""
    return {name: _executed(q, rank, name, {}, gradient=functools.partial(_times, k))[0] for name, k in used.items()}


def _edited_before(q: Question, budget: Budget) -> Answer:
    if reason := unusable(q):
        return not_tried(reason)
    made: dict[str, tuple[str, TensorPerturbation]] = {}  # by what is said

    def candidates(target: Target) -> Iterator[Recipe]:
        name, _ = parameter_of(target, q.at.stage)
        for key, value in _state_before(q, target.rank, name, None).items():
            for text, change in changes(value, len(q.captures)) if value.dim() else ():
                said = f"the step began with another {key}: {text}"
                made[said] = key, msgspec.structs.replace(change, stage=Stage.OPTIMIZER_STATE)
                yield Recipe(said, {"key": key, **settings_of(change)}, functools.partial(_begun_with, q, key, change))

    answer = search_tensors(q, budget, candidates, f"two entries at once, {LIMITS}")
    places: dict[tuple[str, TensorPerturbation], dict[str, set[int]]] = {}
    for target, r in answer.solved.items():
        name, _ = parameter_of(target, q.at.stage)
        places.setdefault(made[r.sentence], {}).setdefault(name, set()).add(target.rank)
    return _complete(q, answer, *_state_edits(q, places))


def _begun_with(q: Question, key: str, change: TensorPerturbation, target: Target) -> Tensor:
    """The target where its parameter's state was edited before the update."""
    name, own = parameter_of(target, q.at.stage)
    was = _state_before(q, target.rank, name, None)[key]
    weight, state = _executed(q, target.rank, name, {}, begun={key: transform(change, was, {}, key)})
    return state[own] if own else weight


def _state_edits(
    q: Question, places: Mapping[tuple[str, TensorPerturbation], Mapping[str, set[int]]]
) -> Iterator[TensorPerturbation]:
    for (key, change), names in places.items():
        for name, ranks in names.items():
            every = () if ranks == set(q.captures) else tuple(sorted(ranks))
            yield msgspec.structs.replace(change, tensors=(f"{name}/{key}",), ranks=every)


def shown(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return "(" + ", ".join(shown(v) for v in value) + ")"
    return str(value)


IDEAS = (
    Idea("step skipped", "the update was left out", STATE, _skipped),
    Idea("state cleared", "the optimizer's state was cleared before the step", STATE, _cleared),
    Idea("state edited before the step", "the optimizer's state was edited between two steps", STATE, _edited_before),
    Idea("hidden setting", "the update used other settings than those recorded", STATE, _hidden_settings),
    Idea("update reversed", "the update was reversed or scaled", frozenset({Stage.WEIGHTS}), _reversed),
    Idea("gradient changed inside the update", "the optimizer changed the gradient it was given", STATE, _inside),
)
