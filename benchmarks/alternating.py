"""A recorder that looks at every second block of steps only: recorded and plain steps of one process, side by side.

`TRAINWARDEN_RECORDER=alternating:Alternating` puts it in the live recorder's place. A block is `$BENCH_BLOCK` steps. At
the end it writes each step's wall time, whether it was recorded, when it ended, and the size of the weights that are
trained to `$BENCH_OUT.rank<r>`.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from trainwarden.record import stages
from trainwarden.record.recorder import Recorder


class Alternating(Recorder):
    """Pauses itself on every second block."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[bool, float]] = []
        self._last = time.perf_counter()
        self._ends: list[float] = []
        self._weights = 0
        self._counting = False

    def optimizer_made(self, optimizer: Any) -> None:
        super().optimizer_made(optimizer)
        self._weights += sum(p.nbytes for p in stages.parameters(optimizer))
        if not self._counting:
            self._counting = True
            # Registered after the recorder's own hook, and so called after it: the step is over.
            register_optimizer_step_post_hook(self._step_over)
            atexit.register(self._write)

    def _step_over(self, *_: Any) -> None:
        now = time.perf_counter()
        self.times.append((not self.paused, now - self._last))
        self._ends.append(time.time())
        if len(self.times) % int(os.environ["BENCH_BLOCK"]) == 0:
            self.paused = not self.paused
        self._last = now

    def _write(self) -> None:
        body = {"times": self.times, "ends": self._ends, "weights": self._weights}
        with open(f"{os.environ['BENCH_OUT']}.rank{self.rank}", "w", encoding="utf-8") as file:
            json.dump(body, file)
