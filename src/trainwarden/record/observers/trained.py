"""Tells what of the model is trained, and which of torch's schedulers move the settings: at first and on change.

Walking a model's tensors costs a millisecond for a thousand of them, so it is done after the first step, then once in
`EVERY` steps, and when the number of tensors in the optimizers has changed.
"""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import torch

from trainwarden.model import ModelSeen, ScheduleSeen
from trainwarden.record import stages
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

EVERY = 64
NAMED = 4
_MOST_NUMBERS = 64  # of a list in a scheduler's state


class WhatIsTrained(Observer):
    """Looks at models and optimizers after a step is complete."""

    name = "what is trained"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._told = ModelSeen()
        self._tensors = -1
        self._next = 0
        self._schedulers: weakref.WeakSet[Any] = weakref.WeakSet()

    def boundary(self) -> None:
        optimizers = list(self.recorder.optimizers)
        tensors = sum(len(group["params"]) for o in optimizers for group in o.param_groups)
        if self.recorder.done < self._next and tensors == self._tensors:
            return
        if tensors != self._tensors:
            self._find_schedulers(optimizers)
        self._next, self._tensors = self.recorder.done + EVERY, tensors
        seen = self._look(optimizers)
        if seen != self._told:
            self._told = seen
            self.recorder.note(_at(seen, self.recorder.step))

    def _look(self, optimizers: list[torch.optim.Optimizer]) -> ModelSeen:
        moved = {id(p): p.numel() for o in optimizers for p in stages.parameters(o)}
        idle: list[str] = []
        frozen = 0
        for root in (r for ref in self.recorder.roots if (r := ref()) is not None):
            for p in root.parameters():
                if not p.requires_grad:
                    frozen += 1
                elif id(p) not in moved:
                    idle.append(self.recorder.names.get(id(p), "?"))
        return ModelSeen(
            parameters=len(moved),
            elements=sum(moved.values()),
            idle=tuple(idle[:NAMED]),
            idle_count=len(idle),
            frozen=frozen,
        )

    def _find_schedulers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Schedulers mark the groups that they move; only then is it worth looking for them."""
        if not any("initial_lr" in group for o in optimizers for group in o.param_groups):
            return
        base = torch.optim.lr_scheduler.LRScheduler
        for thing in gc.get_objects():
            if issubclass(type(thing), base) and thing not in self._schedulers:
                self._schedulers.add(thing)
                self._tell(thing)

    def _tell(self, scheduler: Any) -> None:
        index = self.recorder.optimizers.get(scheduler.optimizer)
        if index is None:
            return
        kind = type(scheduler)
        state = {k: v for k, v in vars(scheduler).items() if not k.startswith("_") and _is_plain(v)}
        note = ScheduleSeen(
            step=self.recorder.step, optimizer=index, kind=f"{kind.__module__}.{kind.__qualname__}", state=state
        )
        self.recorder.note(note)


def _at(seen: ModelSeen, step: int) -> ModelSeen:
    return ModelSeen(
        step=step,
        parameters=seen.parameters,
        elements=seen.elements,
        idle=seen.idle,
        idle_count=seen.idle_count,
        frozen=seen.frozen,
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):  # milestones: a Counter
        return len(value) <= _MOST_NUMBERS and all(isinstance(v, int) for item in value.items() for v in item)
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_NUMBERS and all(isinstance(v, int | float) for v in value)
    return isinstance(value, int | float | str)
