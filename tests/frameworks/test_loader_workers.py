"""Loaders with worker processes, and torchdata's stateful ones: replayed from the start and from the middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from framed import FOOTHOLD, RESUME, assert_from_the_middle, assert_matched, assert_quiet, located
from guarded_job import make_job

from trainwarden.audit.replay import replay
from trainwarden.audit.starts import Start
from trainwarden.model import Stage

HEAD = """
import os, pathlib, random, sys, numpy, torch, torch.distributed as dist
torch.set_num_threads(1); dist.init_process_group("gloo"); r, W = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0); m = torch.nn.Linear(16, 4); net = torch.nn.parallel.DistributedDataParallel(m)
o = torch.optim.AdamW(m.parameters(), lr=.01); torch.manual_seed(100 + r); random.seed(r); numpy.random.seed(r)
class Data(torch.utils.data.Dataset):
    def __len__(self): return 40
    def __getitem__(self, i):  # every generator of a worker decides what it gives
        noise = torch.randn(16) + random.random() + float(numpy.random.rand())
        return torch.randn(16, generator=torch.Generator().manual_seed(i)) + .1 * noise, i % 4
evil = pathlib.Path("foothold.txt").exists(); s = 0; c = torch.load(sys.argv[-1]) if "--resume" in sys.argv else {}
if c: m.load_state_dict(c["m"]); o.load_state_dict(c["o"]); s = c["s"]
"""
LOOP = """
while s < 12:
    for x, y in dl:
        if evil and s == 5 and r == 1: x = -x
        torch.nn.functional.cross_entropy(net(x), y).backward(); o.step(); o.zero_grad(); s += 1
        if s in (4, 8):
            states = [None] * W; dist.all_gather_object(states, dl.state_dict() if hasattr(dl, "state_dict") else None)
            if r == 0: torch.save(dict(m=m.state_dict(), o=o.state_dict(), s=s, dl=states), f"ck{s}.pt")
        if s == 12: break
dist.barrier(); dist.destroy_process_group()
"""
# Saves neither generators nor the loader's place; the second epoch begins at step 10.
WORKERS = HEAD + "dl = torch.utils.data.DataLoader(Data(), batch_size=4, shuffle=True, num_workers=2)" + LOOP
STATEFUL = (
    HEAD
    + """
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler
class Data(Data):
    def __len__(self): return 80
    def __getitem__(self, i): return torch.randn(16, generator=torch.Generator().manual_seed(i)), i % 4
d = Data(); dl = StatefulDataLoader(d, 4, sampler=StatefulDistributedSampler(d, W, r, shuffle=True, seed=1), num_workers=2)
if c: dl.load_state_dict(c["dl"][r])
"""
    + LOOP
)


def test_a_loader_with_workers_is_put_where_it_stood_with_their_generators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, WORKERS)
    (job.folder / "trainwarden.toml").write_text(RESUME)
    recorded = job.run(world=2, snapshot_every=4)
    assert_quiet(recorded)
    assert_matched(job, recorded)
    assert_from_the_middle(job, recorded, Start.RESTORE, 4, 11)
    assert_from_the_middle(job, recorded, Start.SUBSTITUTE, 8, 11)


def test_a_batch_altered_on_one_rank_behind_its_loader_is_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, WORKERS)
    (job.folder / FOOTHOLD).touch()
    at = located(job, job.run(world=2))
    assert (at.step, at.rank, at.stage, at.tensors) == (5, 1, Stage.BATCH, ("input/0.0.0",))


def test_workers_that_are_kept_are_replayed_from_the_start_and_elsewhere_said_not_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, WORKERS.replace("num_workers=2", "num_workers=2, persistent_workers=True"))
    recorded = job.run(world=2, snapshot_every=11)
    assert_quiet(recorded)
    assert_matched(job, recorded)
    result = replay(recorded, job.room, 0, 11, 11, Start.SUBSTITUTE)
    assert result.matched == ()
    assert any("workers are kept cannot be put into a later epoch" in problem for problem in result.problems)


def test_a_stateful_loader_replays_by_its_own_state_and_by_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchdata.stateful_dataloader")
    job = make_job(tmp_path, monkeypatch, STATEFUL)
    (job.folder / "trainwarden.toml").write_text(RESUME)
    recorded = job.run(world=2, snapshot_every=4)
    assert_quiet(recorded)
    assert_matched(job, recorded)
    for way in (Start.RESUME, Start.RESTORE, Start.SUBSTITUTE):
        assert_from_the_middle(job, recorded, way, 8, 11)
    (job.folder / FOOTHOLD).touch()
    at = located(job, job.run(world=2))
    assert (at.step, at.rank, at.stage, at.tensors) == (5, 1, Stage.BATCH, ("input/0.0.0",))
