"""An optimizer's update executed again, for the hypotheses about it.

Rules
-----
* The update is executed in this process, from the captured state and reduced gradients, by the class of
  that name in `torch.optim`: the auditor's clean torch, never the suspect's.
* Before anything is tried the honest update must rebuild the captured result bit for bit; where it does not
  (a foreign optimizer, one that mixes parameters), these hypotheses are not tried and say so.
* One parameter at a time: true of every optimizer accepted here, as each treats parameters on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainwarden.audit.hypotheses.base import Answer, Question, Target
from trainwarden.audit.perturb import Perturbation
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor

KNOWN = frozenset({"AdamW", "Adam", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "ASGD"})
STATE = frozenset({Stage.OPTIMIZER_STATE, Stage.WEIGHTS})
Settings = Mapping[str, Any]


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
    weight, state = executed(q, target.rank, name, edits, drop=drop, gradient=gradient)
    return state[key] if key else weight


def executed(
    q: Question,
    rank: int,
    name: str,
    edits: Settings,
    *,
    drop: Sequence[str] | None = None,
    gradient: Callable[[Tensor], Tensor] | None = None,
    begun: Mapping[str, Tensor] = {},
) -> tuple[Tensor, dict[str, Tensor]]:
    """(weight, state) of one parameter after its captured update; `begun` are state entries that it began with instead.

    Raises:
        ValueError: the update does not run.
    """
    import torch

    _, settings = group_of(q, rank, name)
    kind = getattr(torch.optim, _class_name(q, rank))
    weight = torch.nn.Parameter(q.before(rank, Stage.WEIGHTS)[name].clone())
    reduced = q.clean(rank, Stage.REDUCED_GRADIENTS)[name]
    weight.grad = gradient(reduced).clone() if gradient is not None else reduced.clone()
    try:
        optimizer = kind([{"params": [weight], **settings, **edits}])
        state = state_before(q, rank, name, drop)
        if state:
            optimizer.state[weight] = state | {k: t.clone() for k, t in begun.items()}
        optimizer.step()
    except (RuntimeError, TypeError, KeyError) as e:
        raise ValueError(f"the update does not run: {e}") from e
    after = {k: v for k, v in optimizer.state[weight].items() if isinstance(v, torch.Tensor)}
    return weight.detach(), after


def state_before(q: Question, rank: int, name: str, drop: Sequence[str] | None) -> dict[str, Tensor]:
    """The captured state of one parameter before the step, without what is dropped."""
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


def everywhere(q: Question, answer: Answer) -> tuple[int, ...]:
    """The ranks that an answer covers; none where it is all of them."""
    ranks = tuple(sorted({t.rank for t in answer.covered}))
    return () if ranks == tuple(sorted(q.captures)) else ranks


def complete(q: Question, answer: Answer, *perturbations: Perturbation) -> Answer:
    """The answer, said by these perturbations if it covers every tensor that differs."""
    if not answer.found or len(answer.solved) < len(q.targets):
        return answer
    return replace(answer, perturbations=perturbations)
