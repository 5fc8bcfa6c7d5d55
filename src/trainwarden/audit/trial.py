"""Applies perturbations inside a replaying rank, each at the moment of the step that it speaks of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from trainwarden.audit import perturb, perturbing
from trainwarden.model import Stage
from trainwarden.record import stages

if TYPE_CHECKING:
    from trainwarden.audit.inrank import Replayer

Undo = Callable[[], None]


class Trial:
    """The perturbations of one step; everything set aside is put back when the step is over."""

    def __init__(self, replayer: Replayer, perturbations: tuple[perturb.Perturbation, ...]) -> None:
        self._replayer = replayer
        self._all = tuple(p for p in perturbations if perturb.applies(p, replayer.rank))
        self._undo: list[Undo] = []
        self._begun = False
        self._hidden: list[Undo] = []
        if reason := perturb.cannot_execute(self._all):
            raise ValueError(reason)

    # ------------------------------------------------------------------ forward

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Before a forward pass; new inputs when a perturbation changes them."""
        if not self._begun:
            self._begun = True
            self._begin(module)
        number = self._replayer.gathered.forwards
        self._autocast(module)
        new = self._changed(f"input/{number}", [args, kwargs])
        return None if new is None else (tuple(new[0]), new[1])

    def batch(self, number: int, batch: Any) -> Any:
        """What a loader's batch becomes."""
        new = self._changed(f"loader/{number}", batch)
        return batch if new is None else new

    def _begin(self, module: torch.nn.Module) -> None:
        for optimizer in self._replayer.optimizers:
            self._write_state(optimizer, before=True)
        for p in self._all:
            match p:
                case perturb.Reseed():
                    _reseed(p)
                case perturb.Dropout():
                    self._patch(torch.nn.functional, "dropout", _dropout(torch.nn.functional.dropout, p.p))
                case perturb.Loss():
                    inner = torch._C._nn
                    self._patch(inner, "cross_entropy_loss", perturbing.other_loss(p, inner.cross_entropy_loss))
                case perturb.EvalMode():
                    self._eval(module)
                case perturb.Clip():
                    self._clip(p.max_norm)
                case _:
                    pass

    def _changed(self, prefix: str, value: Any) -> Any | None:
        """`value` with its tensors of the batch stage perturbed, None when nothing changes."""
        tensors = {f"{prefix}.{name}": t for name, t in stages.tensors_in(value)}
        new = perturbing.apply_tensors(self._all, Stage.BATCH, self._replayer.rank, tensors)
        return _rebuild(value, prefix + ".", new) if new else None

    def _eval(self, module: torch.nn.Module) -> None:
        inner = [m for m in module.modules() if m is not module and m.training]
        for m in inner:
            m.training = False

        def restore() -> None:
            for m in inner:
                m.training = True

        self._undo.append(restore)

    def _autocast(self, module: torch.nn.Module) -> None:
        for p in self._all:
            if isinstance(p, perturb.Autocast):
                dtype = getattr(torch, p.dtype) if p.dtype else None
                context = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
                context.__enter__()
                handle: Any = None

                def leave(*_: Any, context: Any = context) -> None:
                    context.__exit__(None, None, None)
                    handle.remove()  # noqa: B023  set right below, before any forward ends

                handle = module.register_forward_hook(leave)

    def _clip(self, max_norm: float | None) -> None:
        from torch.nn.utils import clip_grad as module

        inner = module._clip_grads_with_norm_

        def clip(parameters: Any, given: float, total: Any, *rest: Any) -> None:
            if max_norm is not None:
                inner(parameters, max_norm, total, *rest)

        self._patch(module, "_clip_grads_with_norm_", clip)

    # ------------------------------------------------------------------ gradients and update

    def bucket(self, bucket: Any) -> None:
        """Change this rank's gradients as they enter the reduction."""
        names = self._replayer.names
        pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
        views = {names.get(id(p), "?"): g for p, g in pairs}
        for name, new in self._apply(Stage.LOCAL_GRADIENTS, views).items():
            views[name].copy_(new)

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Change what the optimizer gets, in the open."""
        named = stages.gradients(optimizer, self._replayer.names)
        grads = {n: g for n, g in named if g is not None}
        for name, new in self._apply(Stage.REDUCED_GRADIENTS, grads).items():
            grads[name].copy_(new)
        for p in self._all:
            if isinstance(p, perturb.ClearState):
                _clear(optimizer, p.keys)
        self._undo += self._set_groups(optimizer, hidden=False)

    def at_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Change what the recorder has already looked at."""
        self._hidden += self._set_groups(optimizer, hidden=True)
        if any(isinstance(p, perturb.SkipStep) for p in self._all):
            for p in stages.parameters(optimizer):
                grad, p.grad = p.grad, None
                self._hidden.append(lambda p=p, grad=grad: setattr(p, "grad", grad))  # type: ignore[misc]

    def after_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Put hidden changes back and edit the result."""
        for undo in self._hidden:
            undo()
        self._hidden.clear()
        self._write_state(optimizer, before=False)

    def done(self, optimizer: torch.optim.Optimizer) -> None:
        """The step is recorded."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _set_groups(self, optimizer: torch.optim.Optimizer, *, hidden: bool) -> list[Undo]:
        chosen = [p for p in self._all if isinstance(p, perturb.SetHyper) and p.hidden is hidden]
        undo: list[Undo] = []
        edits = perturbing.edited_groups(chosen, self._replayer.rank, optimizer.param_groups)
        for (index, key), value in edits.items():
            group = optimizer.param_groups[index]
            old = group[key]
            group[key] = tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value
            undo.append(lambda group=group, key=key, old=old: group.__setitem__(key, old))  # type: ignore[misc]
        return undo

    def _write_state(self, optimizer: torch.optim.Optimizer, *, before: bool) -> None:
        names = self._replayer.names
        for stage, named in (
            (Stage.WEIGHTS, stages.weights(optimizer, names)),
            (Stage.OPTIMIZER_STATE, stages.optimizer_state(optimizer, names)),
        ):
            tensors = {n: t for n, t in named if isinstance(t, torch.Tensor)}
            for name, new in self._apply(stage, tensors, before=before).items():
                tensors[name].copy_(new)

    def _apply(
        self, stage: Stage, tensors: Mapping[str, torch.Tensor], *, before: bool = False
    ) -> dict[str, torch.Tensor]:
        return perturbing.apply_tensors(self._all, stage, self._replayer.rank, tensors, before=before)

    def _patch(self, holder: Any, name: str, new: Any) -> None:
        old = getattr(holder, name)
        setattr(holder, name, new)
        self._undo.append(lambda: setattr(holder, name, old))


