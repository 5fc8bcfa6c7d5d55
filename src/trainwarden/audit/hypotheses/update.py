"""The optimizer's update: done with other settings than recorded, reversed, given another gradient."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
)
from trainwarden.audit.hypotheses.updating import (
    STATE,
    Settings,
    complete,
    executed,
    group_of,
    parameter_of,
    unusable,
    updated,
)
from trainwarden.audit.perturb import SetHyper
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor

CLOSE = 1e-3  # updates scaled by less than this differ in a few last bits only, as many other changes do


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
    return complete(q, answer, *_hyper(q, answer))


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
    return {name: executed(q, rank, name, {}, gradient=functools.partial(_times, k))[0] for name, k in used.items()}


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


def shown(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return "(" + ", ".join(shown(v) for v in value) + ")"
    return str(value)


IDEAS = (
    Idea("hidden setting", "the update used other settings than those recorded", STATE, _hidden_settings),
    Idea("update reversed", "the update was reversed or scaled", frozenset({Stage.WEIGHTS}), _reversed),
    Idea("gradient changed inside the update", "the optimizer changed the gradient it was given", STATE, _inside),
)
