"""A process that replays units of one rank without its peers, kept warm between them.

Starting a process and importing torch costs more than most units; so one process does as many as its script has steps.
What went wrong in it is told with the unit that it happened in, and ends it.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trainwarden import wire
from trainwarden.audit import given, runner
from trainwarden.audit.compare import Seen
from trainwarden.audit.plan import Plan, encode
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import place_file
from trainwarden.errors import CannotDecide
from trainwarden.seal.room import Room, Workspace
from trainwarden.supervise.auditing import process_cpu_ns

RECORDER = "trainwarden.audit.alonerank:AloneReplayer"
STALL_SECONDS = 300.0
_LOOK_SECONDS = 0.02


class Alone:
    """One rank of one attempt, held open; `run` once a unit, `close` once."""

    def __init__(self, recorded: Recorded, room: Room, space: Workspace, attempt: int, rank: int) -> None:
        started, env = recorded.starts(attempt)[rank]
        if any(runner.SPAWNED in s.argv for s, _ in recorded.starts(attempt)):
            space.remove()
            raise CannotDecide("its script spawned the ranks itself: one of them cannot be started alone")
        self.attempt, self.rank = attempt, rank
        self._recorded, self._space = recorded, space
        self._every = recorded.seal.seal.comparison.activations_every
        self._rank = runner.Rank(
            started=started, env=env, plan=Plan(), entropy=recorded.entropy(attempt, rank), recorder=RECORDER
        )
        self._plans: queue.Queue[bytes] = queue.Queue()
        self._seen: list[Seen] = []
        self._problems: list[str] = []
        self._opened: set[str] = set()
        self._idle = threading.Event()  # the unit is done, the process waits for another
        self._alive = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="tw-", ignore_cleanup_errors=True)
        self._server = wire.Server(Path(self._folder.name) / "s", lambda _: _Handler(self))
        try:
            for file in recorded.start_files(recorded.attempt(attempt)):
                place_file(recorded, space, file)
            given.place(recorded, space)
            self._processes = runner.start([self._rank], space, str(self._server.path))
        except BaseException:
            self._processes = []
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether it can take another unit."""
        return self._processes[0][1].poll() is None and not self._problems

    @property
    def cpu_ns(self) -> int:
        """CPU time that the process has used, while it lives; after that it is among our children's."""
        return process_cpu_ns(self._processes[0][1].pid)

    def run(self, plan: Plan, stop: Callable[[], bool]) -> list[Seen]:
        """What the unit's steps recorded, those on the way included.

        Raises:
            CannotDecide: it failed, stood still, was stopped, or read other files than the run did.
        """
        self._seen, self._alive = [], time.monotonic()
        self._idle.clear()
        self._plans.put(encode(plan))
        process = self._processes[0][1]
        while not self._idle.wait(_LOOK_SECONDS):
            if stop():
                raise CannotDecide("the audit was ended")
            if time.monotonic() - self._alive > STALL_SECONDS:
                raise CannotDecide(f"a rank without its peers stood still for {STALL_SECONDS:.0f} s")
            if process.poll() is not None:
                break
        self._problems += runner.exits(self._processes, self._space) if process.poll() is not None else []
        self._problems += list(given.strayed(self._recorded, self._space, self._opened))
        if self._problems:
            raise CannotDecide("; ".join(dict.fromkeys(self._problems)))
        if not any(s.record.step == plan.last for s in self._seen):
            raise CannotDecide("the script ended before the unit's step")
        return self._seen

    def close(self) -> None:
        """End it and remove what it wrote."""
        self._plans.put(b"")
        runner.end(self._processes)
        self._server.close(drain_seconds=2, arrived_seconds=2)
        self._folder.cleanup()
        self._space.remove()

    # -- what the process tells, in the server's thread

    def told(self, message: wire.Message) -> wire.Message | None:
        """Take a message in, and answer it where it wants one."""
        self._alive = time.monotonic()
        match message:
            case wire.Start():
                return wire.Go()
            case wire.Join():
                return self._joined(message)
            case wire.Step():
                self._seen.append(Seen(record=message.record, details=message.details))
            case wire.NextUnit():
                self._idle.set()
                return wire.NewUnit(plan=self._plans.get())
            case wire.Loaded():
                return wire.Known(step=-1)
            case wire.Opened():
                self._opened.add(message.path)
            case wire.Missed():
                self._problems.append(f"rank {self.rank}: {message.reason}")
            case wire.Bye():
                return wire.Go()
            case _:
                pass
        return None

    def _joined(self, message: wire.Join) -> wire.Joined:
        recorded, here = self._rank.started.numerics, message.numerics
        if recorded != here:
            self._problems.append(runner.numerics_problem(message.rank, recorded, here))
        if message.rank != self.rank:
            raise ValueError(f"joined as rank {message.rank}, recorded was {self.rank}")
        return wire.Joined(
            attempt=self.attempt,
            key=self._recorded.key,
            run_dir=str(self._space.scratch / "replay"),
            activations_every=self._every,
            snapshot_every=0,
            plan=self._plans.get(),
        )


class _Handler:
    """A `wire.Handler` for the process's connections."""

    def __init__(self, alone: Alone) -> None:
        self._alone = alone

    def message(self, message: wire.Message) -> wire.Message | None:
        return self._alone.told(message)

    def closed(self, error: str) -> None:
        pass
