"""Where the time of a step goes, part by part, and who sleeps in it: wall time against CPU time of the training thread.

Rules
-----
* Each moment ends one part and begins the next: two clocks are read. Parts that a script does not have stay empty.
* Idle is time in which the training thread neither computed, nor was ready without a free CPU (the kernel's run-queue
  wait), nor slept in `time.sleep` (told as such). A step is told when it idled for much longer than it usually does, in
  the parts in which nothing outside of the process should be waited for, or else in the others: loaders, saving and
  evaluation wait for disks, and only what code stood there is of interest. A steady wait is what is usual.
* Who idles is found by looking at the thread's stack when a step takes longer than usual. With several ranks, idling
  is told only where that was seen: a rank that waits for a slower peer stands in a collective.
* What is told of every step is nothing; every `SUMMARY` steps a summary is.
"""

from __future__ import annotations

import bisect
import sys
import threading
import time
from collections import Counter, deque
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainwarden.model import Idled, PartTimes, Sleep, StackFrame, StepTimes
from trainwarden.record import sleeps
from trainwarden.record.observers.interface import Observer
from trainwarden.record.observers.sampler import Found, Looks, Sampler, Scheduled, most
from trainwarden.record.stacks import frames_of

if TYPE_CHECKING:
    import torch

    from trainwarden.record.recorder import Recorder

LOADING, FORWARD, BACKWARD, REDUCTION = "loading", "forward", "backward", "reduction"
AFTER_BACKWARD, UPDATE, BETWEEN = "after_backward", "update", "between"
PARTS = (LOADING, FORWARD, BACKWARD, REDUCTION, AFTER_BACKWARD, UPDATE, BETWEEN)
OWN = (FORWARD, BACKWARD, AFTER_BACKWARD, UPDATE)
"""Parts in which a training thread waits for nothing outside of its process, collectives aside."""
OTHER = (LOADING, BETWEEN)
SUMMARY = 256
WINDOW = 64  # steps that say what is usual
WARM = 8  # steps before anything is unusual
LEAST_NS = 20_000_000  # an idle time that is told
LEAST_SHARE = 0.1  # of a usual step
_TOLD_SLEEPS = 16  # steps for which each sleeping place is told; from then on one in `_LATER`
_LATER = 64
_MOST_PLACES = 256
_STEP_SLEPT_NS = 1_000_000  # less, in all of a step, is not told


class Usual:
    """The median of the newest values, and how far they usually are from it."""

    def __init__(self) -> None:
        self._newest: deque[int] = deque()
        self._sorted: list[int] = []

    def add(self, value: int) -> None:
        self._newest.append(value)
        bisect.insort(self._sorted, value)
        if len(self._newest) > WINDOW:
            del self._sorted[bisect.bisect_left(self._sorted, self._newest.popleft())]

    def at(self, share: float) -> int:
        """The quantile, 0 without a value."""
        return self._sorted[int(share * (len(self._sorted) - 1))] if self._sorted else 0

    def __len__(self) -> int:
        return len(self._newest)


class _Place:
    """Calls of `time.sleep` from one place in this step."""

    def __init__(self, part: str, frames: tuple[StackFrame, ...]) -> None:
        self.part, self.frames = part, frames
        self.calls = self.asked_ns = self.slept_ns = 0


