"""The monitors: standstill, silence, clocks and crowds, driven by hand and by real processes of our own."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import pytest
from supervised import of_kind, until

from trainwarden import wire
from trainwarden.model import ClockShifted, Entry, Gap, HostCrowded, StackFrame, Stalled, Writer, canonical
from trainwarden.supervise import proc
from trainwarden.supervise.monitors import Host, Monitors
from trainwarden.supervise.monitors import clocks as clocks_module
from trainwarden.supervise.monitors import crowds as crowds_module
from trainwarden.supervise.monitors.clocks import Clocks
from trainwarden.supervise.monitors.crowds import Crowds, foreign, squatters
from trainwarden.supervise.monitors.stalls import Stalls
from trainwarden.supervise.presence import Presence

SCRIPT = StackFrame(file="/job/train.py", line=3, function="main")


class Scene:
    """A presence with fake ranks, and what monitors submitted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stall_seconds: float = 60.0) -> None:
        self.entries: list[Entry] = []
        self.now = 1000.0
        self.presence = Presence(lambda: self.now)
        monkeypatch.setattr("trainwarden.supervise.monitors.stalls.SPAN", 0.0)
        self.host = Host(
            presence=self.presence,
            submit=self.entries.append,
            supervisor_pid=os.getpid(),
            is_sealed=lambda path: path.startswith("/job/"),
            stall_seconds=stall_seconds,
            stopped_by=lambda pid: Writer(pid=55, program="bash"),
        )

    def join(self, rank: int, answer: Callable[[int], wire.Stacks] | None = None, pid: int = 0) -> None:
        def ask(token: int) -> None:
            if answer is not None:
                self.presence.stacks(0, rank, answer(token))

        self.presence.joined(0, rank, 2, pid or os.getpid(), ask)

    def step(self, rank: int, reached: int) -> None:
        self.presence.moved(0, rank, reached, time.time_ns())


def stacks(part: str = "update", file: str = "/job/train.py") -> Callable[[int], wire.Stacks]:
    frame = StackFrame(file=file, line=3, function="main")
    thread = wire.ThreadStack(native=0, name="MainThread", trains=True, frames=(frame,))
    return lambda token: wire.Stacks(token=token, part=part, threads=(thread,))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def run_steps(scene: Scene, monitor: Stalls, count: int, ranks: tuple[int, ...] = (0, 1), first: int = 1) -> None:
    for reached in range(first, first + count):
        scene.now += 1.0
        for rank in ranks:
            scene.step(rank, reached)
        monitor.look(scene.now)


def test_a_standstill_is_told_once_with_every_ranks_place(scene: Scene) -> None:
    scene.join(0, stacks("reduction"))
    scene.join(1, stacks("update", file="/planted.py"))
    monitor = Stalls(scene.host)
    run_steps(scene, monitor, 10)
    monitor.look(scene.now + 59)
    assert scene.entries == []
    monitor.look(scene.now + 61)
    monitor.look(scene.now + 200)
    (stalled,) = of_kind(scene.entries, Stalled)
    assert (stalled.kind, stalled.step, stalled.usual_seconds) == ("stall", 10, 1.0)
    assert [(r.rank, r.answered, r.collective, r.unsealed) for r in stalled.ranks] == [
        (0, True, True, ()),
        (1, True, False, ("/planted.py",)),
    ]


def test_the_time_for_which_a_job_is_held_is_no_standstill_and_no_silence(scene: Scene) -> None:
    scene.join(0, stacks())
    scene.join(1, stacks())
    held = [False]
    monitor = Stalls(dataclasses.replace(scene.host, held=lambda: held[0]))
    run_steps(scene, monitor, 10)
    held[0] = True
    scene.now += 600
    monitor.look(scene.now)
    held[0] = False
    run_steps(scene, monitor, 20, ranks=(0,), first=11)
    assert scene.entries == []
    monitor.look(scene.now + 61)
    assert [e.kind for e in of_kind(scene.entries, Stalled)] == ["stall", "silent"]


def test_a_run_with_long_steps_and_a_pause_as_long_as_one_before_is_no_standstill(scene: Scene) -> None:
    scene.join(0, stacks())
    monitor = Stalls(scene.host)
    for reached in range(1, 6):
        scene.now += 10.0
        scene.step(0, reached)
        monitor.look(scene.now)
    monitor.look(scene.now + 150)  # 20 usual steps are 200 s
    assert scene.entries == []
    scene.now += 300
    monitor.look(scene.now)
    assert len(scene.entries) == 1
    scene.step(0, 6)
    monitor.look(scene.now)
    monitor.look(scene.now + 400)  # half as long again as the pause that ended by itself is 450 s
    assert len(scene.entries) == 1


def test_the_first_step_may_take_ten_times_as_long(scene: Scene) -> None:
    scene.join(0, stacks())
    monitor = Stalls(scene.host)
    monitor.look(scene.now)
    monitor.look(scene.now + 590)
    assert scene.entries == []
    monitor.look(scene.now + 610)
    assert [e.step for e in of_kind(scene.entries, Stalled)] == [0]


