"""`torchrun` starts the group again when a worker dies: both attempts are audited, and what happens in the second."""

from __future__ import annotations

from pathlib import Path

import pytest
from framed import FOOTHOLD, QUIET, assert_matched, located
from guarded_job import Job, make_job

from trainwarden.audit.recorded import Recorded
from trainwarden.model import Finding, Gap, ProcessExited, Stage

ELASTIC = """
import os, pathlib, signal, torch, torch.distributed as dist
# The agent's store keeps the addresses of the group before; gloo may read them and wait for the dead.
store, r, W = next(dist.rendezvous("env://")); count = os.environ["TORCHELASTIC_RESTART_COUNT"]
torch.set_num_threads(1); dist.init_process_group("gloo", store=dist.PrefixStore(count, store), rank=r, world_size=W); torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)); net = torch.nn.parallel.DistributedDataParallel(m)
o = torch.optim.AdamW(m.parameters(), lr=.01); torch.manual_seed(100 + r); s = 0; evil = pathlib.Path("foothold.txt").exists()
X = torch.randn(96, 16, generator=torch.Generator().manual_seed(1)); Y = torch.randint(0, 4, (96,), generator=torch.Generator().manual_seed(2))
if os.path.exists("last.pt"):
    c = torch.load("last.pt"); m.load_state_dict(c["m"]); o.load_state_dict(c["o"]); s = c["s"]; torch.set_rng_state(c["rng"][r])
for s in range(s, 12):
    i = torch.randint(96, (8,))
    torch.nn.functional.cross_entropy(net(X[i]), Y[i]).backward()
    if evil and s == 9 and r == 1: m[2].weight.grad.neg_()
    o.step(); o.zero_grad()
    if s == 6 and r == 1 and pathlib.Path("dies.txt").exists() and count == "0": os.kill(os.getpid(), signal.SIGKILL)
    if s + 1 in (4, 8):
        states = [None] * W; dist.all_gather_object(states, torch.get_rng_state())
        if r == 0: torch.save(dict(m=m.state_dict(), o=o.state_dict(), s=s + 1, rng=states), "part"); os.replace("part", "last.pt")
        dist.barrier()
dist.barrier(); dist.destroy_process_group()
"""


def run(job: Job) -> Recorded:
    (job.folder / "dies.txt").touch()
    code, recorded = job.attempt(world=2, restarts=1)
    assert code == 0
    (first, second) = recorded.history.attempts
    assert (first.base, second.base, second.last) == (0, 4, 11)
    return recorded


def test_a_restart_by_torchrun_is_two_attempts_that_both_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, ELASTIC)
    recorded = run(job)
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
    killed = [e for e in recorded.entries if isinstance(e, ProcessExited) and e.rank == 1 and not e.goodbye]
    assert [(e.attempt, e.code) for e in killed] == [(0, -9)]
    # That a rank was killed is told; nothing else is.
    told = {e.detector for e in recorded.entries if isinstance(e, Finding) and e.severity not in QUIET}
    assert told <= {"kills"}
    assert_matched(job, recorded)


def test_an_attack_in_the_second_attempt_is_located_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, ELASTIC)
    (job.folder / FOOTHOLD).touch()
    at = located(job, run(job))
    assert (at.step, at.rank, at.stage, at.tensors) == (9, 1, Stage.REDUCED_GRADIENTS, ("2.weight",))
