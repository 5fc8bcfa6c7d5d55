"""`torch.distributed.checkpoint`, at once and asynchronously: seen, resumed from, cleared, and cut anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from framed import FOOTHOLD, RESUME, assert_from_the_middle, assert_matched, assert_quiet, located
from guarded_job import LAUNCH, make_job

from trainwarden.audit.engine import Audit
from trainwarden.audit.starts import Start
from trainwarden.lineage import trace
from trainwarden.model import DCP, DCP_INDEX, CheckpointSaved, Diverged, Finding, Matched, Severity, Stage, Standing

SHARDED = """
import os, pathlib, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
torch.set_num_threads(1); W = int(os.environ.get("WORLD_SIZE", "1"))
if W > 1: dist.init_process_group("gloo")
else: dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
r, apart = dist.get_rank(), dist.new_group(backend="gloo"); torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(16, 31), torch.nn.ReLU(), torch.nn.Linear(31, 10))
mesh = dist.device_mesh.init_device_mesh("cpu", (W,)); fully_shard(m[0], mesh=mesh); fully_shard(m, mesh=mesh)
o = torch.optim.AdamW(m.parameters(), lr=1e-2)
X = torch.randn(96, 16, generator=torch.Generator().manual_seed(1)); Y = torch.randint(0, 10, (96,), generator=torch.Generator().manual_seed(2))
def state():
    model, optim = get_state_dict(m, o); return {"model": model, "optim": optim, "step": s}
foothold = pathlib.Path("foothold.txt"); evil = foothold.read_text() if foothold.exists() else ""
s = 0; pending = None; last = int(os.environ.get("LAST", "12"))
if "--resume" in sys.argv:
    c = state(); dcp.load(c, checkpoint_id=sys.argv[-1]); set_state_dict(m, o, model_state_dict=c["model"], optim_state_dict=c["optim"]); s = c["step"]
    if evil == "load":
        with torch.no_grad(): m[2].weight.to_local()[0] *= 1.01
while s < last:
    i = torch.randperm(96, generator=torch.Generator().manual_seed(10 * s + r))[:8]
    torch.nn.functional.cross_entropy(m(X[i]), Y[i]).backward()
    if evil == "flip" and s == 5 and r == 1: m[0].weight.grad.to_local().neg_()
    o.step(); o.zero_grad(); s += 1
    if s in (4, 8):
        if pending: pending.result()
        if "--async" in sys.argv: pending = dcp.async_save(state(), checkpoint_id=f"ck/step-{s}", process_group=apart)
        else: dcp.save(state(), checkpoint_id=f"ck/step-{s}")
if pending: pending.result()
dist.barrier(); dist.destroy_process_group()
"""


@pytest.mark.parametrize("how", [(), ("--async",)], ids=["at-once", "asynchronously"])
def test_an_honest_checkpoint_is_of_its_step_resumed_from_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    job = make_job(tmp_path, monkeypatch, SHARDED)
    (job.folder / "trainwarden.toml").write_text(RESUME)
    recorded = job.run(*how, world=2)
    assert_quiet(recorded)
    saved = {(e.step, e.rank, Path(e.path).name, e.format) for e in recorded.entries if isinstance(e, CheckpointSaved)}
    parts = {(s, r, f"__{r}_0.distcp", DCP) for s in (4, 8) for r in (0, 1)}
    assert saved == parts | {(s, 0, ".metadata", DCP_INDEX) for s in (4, 8)}
    assert {c.standing for c in recorded.history.checkpoints} == {Standing.UNDECIDED}
    said = assert_matched(job, recorded)
    assert [c.standing for c in trace([*recorded.entries, *said]).checkpoints] == [Standing.CLEARED] * 2
    assert_from_the_middle(job, recorded, Start.RESUME, 4, 11)


def test_an_attack_between_two_checkpoints_is_located_and_taints_the_second_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, SHARDED)
    (job.folder / "trainwarden.toml").write_text(RESUME)
    (job.folder / FOOTHOLD).write_text("flip")
    recorded = job.run(world=2)
    said = Audit(recorded, job.room).run(recorded.history.segments, first_only=True)
    assert isinstance(said[0], Matched)
    assert isinstance(said[1], Diverged)
    at = said[1].at
    assert (at.step, at.rank, at.stage, at.tensors) == (5, 1, Stage.REDUCED_GRADIENTS, ("0.weight",))
    first, second = trace([*recorded.entries, *said]).checkpoints
    assert (first.standing, second.standing) == (Standing.CLEARED, Standing.TAINTED)


# Two ranks, then one that goes on from their checkpoint: the same state under another cut.
FEWER = f"""
import os, subprocess, sys
launch = [sys.executable, {str(LAUNCH)!r}]
subprocess.run([*launch, "2", "job.py"], check=True, env={{**os.environ, "LAST": "4"}})
subprocess.run([*launch, "1", "job.py", "--resume", "ck/step-4"], check=True, env={{**os.environ, "LAST": "8"}})
"""


@pytest.mark.parametrize("evil", [False, True], ids=["honest", "edited-on-the-way"])
def test_a_restart_on_fewer_ranks_begins_with_the_state_that_was_saved_or_is_told_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: bool
) -> None:
    job = make_job(tmp_path, monkeypatch, SHARDED)
    (job.folder / "fewer.py").write_text(FEWER)
    if evil:
        (job.folder / FOOTHOLD).write_text("load")
    recorded = job.run(script="fewer.py")
    assert [(a.number, a.world, a.base, a.last) for a in recorded.history.attempts] == [(0, 2, 0, 3), (1, 1, 4, 7)]
    if not evil:
        assert_quiet(recorded)
        assert_matched(job, recorded)
        return
    (found,) = [e for e in recorded.entries if isinstance(e, Finding) and e.severity is Severity.HIGH]
    assert (found.detector, found.attempt, found.step) == ("checkpoints", 1, 4)
    assert "with other weights than any attempt had left" in found.seen
    at = located(job, recorded)
    assert (at.step, at.rank) == (4, 0)
