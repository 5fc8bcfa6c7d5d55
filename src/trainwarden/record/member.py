"""This process as a rank of a run: it joins when it makes its first optimizer, and tells the watcher what it sees.

Rules
-----
* What runs in a hook runs inside `guarded`: an error in it becomes a gap, and training goes on.
* What is told before the process has joined waits, and is told then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from trainwarden import wire
from trainwarden.model import Note
from trainwarden.record import entropy
from trainwarden.record.introduction import introduction
from trainwarden.record.link import Link
from trainwarden.record.stacks import stacks

T = TypeVar("T")

_SETTLE_SECONDS = 2.0  # that training waits at most for the watcher, where a file of state was saved


class Member:
    """One process of a run."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.joined: wire.Joined | None = None
        self.key = b""
        self.rank = self.world = 0
        self.step = 0
        self.spent_ns = 0
        self.paused = False
        self._pid = os.getpid()
        self.trainer = 0  # the thread that moves the optimizers
        self.part = ""  # of a step, in which that thread is (`model.PartTimes`)
        self._early: list[wire.Message] = []

    @property
    def is_own_process(self) -> bool:
        """Is this the process that the recorder was made in, and not one that was forked from it?"""
        return os.getpid() == self._pid

    def guarded(self, what: str, action: Callable[[], T]) -> T | None:
        """Run one hook's work; an error in it is a gap and nothing else."""
        if self.paused or not self.is_own_process:
            return None
        begin = time.perf_counter_ns()
        try:
            with torch.no_grad():
                return action()
        except Exception as e:  # noqa: BLE001  the recorder fails open into a gap
            self.gap(f"{what}: {type(e).__name__}: {e}")
            return None
        finally:
            self.spent_ns += time.perf_counter_ns() - begin

    def note(self, note: Note) -> None:
        """Tell an entry of the log that an observer made; the watcher fills in attempt, rank and the job's step."""
        self.tell(wire.Told(note=note))

    def gap(self, reason: str) -> None:
        """Say that something was not recorded."""
        self.tell(wire.Missed(step=self.step, reason=reason[:2000]))

    def tell(self, message: wire.Message) -> None:
        """Send a message to the watcher, now or when this process has joined."""
        if self.link is not None:
            self.link.tell(message)
        elif len(self._early) < 1000:
            self._early.append(message)

    def settle(self) -> None:
        """Wait a little until the watcher can read all that was told, whatever becomes of this process."""
        if self.link is not None:
            self.link.settle(_SETTLE_SECONDS)

    def ask_or_wait(self, message: wire.Message) -> None:
        """Send a message and wait for its answer; before this process has joined it is told then."""
        if self.link is None:
            self._early.append(message)
        else:
            self.link.ask(message, timeout=120)

    def join(self) -> None:
        """Introduce this process as a rank."""
        connection = wire.Connection.connect(os.environ[wire.SOCKET_ENV])
        join = introduction()
        self.rank, self.world = join.rank, join.world
        connection.send(join)
        answer = connection.receive(timeout=60)
        if not isinstance(answer, wire.Joined):
            raise RuntimeError(f"the watcher answered {type(answer).__name__}")
        self.joined, self.key = answer, answer.key
        self.link = Link(connection, self.looked_at)
        entropy.write(self.folder)
        for message in self._early:
            if isinstance(message, wire.Loaded):
                self.link.ask(message, timeout=120)
            else:
                self.link.tell(message)
        self._early.clear()

    def looked_at(self, token: int) -> wire.Message:
        """The answer to a watcher that asks where this process stands."""
        return stacks(token, self.trainer, self.part)

    @property
    def folder(self) -> Path:
        """Where this rank writes its snapshots."""
        if self.joined is None:
            raise RuntimeError("not joined")
        return Path(self.joined.run_dir) / "snapshots" / f"a{self.joined.attempt}-r{self.rank}"
