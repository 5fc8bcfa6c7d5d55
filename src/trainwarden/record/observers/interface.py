"""The seam between the recorder and those who look on: what only the rank itself can see, beside the stages.

Rules
-----
* An observer reads and never writes anything that training uses, and draws from no generator of training's.
* Its methods run inside the recorder's guard with gradients off. One that raises is a gap, and is asked no more.
* What it tells is a claim, as everything that a rank says: `Recorder.note` for an entry of the log, `Recorder.tell`
  for a message that the watcher turns into one.
* Every call is paid for by training: tens of microseconds are much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from trainwarden.record.recorder import Recorder


class Observer:
    """Looks on in one rank; a subclass overrides the moments that it needs."""

    name = ""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def aside(self, action: Callable[[], None]) -> None:
        """Do work at a moment of the observer's own (a wrapper); when it fails, the observer is asked no more."""
        if self in self.recorder.observers:
            self.recorder.guarded(self.name, lambda: self.recorder.look_on(lambda o: action() if o is self else None))

    def joined(self) -> None:
        """The process is a rank from now on: `recorder.rank`, `world` and `key` are set."""

    def step_begins(self) -> None:
        """The step's first training forward pass is about to run."""

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """A training forward pass of a root module is about to run."""

    def loader_begins(self, iterator: Any) -> None:
        """A data loader is asked for a batch."""

    def loader_gave(self, iterator: Any, batch: Any) -> None:
        """A data loader is about to hand out this batch."""

    def backward(self, tensors: Any) -> None:
        """`backward` was called on these tensors and is about to run."""

    def backward_done(self) -> None:
        """`backward` has returned."""

    def bucket(self, bucket: Any) -> None:
        """A bucket of this rank's own gradients is about to be reduced (DDP)."""

    def before_update(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        """Optimizer number `index` is about to move its parameters; the gradients are those that it will use."""

    def after_update(self, optimizer: torch.optim.Optimizer, index: int, skipped: bool) -> None:
        """It has moved them, or the gradient scaler has skipped the step; the record is not made yet."""

    def boundary(self) -> None:
        """The step is complete on this rank and its records are told."""

    def leaving(self) -> None:
        """The process ends in order."""
