"""A held job stands still, all of it, and goes on as it was; nothing else is touched."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import until

from trainwarden.supervise.holding import Hold

LAUNCHER = """
import subprocess, sys
code = "import subprocess; w = subprocess.Popen(['sleep', '600']); print(w.pid, flush=True); w.wait()"
rank = [sys.executable, "-c", code]
ranks = [subprocess.Popen(rank, stdout=subprocess.PIPE, text=True) for _ in range(2)]
workers = [r.stdout.readline().strip() for r in ranks]
print(*(r.pid for r in ranks), *workers, flush=True)
for line in sys.stdin:
    print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
for pid in workers:
    import os, signal
    os.kill(int(pid), signal.SIGKILL)
for r in ranks:
    r.wait()
"""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Job:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self.process.stdout is not None
        self.pids = [int(pid) for pid in self.process.stdout.readline().split()]
        self.ranks, self.workers = self.pids[:2], self.pids[2:]

    def states(self) -> str:
        return "".join(state(pid) for pid in self.pids)

    def end(self) -> None:
        for pid in (*self.pids, self.process.pid):
            try:
                signal.pidfd_send_signal(__import__("os").pidfd_open(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.communicate()


@pytest.fixture
def tree() -> Iterator[Job]:
    made = Job()
    yield made
    made.end()


def test_ranks_and_their_workers_stand_still_and_the_launcher_does_not(tree: Job) -> None:
    hold = Hold(tree.process.pid, lambda: tree.ranks)
    assert hold.begin() == 4
    assert bool(hold)
    until(lambda: tree.states() == "TTTT", "all four are stopped")
    assert state(tree.process.pid) != "T"
    assert hold.end() == 4
    until(lambda: "T" not in tree.states(), "all four go on")
    assert not hold


def test_before_a_rank_has_joined_everything_below_the_launcher_is_held(tree: Job) -> None:
    hold = Hold(tree.process.pid, lambda: ())
    assert hold.begin() == 4
    assert state(tree.process.pid) != "T"
    hold.end()


def test_a_command_without_a_launcher_is_held_itself(tree: Job) -> None:
    hold = Hold(tree.workers[0], lambda: (tree.workers[0],))
    assert hold.begin() == 1
    until(lambda: state(tree.workers[0]) == "T", "it is stopped")
    assert state(tree.workers[1]) != "T"
    hold.end()


def test_what_is_started_while_the_job_is_held_is_held_too(tree: Job) -> None:
    hold = Hold(tree.process.pid, lambda: ())
    hold.begin()
    assert tree.process.stdin is not None
    assert tree.process.stdout is not None
    tree.process.stdin.write("more\n")
    tree.process.stdin.flush()
    late = int(tree.process.stdout.readline())
    tree.pids.append(late)
    until(lambda: state(late) == "T", "the late one is stopped")
    hold.end()


def test_processes_of_others_are_never_held(tree: Job) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        hold = Hold(tree.process.pid, lambda: (other.pid,))
        hold.begin()
        assert state(other.pid) != "T"
        hold.end()
    finally:
        other.kill()
        other.wait()


def test_a_job_that_has_ended_cannot_be_held() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    assert Hold(done.pid, lambda: ()).begin() == 0