def _reseed(p: perturb.Reseed) -> None:
    import random

    if "torch" in p.generators:
        torch.manual_seed(p.seed)
    if "python" in p.generators:
        random.seed(p.seed)
    if "numpy" in p.generators:
        import numpy

        numpy.random.seed(p.seed)


def _dropout(original: Any, rate: float) -> Any:
    def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return original(input, rate, training, inplace)

    return dropout


def _clear(optimizer: torch.optim.Optimizer, keys: tuple[str, ...]) -> None:
    for p in stages.parameters(optimizer):
        if not keys:
            optimizer.state.pop(p, None)
            continue
        for key in keys:
            value = optimizer.state.get(p, {}).get(key)
            if isinstance(value, torch.Tensor):
                value.zero_()


def _rebuild(value: Any, prefix: str, new: Mapping[str, torch.Tensor]) -> Any:
    """`value` with the tensors at the paths in `new` replaced; the containers are new, of the same kinds."""
    if isinstance(value, torch.Tensor):
        return new.get(prefix.rstrip("."), value)
    if isinstance(value, Mapping):
        items = {k: _rebuild(v, f"{prefix}{k}.", new) for k, v in value.items()}
        return items if type(value) is dict else _same_mapping(value, items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rebuild(v, f"{prefix}{i}.", new) for i, v in enumerate(value)))
    if isinstance(value, list | tuple):
        return type(value)(_rebuild(v, f"{prefix}{i}.", new) for i, v in enumerate(value))
    return value


def _same_mapping(value: Any, items: dict[Any, Any]) -> Any:
    import copy

    result = copy.copy(value)
    for k, v in items.items():
        result[k] = v
    return result