class Timing(Observer):
    """Stamps the moments of the training thread."""

    name = "timing"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._thread = 0
        self._part = self._before_loading = BETWEEN
        self._wall = self._cpu = self._began = 0
        self._spent: dict[str, list[int]] = {part: [0, 0] for part in PARTS}  # of this step: wall, CPU
        self._summed: dict[str, list[int]] = {part: [0, 0, 0] for part in PARTS}  # wall, CPU, longest
        self._steps = self._all_steps = self._slept = self._process_cpu = 0
        self._queued = self._queued_before = -1
        self._walls = Usual()
        self._idles = {OWN: Usual(), OTHER: Usual()}
        self._places: dict[tuple[str, int, str], _Place] = {}
        self._seen: Counter[tuple[str, int, str]] = Counter()
        self._scheduled: Scheduled | None = None
        self._sampler: Sampler | None = None

    # -- moments

    def joined(self) -> None:
        self._of_this_thread()
        sleeps.listen(self.slept)

    def step_begins(self) -> None:
        self._enter(FORWARD)

    def forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if self._part != FORWARD:
            self._enter(FORWARD)

    def loader_begins(self, iterator: Any) -> None:
        if self._part != LOADING:
            self._before_loading = self._part
            self._enter(LOADING)

    def loader_gave(self, iterator: Any, batch: Any) -> None:
        self._enter(self._before_loading)

    def backward(self, tensors: Any) -> None:
        self._enter(BACKWARD)

    def backward_done(self) -> None:
        self._enter(AFTER_BACKWARD)

    def bucket(self, bucket: Any) -> None:
        if bucket.is_last():
            self._enter(REDUCTION)

    def before_update(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        if threading.get_ident() != self._thread:
            self._of_this_thread()
        self._enter(UPDATE)

    def after_update(self, optimizer: torch.optim.Optimizer, index: int, skipped: bool) -> None:
        self._enter(BETWEEN)

    def boundary(self) -> None:
        self._enter(BETWEEN)
        self._step_ends()

    def leaving(self) -> None:
        self._summarise()
        if self._sampler is not None:
            self._sampler.stop()

    def slept(self, seconds: float, took_ns: int, frame: FrameType) -> None:
        """A thread of this process has slept."""
        if threading.get_ident() == self._thread and not self.recorder.paused and took_ns >= 10_000:
            self.recorder.guarded("sleep", lambda: self._keep_sleep(seconds, took_ns, frame))

    # -- keeping time

    def _of_this_thread(self) -> None:
        """The calling thread is the one that trains."""
        self._thread = threading.get_ident()
        self._scheduled = Scheduled.of_thread(threading.get_native_id())
        self._wall, self._cpu = time.monotonic_ns(), time.thread_time_ns()
        self._began = self._wall
        self._process_cpu = time.process_time_ns()
        self._queued_before = self._scheduled.queued()
        if self._sampler is not None:
            self._sampler.stop()
        self._sampler = Sampler(self._thread, self._scheduled, lambda: self._part)

    def _enter(self, part: str) -> None:
        if threading.get_ident() != self._thread:
            return
        wall, cpu = time.monotonic_ns(), time.thread_time_ns()
        spent = self._spent[self._part]
        spent[0] += wall - self._wall
        spent[1] += cpu - self._cpu
        self._part, self._wall, self._cpu = part, wall, cpu
        self.recorder.part = part

    def _keep_sleep(self, seconds: float, took_ns: int, frame: FrameType) -> None:
        where = (frame.f_code.co_filename, frame.f_lineno, self._part)
        place = self._places.get(where)
        if place is None:
            if len(self._places) >= _MOST_PLACES:
                return
            place = self._places[where] = _Place(self._part, frames_of(frame))
        place.calls += 1
        place.asked_ns += int(seconds * 1e9)
        place.slept_ns += took_ns

    # -- the end of a step

    def _step_ends(self) -> None:
        """Judge the step that ends now; what is usual is what the steps before it were."""
        wall = self._wall - self._began
        queued = self._queue_wait()
        looks = self._sampler.taken() if self._sampler is not None else Looks()
        told = False
        for parts in (OWN, OTHER):
            idle = self._idle(parts, queued)
            unusual = not told and queued >= 0 and self._unusual(self._idles[parts], idle)
            found = most(looks, parts)
            if unusual and (found[1] or (parts == OWN and self.recorder.world == 1)):  # else it waited for its peers
                told = True
                self._tell_idled(wall, idle, parts, found)
            self._idles[parts].add(idle)
        if not told:
            self._tell_idled(wall, 0, OWN, ((), 0))
        if not self._places:
            self._walls.add(wall)
        self._add_up(queued)
        if self._sampler is not None:
            self._sampler.step_began(self._began, self._overdue())

    def _overdue(self) -> int:
        """Nanoseconds after which a step is longer than usual, 0 while nothing is usual."""
        usual = self._walls.at(0.5)
        return usual + max(usual // 20, 5_000_000) if len(self._walls) >= WARM else 0

    def _queue_wait(self) -> int:
        """Nanoseconds of this step in which the thread was ready and had no CPU, −1 when the system does not tell."""
        total = self._scheduled.queued() if self._scheduled is not None else -1
        before, self._queued_before = self._queued_before, total
        return total - before if total >= 0 and before >= 0 else -1

    def _idle(self, parts: tuple[str, ...], queued: int) -> int:
        """Nanoseconds that nothing explains in these parts of this step."""
        slept = sum(p.slept_ns for p in self._places.values() if p.part in parts)
        return max(0, sum(self._waited(part) for part in parts) - slept - max(queued, 0))

    def _waited(self, part: str) -> int:
        wall, cpu = self._spent[part]
        return max(0, wall - cpu)

    def _unusual(self, idles: Usual, idle: int) -> bool:
        if len(idles) < WARM:
            return False
        usual, spread = idles.at(0.5), idles.at(0.9) - idles.at(0.5)
        least = max(LEAST_NS, int(LEAST_SHARE * self._walls.at(0.5)))
        return idle > usual + max(least, 3 * spread)

    def _tell_idled(self, wall: int, idle: int, parts: tuple[str, ...], found: Found) -> None:
        """Tell of a step that idled in one of these parts, or of its sleeps alone."""
        calls = self._sleeps()
        if not calls and not idle:
            return
        self.recorder.note(
            Idled(
                step=max(0, self.recorder.done - 1),
                wall_ns=wall,
                usual_ns=self._walls.at(0.5),
                idle_ns=idle,
                usual_idle_ns=self._idles[parts].at(0.5),
                part=max(parts, key=self._waited) if idle else calls[0].part,
                sleeps=calls,
                stack=found[0],
                samples=found[1],
                accelerator=_accelerator(),
            )
        )

    def _sleeps(self) -> tuple[Sleep, ...]:
        """The places that slept in this step, those that did so too often already left out."""
        told = []
        if sum(p.slept_ns for p in self._places.values()) >= _STEP_SLEPT_NS:
            for where, p in self._places.items():
                self._seen[where] += 1
                seen = self._seen[where]
                if seen <= _TOLD_SLEEPS or seen % _LATER == 0:
                    told.append(
                        Sleep(
                            part=p.part,
                            calls=p.calls,
                            asked_ns=p.asked_ns,
                            slept_ns=p.slept_ns,
                            frames=p.frames,
                            seen=seen,
                        )
                    )
        return tuple(sorted(told, key=lambda s: -s.slept_ns)[:8])

    def _add_up(self, queued: int) -> None:
        for part, (wall, cpu) in self._spent.items():
            summed = self._summed[part]
            summed[0] += wall
            summed[1] += cpu
            summed[2] = max(summed[2], wall)
            self._spent[part] = [0, 0]
        if queued >= 0:
            self._queued = max(self._queued, 0) + queued
        self._slept += sum(p.slept_ns for p in self._places.values())
        self._places.clear()
        self._began = self._wall
        self._steps += 1
        if self._steps >= SUMMARY:
            self._summarise()

    def _summarise(self) -> None:
        if not self._steps:
            return
        cpu = time.process_time_ns()
        self.recorder.note(
            StepTimes(
                step=max(0, self.recorder.done - 1),
                steps=self._steps,
                parts=tuple(_part(name, *summed) for name, summed in self._summed.items() if summed[0]),
                process_cpu_ns=cpu - self._process_cpu,
                queued_ns=self._queued,
                slept_ns=self._slept,
                accelerator=_accelerator(),
            )
        )
        self._process_cpu, self._queued = cpu, -1
        self._steps = self._slept = 0
        for summed in self._summed.values():
            summed[:] = [0, 0, 0]


def _part(name: str, wall: int, cpu: int, longest: int) -> PartTimes:
    return PartTimes(part=name, wall_ns=wall, cpu_ns=cpu, longest_ns=longest)


def _accelerator() -> bool:
    """Whether this process uses an accelerator; asked without importing anything."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
