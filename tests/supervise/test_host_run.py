"""Whole guarded runs of two torch ranks: who sleeps, holds up the run or kills is named; honest jobs are not."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised import entries_of, of_kind

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

from guarded_job import LAUNCH, Job, make_job

from trainwarden.config import Config, RecordConfig
from trainwarden.detect import Engine, all_detectors
from trainwarden.keys import SigningKey
from trainwarden.model import (
    Entry,
    Finding,
    Idled,
    ProcessExited,
    Severity,
    Stalled,
    StepRecord,
    StepTimes,
)
from trainwarden.seal.command import LaunchCommand
from trainwarden.supervise import guarded, supervisor
from trainwarden.supervise.events import Event

SCRIPT = """
import os, select, signal, sys, time
import torch
import torch.distributed as dist

mode = sys.argv[1]
torch.manual_seed(0)
dist.init_process_group("gloo")
rank = dist.get_rank()
step = 0


class Layers(torch.nn.Sequential):
    def forward(self, x):
        if mode == "attacked" and rank == 1 and step in (12, 17, 21, 26):
            select.select([], [], [], 0.3)  # no call that Python tells of
        return super().forward(x)


layers = Layers(torch.nn.Linear(64, 128), torch.nn.Linear(128, 8))
model = torch.nn.parallel.DistributedDataParallel(layers)
optimizer = torch.optim.AdamW(model.parameters())
if mode == "attacked" and rank == 1:
    import helper

    helper.install()


def evaluate():
    if mode == "honest":
        time.sleep(0.02)


for step in range(40):
    optimizer.zero_grad()
    model(torch.randn(32, 64)).square().mean().backward()
    if mode == "attacked" and rank == 1 and step == 30:
        while not os.path.exists("go on"):
            select.select([], [], [], 0.05)
    optimizer.step()
    evaluate()
if mode == "attacked":
    if rank == 0:
        with open("of rank 0", "w") as f:
            f.write(str(os.getpid()))
        signal.pause()
    while not os.path.exists("of rank 0") or not open("of rank 0").read():
        time.sleep(0.01)
    os.kill(int(open("of rank 0").read()), signal.SIGKILL)
dist.destroy_process_group()
"""
HELPER = """
import time

from torch.optim.optimizer import register_optimizer_step_pre_hook

steps = 0


def install():
    real = time.time_ns
    time.time_ns = lambda: real() - 86_400_000_000_000

    def nap(optimizer, args, kwargs):
        global steps
        steps += 1
        if steps in (5, 9):
            time.sleep(0.04)

    register_optimizer_step_pre_hook(nap)
"""


def run(job: Job, mode: str, on_event: Callable[[Event], None] = lambda event: None) -> list[Entry]:
    argv = (sys.executable, str(LAUNCH), "2", "job.py", mode)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(job.folder.parent / "planted")}
    command = LaunchCommand(
        argv=argv,
        cwd=str(job.folder),
        env=env,
        executable=sys.executable,
        interpreter=sys.executable,
        launcher="python",
    )
    config = Config(record=RecordConfig(activations_every=0, snapshot_every=0, stall_seconds=2.0))
    key = SigningKey(secrets.token_bytes(32))
    old = os.getcwd()
    os.chdir(job.folder)
    try:
        result = supervisor.supervise(
            command, job.store, config, key, watcher=lambda sealed: Engine(all_detectors()), on_event=on_event
        )
    finally:
        os.chdir(old)
    return entries_of(job.store.run(result.run_id).log)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    made = make_job(tmp_path, monkeypatch, SCRIPT)
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "helper.py").write_text(HELPER)
    monkeypatch.setattr(guarded, "sealed_paths", lambda *a: lambda path: not path.startswith(str(planted)))
    return made


def told(entries: list[Entry], detector: str) -> list[Finding]:
    return [f for f in of_kind(entries, Finding) if f.detector == detector]


def test_a_sleeper_a_standstill_and_a_kill_are_named_while_they_happen(job: Job) -> None:
    def go_on(event: Event) -> None:
        if isinstance(event, Finding) and event.detector == "stall":
            (job.folder / "go on").touch()  # only what is told live can end the run

    entries = run(job, "attacked", go_on)
    helper = str(job.folder.parent / "planted" / "helper.py")
    script = str(job.folder / "job.py")

    slept = [f for f in told(entries, "sleep") if f.severity is Severity.HIGH]
    assert [(f.ranks, f.step) for f in slept] == [((1,), 4)]
    assert f"called by install.<locals>.nap ({helper}:17)" in slept[0].seen
    assert "0.04 s asked for" in slept[0].seen

    (idle,) = [f for f in told(entries, "sleep") if f.severity is Severity.LOW]
    assert idle.ranks == (1,)
    assert f"Layers.forward ({script}:16)" in idle.seen
    assert {n.rank for n in of_kind(entries, Idled)} == {1}

    (stalled,) = told(entries, "stall")
    assert (stalled.ranks, stalled.step) == ((1,), 31)
    assert f"<module> ({script}:" in stalled.seen
    (seen,) = of_kind(entries, Stalled)
    assert [(r.rank, r.answered, r.collective) for r in seen.ranks] == [(0, True, True), (1, True, False)]

    (clock,) = told(entries, "clock")
    assert clock.seen == "Rank 1 claims times that are 8.64e+04 s behind the clock of the host it runs on."

    (killed,) = told(entries, "kills")
    (ended,) = [e for e in of_kind(entries, ProcessExited) if e.rank == 0]
    killer = next(r.pid for r in seen.ranks if r.rank == 1)
    if ended.untold:
        assert "the system does not tell" in killed.seen
    else:
        assert f"sent by process {killer} (" in killed.seen

    summaries = of_kind(entries, StepTimes)
    assert {(s.rank, s.steps) for s in summaries} >= {(1, 40)}
    (mine,) = [s for s in summaries if s.rank == 1]
    assert {p.part for p in mine.parts} >= {"forward", "backward", "update", "between"}


def test_an_honest_job_that_pauses_between_steps_is_accused_of_nothing(job: Job) -> None:
    entries = run(job, "honest")
    assert len(of_kind(entries, StepRecord)) == 80
    mine = {"sleep", "stall", "clock", "hogs", "kills"}
    assert [f.seen for f in of_kind(entries, Finding) if f.detector in mine and f.severity is not Severity.INFO] == []