def test_a_run_whose_ranks_said_goodbye_is_silent(scene: Scene) -> None:
    scene.join(0, stacks())
    monitor = Stalls(scene.host)
    run_steps(scene, monitor, 5, (0,))
    scene.presence.left(0, 0, os.getpid())
    monitor.look(scene.now + 1000)
    assert scene.entries == []


def test_a_rank_that_is_silent_while_its_peers_go_on_is_told_once(scene: Scene) -> None:
    scene.join(0, stacks())
    scene.join(1, stacks())
    monitor = Stalls(scene.host)
    run_steps(scene, monitor, 10)
    run_steps(scene, monitor, 90, (0,), first=11)
    (stalled,) = of_kind(scene.entries, Stalled)
    assert (stalled.kind, [r.rank for r in stalled.ranks]) == ("silent", [1])


def test_a_rank_that_is_stopped_is_told_so_by_proc(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        process.send_signal(signal.SIGSTOP)
        until(lambda: (s := proc.stat(process.pid)) is not None and s.state == "T", "the process is stopped")
        monkeypatch.setattr("trainwarden.supervise.monitors.stalls.PATIENCE", 0.01)
        scene.join(0, None, process.pid)
        monitor = Stalls(scene.host)
        run_steps(scene, monitor, 5, (0,))
        monitor.look(scene.now + 61)
        (seen,) = of_kind(scene.entries, Stalled)[0].ranks
        assert (seen.answered, seen.state, seen.stopped_by) == (False, "T", Writer(pid=55, program="bash"))
    finally:
        process.kill()
        process.wait()


def test_a_stack_that_a_hostile_rank_makes_up_is_cut_to_size(scene: Scene) -> None:
    frame = StackFrame(file="/" + "x" * 100_000, line=1, function="f")
    thread = wire.ThreadStack(native=-5, name="", trains=True, frames=(frame,) * 1_000)
    scene.join(0, lambda token: wire.Stacks(token=token, part="p" * 10_000, threads=(thread,)))
    monitor = Stalls(scene.host)
    run_steps(scene, monitor, 5, (0,))
    monitor.look(scene.now + 61)
    (stalled,) = of_kind(scene.entries, Stalled)
    assert len(canonical(stalled)) < 64_000


# -- clocks


def test_a_clock_that_is_set_is_told_and_one_that_is_slewed_is_not(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    now = [(10**18, 0), 0]
    monkeypatch.setattr(clocks_module, "_offsets", lambda: now[0])
    monkeypatch.setattr(clocks_module.time, "clock_gettime_ns", lambda clock: now[1])
    monitor = Clocks(scene.host)

    def look(wall: int, monotonic: int = 0) -> None:
        now[0] = (now[0][0] + wall, now[0][1] + monotonic)  # type: ignore[index]
        now[1] += 1_000_000_000  # type: ignore[operator]
        monitor.look(0.0)

    for _ in range(3600):
        look(400_000)  # 400 ppm, for an hour
    assert scene.entries == []
    look(-3_600_000_000_000)
    look(0)
    look(0, -90_000_000_000)
    look(0)
    told = [(e.kind, e.by_ns) for e in of_kind(scene.entries, ClockShifted)]
    assert told == [("host", -3_600_000_000_000), ("slept", 90_000_000_000)]
    for _ in range(60):
        look(100_000_000)  # a tenth of a second each second
    assert len(scene.entries) == 3


def test_the_clocks_of_this_machine_are_no_shift(scene: Scene) -> None:
    monitor = Clocks(scene.host)
    for _ in range(50):
        monitor.look(0.0)
    assert of_kind(scene.entries, ClockShifted) == []


@pytest.mark.parametrize(("by", "told"), [(-86_400, True), (3_600, True), (0, False), (-5, False)])
def test_times_that_a_rank_claims_are_compared_with_their_arrival(scene: Scene, by: int, told: bool) -> None:
    scene.join(0)
    monitor = Clocks(scene.host)
    for reached in range(1, 30):
        scene.presence.moved(0, 0, reached, time.time_ns() + by * 10**9)
        monitor.look(0.0)
    shifts = of_kind(scene.entries, ClockShifted)
    assert len(shifts) == told
    assert all(s.kind == "rank" and round(s.by_ns / 1e9) == by for s in shifts)


# -- crowds


def crowd_monitor(
    monkeypatch: pytest.MonkeyPatch, scene: Scene, shares: list[float], taken: Sequence[bool] = (True,)
) -> None:
    """One look after the other; somebody else is busy when looked for, or not (`taken`, the last from then on)."""
    waited, answers = [0.0], list(taken)
    monkeypatch.setattr(crowds_module.proc, "queued", lambda pid: (0.0, waited[0]))
    named = crowds_module.Foreign(pid=7, program="miner", cpu_share=1.9)
    busy = lambda: answers.pop(0) if len(answers) > 1 else answers[0]  # noqa: E731
    monkeypatch.setattr(crowds_module, "foreign", lambda ranks, pid: (named,) if busy() else ())
    scene.join(0)
    monitor = Crowds(scene.host)
    for i, share in enumerate(shares):
        waited[0] += share
        monitor.look(1000.0 + i)


def test_ranks_that_wait_for_cpus_more_than_before_and_for_long_are_told_once(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    crowd_monitor(monkeypatch, scene, [0.02] * 12 + [0.5, 0.1] * 20)
    (told,) = of_kind(scene.entries, HostCrowded)
    assert (told.kind, told.usual_share, told.seconds) == ("cpu", 0.02, 15.0)
    assert told.waiting_share > 0.15 + told.usual_share
    assert told.processes[0].pid == 7


@pytest.mark.parametrize(("usual", "crowded", "times"), [(0.2, 0.5, 1), (0.2, 0.35, 0), (0.5, 0.8, 1), (0.1, 0.28, 0)])
def test_ranks_that_waited_before_are_told_when_they_wait_clearly_more(
    monkeypatch: pytest.MonkeyPatch, scene: Scene, usual: float, crowded: float, times: int
) -> None:
    crowd_monitor(monkeypatch, scene, [usual] * 12 + [crowded] * 30)
    assert len(of_kind(scene.entries, HostCrowded)) == times


@pytest.mark.parametrize(
    "shares", [[0.5] * 40, [0.02] * 10 + [0.5] * 4 + [0.02] * 10, [0.02] * 20 + [0.5, *[0.05] * 4] * 8, [0.0] * 40]
)
def test_a_host_that_was_crowded_from_the_start_and_short_crowds_are_silent(
    monkeypatch: pytest.MonkeyPatch, scene: Scene, shares: list[float]
) -> None:
    crowd_monitor(monkeypatch, scene, shares)
    assert of_kind(scene.entries, HostCrowded) == []


def test_lighter_moments_of_a_crowd_do_not_become_what_is_usual(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    """As measured on two processors with a busy process for each: half of the looks pass for usual, each by itself."""
    crowd_monitor(monkeypatch, scene, [0.18] * 14 + [0.32, 0.34, 0.44, 0.6] * 8)
    (told,) = of_kind(scene.entries, HostCrowded)
    assert told.usual_share == 0.18


def test_a_crowd_is_looked_for_again_where_nobody_was_busy_at_that_moment(
    monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    crowd_monitor(monkeypatch, scene, [0.02] * 10 + [0.5] * 40, taken=[False, True])
    assert len(of_kind(scene.entries, HostCrowded)) == 1


def test_a_run_that_crowds_itself_accuses_nobody(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    crowd_monitor(monkeypatch, scene, [0.02] * 10 + [0.5] * 30, taken=[False])
    assert scene.entries == []


def test_a_busy_process_outside_of_the_run_is_found_and_our_own_are_not(scene: Scene) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        scene.join(0)
        ranks = scene.presence.ranks()
        until(lambda: any(f.pid == busy.pid for f in foreign(ranks, -1, 0.2)), "it is seen by another run")
        assert not any(f.pid == busy.pid for f in foreign(ranks, os.getpid(), 0.2))
    finally:
        busy.kill()
        busy.wait()


SMI = """\
GPU-5a7bf6e7-2f4c-9d1e-8c33-6d1f2b1c0a11, 4242, 1538, /usr/bin/python3
GPU-5a7bf6e7-2f4c-9d1e-8c33-6d1f2b1c0a11, 999999, 20480, /tmp/x, with a comma
GPU-5a7bf6e7-2f4c-9d1e-8c33-6d1f2b1c0a11, 4243, [N/A], python
GPU-0c9b0f5e-3333-4444-5555-666677778888, 999998, 512, other
"""


def test_foreign_processes_on_the_accelerator_of_a_rank_are_found() -> None:
    (found,) = squatters(SMI, {4242}, lambda pid: pid == 4243)
    assert (found.pid, found.memory_mib, found.program) == (999999, 20480, "/tmp/x, with a comma")
    assert squatters("No running processes found\n", {4242}, lambda pid: False) == ()


# -- the thread that asks them


def test_a_monitor_that_fails_is_a_gap_and_the_others_go_on(scene: Scene) -> None:
    class Fails:
        name, every = "fails", 0.0

        def look(self, now: float) -> None:
            raise OSError("no /proc")

    class Counts:
        name, every, looks = "counts", 0.0, 0

        def look(self, now: float) -> None:
            self.looks += 1

    counts = Counts()
    monitors = Monitors([Fails(), counts], scene.entries.append, tick=0.001)
    monitors.start()
    until(lambda: counts.looks > 5, "the other one is asked")
    monitors.close()
    (gap,) = of_kind(scene.entries, Gap)
    assert "'fails' failed and looks no more: OSError: no /proc" in gap.reason


def test_stat_and_wait_channels_of_threads_are_read() -> None:
    text = "123 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 100 0 0"
    assert proc.parse_stat(text) == proc.Stat("S", 1, 300 / proc.TICKS)
    assert proc.parse_stat("nonsense") is None
    assert proc.stat(os.getpid()) is not None
    assert proc.process(os.getpid()).uid == os.getuid()
