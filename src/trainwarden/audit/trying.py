"""The doctor's half inside a rank: a recorder that lets the first few steps happen and then ends the process.

Rules
-----
* It ends where the next step would begin, so that a checkpoint of the last step is written, and says goodbye first.
* No rank leaves before all have come that far: a peer may still be reading what this one has sent.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from trainwarden.record.observers import Observer
from trainwarden.record.recorder import Recorder

TRIER = "trainwarden.audit.trying:Trier"
STEPS_ENV = "TRAINWARDEN_TRY_STEPS"
_PEERS_SECONDS = 30.0


class Trier(Recorder):
    """Records the first steps, as many as `STEPS_ENV` says."""

    def __init__(self) -> None:
        super().__init__()
        self._enough = int(os.environ.get(STEPS_ENV, "6"))

    def make_observers(self) -> list[Observer]:
        return []

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if self.gathered.forwards == 0 and self.done >= self._enough:
            self._stop()
        return super().forward(module, args, kwargs)

    def before_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        # A forward pass that is not watched (compiled in place) does not stop it; the next update does.
        if self.optimizers.get(optimizer) in self.stepped and self.done >= self._enough:
            self._stop()
        super().before_update(optimizer, closure)

    def _stop(self) -> None:
        self._wait_for_peers()
        self.leave()
        os._exit(0)

    def _wait_for_peers(self) -> None:
        if self.world < 2 or self.joined is None:
            return
        here = self.folder.parent / f"tried-a{self.joined.attempt}"
        here.mkdir(parents=True, exist_ok=True)
        (here / str(self.rank)).touch()
        deadline = time.monotonic() + _PEERS_SECONDS
        while len(os.listdir(here)) < self.world and time.monotonic() < deadline:
            time.sleep(0.02)
