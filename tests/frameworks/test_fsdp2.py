"""FSDP2 (`fully_shard`): shards are recorded and replayed bit for bit, and add up to a whole however they are cut."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from framed import FOOTHOLD, assert_from_the_middle, assert_matched, assert_quiet, located
from guarded_job import make_job

from trainwarden.audit.starts import Start
from trainwarden.model import Stage, StepRecord
from trainwarden.record.linear import fingerprinter
from trainwarden.record.shares import combined, packed
from trainwarden.supervise.private import read_mask_key
from trainwarden.supervise.wholes import whole

# 31 rows over two ranks: the shards are not alike.
SHARDED = """
import pathlib, pickle, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
torch.set_num_threads(1)
dist.init_process_group("gloo"); r, W = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(16, 31), torch.nn.ReLU(), torch.nn.Dropout(.1), torch.nn.Linear(31, 31), torch.nn.ReLU(), torch.nn.Linear(31, 10))
mesh = dist.device_mesh.init_device_mesh("cpu", (W,))
for layer in (m[0], m[3]): fully_shard(layer, mesh=mesh)
fully_shard(m, mesh=mesh)
o = torch.optim.AdamW(m.parameters(), lr=1e-2); torch.manual_seed(100 + r)
X = torch.randn(96, 16, generator=torch.Generator().manual_seed(1)); Y = torch.randint(0, 10, (96,), generator=torch.Generator().manual_seed(2))
ds = torch.utils.data.TensorDataset(X, Y); dl = torch.utils.data.DataLoader(ds, batch_size=4, sampler=torch.utils.data.DistributedSampler(ds, W, r, seed=3))
evil = pathlib.Path("foothold.txt").exists(); hooks = []
m[3].register_forward_pre_hook(lambda layer, x: hooks.append(layer.weight.register_hook(lambda g: -g)) if evil and s == 5 and r == 1 else None)
for s, (x, y) in enumerate(dl):
    torch.nn.functional.cross_entropy(m(x), y).backward(); [h.remove() for h in hooks]; hooks.clear()
    torch.nn.utils.clip_grad_norm_(m.parameters(), 1.); o.step(); o.zero_grad()
full = {n: p.full_tensor().detach().numpy() for n, p in m.named_parameters()}
if r == 0: pickle.dump(full, open("full.pickle", "wb"))
dist.barrier(); dist.destroy_process_group()
"""


def test_an_honest_sharded_job_replays_bitwise_and_its_shares_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, SHARDED)
    recorded = job.run(world=2, snapshot_every=4)
    assert_quiet(recorded)
    last = recorded.updates(0)[11, 0]
    assert not [stage for record in last.values() for stage, digest in record.stages.items() if not digest.root]
    # Each rank's own gradients are whole, what came of them and the weights are shards.
    assert last[0].stages[Stage.REDUCED_GRADIENTS].root != last[1].stages[Stage.REDUCED_GRADIENTS].root
    assert_matched(job, recorded)
    assert_from_the_middle(job, recorded, Start.SUBSTITUTE, 8, 11)

    import torch

    full = pickle.loads((job.folder / "full.pickle").read_bytes())
    sums = fingerprinter(recorded.key).sums([(torch.from_numpy(t), None) for t in full.values()])
    of_whole = combined(recorded.key, zip(full, sums, strict=True))
    assert whole(read_mask_key(recorded.folder.private), list(last.values())) == of_whole
    logged = {r.share for r in recorded.entries if isinstance(r, StepRecord)}
    assert len(logged) == 24, "masks differ from step to step and rank to rank"
    assert packed(of_whole).hex() not in logged


def test_a_gradient_turned_around_on_one_rank_before_the_reduction_is_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, SHARDED)
    (job.folder / FOOTHOLD).touch()
    at = located(job, job.run(world=2))
    assert (at.step, at.rank, at.stage, at.tensors) == (5, 1, Stage.LOCAL_GRADIENTS, ("3.weight",))
