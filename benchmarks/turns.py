"""Two jobs that take turns, a step each: what a step of one takes over the same step of the other, side by side.

Two runs one after the other are compared with whatever the machine's host did meanwhile; here the two sides of a pair
are seconds apart. Whose turn it is not is stopped as a whole, all its processes, its replays too (signal(7), SIGSTOP).
"""

from __future__ import annotations

import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from trainwarden.supervise.holding import Hold

PATIENCE = 600.0  # seconds that a step may take


class Side:
    """A job that tells its steps on its standard output, and what each of them took while it was its turn.

    `start` is called when it is its turn for the first time.
    """

    def __init__(self, start: Callable[[], subprocess.Popen[str]], pattern: str) -> None:
        self.took: dict[int, float] = {}
        self._start, self._pattern = start, re.compile(pattern)
        self._process: subprocess.Popen[str] | None = None
        self._told: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self._hold: Hold | None = None  # once it was started

    @property
    def process(self) -> subprocess.Popen[str]:
        """The job's, started if it was not."""
        if self._process is None:
            self._process = self._start()
            pid = self._process.pid
            self._hold = Hold(pid, lambda: (pid,))  # all of it, the launcher too
            threading.Thread(target=self._listen, daemon=True).start()
        return self._process

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            if found := self._pattern.search(line):
                self._told.put((int(found[1]), time.monotonic()))
        self._told.put((-1, time.monotonic()))

    def up_to(self, step: int) -> None:
        """Let it run until it has told this step.

        Raises:
            RuntimeError: it ended before, or did not tell anything for long.
        """
        begun, told = time.monotonic(), -1
        process = self.process
        self.go_on()
        while told < step:
            try:
                told, at = self._told.get(timeout=PATIENCE)
            except queue.Empty:
                told = -1
            if told < 0:
                raise RuntimeError(f"process {process.pid} did not come to step {step} of its job")
            self.took[told] = at - begun
            begun = at

    def stop(self) -> None:
        """Stop all its processes."""
        if self._hold is not None:
            self._hold.begin()

    def go_on(self) -> None:
        """Let them go on."""
        if self._hold is not None:
            self._hold.end()


def take_turns(sides: Sequence[Side], first: int, last: int) -> None:
    """Let each side come to step `first` alone, then each make a step in turn until all have made `last`.

    Raises:
        RuntimeError: as `Side.up_to`; all go on then.
    """
    try:
        for step in range(first, last + 1):
            for side in sides:
                side.up_to(step)
                side.stop()
    finally:
        for side in sides:
            side.go_on()


def ratios(one: Side, other: Side, first: int, last: int) -> list[float]:
    """What each step from `first` to `last` took on one side over what it took on the other."""
    return [one.took[n] / other.took[n] for n in range(first, last + 1)]
