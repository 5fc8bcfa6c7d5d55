"""Stands for the recorder where an observer is tried alone: real optimizers, their hooks, and what it would tell."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from trainwarden import wire
from trainwarden.model import Detail, Note
from trainwarden.record.gathered import Gathered
from trainwarden.record.observers import Observer


class StandIn:
    """What observers use of a recorder. Follows the optimizers it is given by their own hooks."""

    def __init__(self, make: Callable[[Any], Observer], key: bytes = bytes(range(32))) -> None:
        self.key = key
        self.told: list[wire.Message] = []
        self.notes: list[Note] = []
        self.names: dict[int, str] = {}
        self.optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self.roots: list[weakref.ref[torch.nn.Module]] = []
        self.step = 0
        self.stepped: set[int] = set()
        self.gathered = Gathered()
        self.observer = make(self)

    def settle(self) -> None:
        """Nothing waits here."""

    def tell(self, message: wire.Message) -> None:
        self.told.append(message)

    def note(self, note: Note) -> None:
        self.notes.append(note)

    @property
    def updates(self) -> list[wire.Updated]:
        return [m for m in self.told if isinstance(m, wire.Updated)]

    def follow(self, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in optimizers:
            self.optimizers[optimizer] = len(self.optimizers)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    self.names.setdefault(id(p), f"p{len(self.names)}")
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        closure = any(callable(a) for a in [*args, *kwargs.values()] if a is not optimizer)
        self.gathered.by_closure = closure
        if not closure:
            self.gathered.reduced = Detail(names=(), digests=())
        if self.optimizers[optimizer] in self.stepped:
            self.step += 1
            self.stepped.clear()
        with torch.no_grad():
            self.observer.before_update(optimizer, self.optimizers[optimizer])

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            self.observer.after_update(optimizer, self.optimizers[optimizer], False)
        self.gathered = Gathered()
        self.stepped.add(self.optimizers[optimizer])

    @property
    def done(self) -> int:
        return self.step + bool(self.stepped)
