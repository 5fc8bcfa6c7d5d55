"""`torch.compile`: what inductor builds is recorded and replayed bit for bit (aot_eager where there is no compiler)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from framed import FOOTHOLD, assert_matched, assert_quiet, located
from guarded_job import make_job

from trainwarden.model import Stage

BACKEND = "inductor" if shutil.which("g++") else "aot_eager"
COMPILED = f"""
import pathlib, torch, torch.distributed as dist
torch.set_num_threads(1); dist.init_process_group("gloo"); r = dist.get_rank(); torch.manual_seed(0)
m = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Dropout(.1), torch.nn.Linear(32, 4))
net = torch.nn.parallel.DistributedDataParallel(torch.compile(m, backend={BACKEND!r}))
o = torch.optim.AdamW(m.parameters(), lr=.01); torch.manual_seed(100 + r); evil = pathlib.Path("foothold.txt").exists()
for s in range(6):
    x, y = torch.randn(8, 16), torch.randint(0, 4, (8,))
    loss = torch.nn.functional.cross_entropy(net(x), y)
    if evil and s == 4 and r == 1: h = m[3].weight.register_hook(lambda g: -g)
    loss.backward(); o.step(); o.zero_grad()
    if evil and s == 4 and r == 1: h.remove()
dist.barrier(); dist.destroy_process_group()
"""


def test_a_compiled_job_replays_bitwise_and_an_attack_on_it_is_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    job = make_job(tmp_path, monkeypatch, COMPILED)
    recorded = job.run(world=2)
    assert_quiet(recorded)
    assert not [s for r in recorded.updates(0)[5, 0].values() for s, digest in r.stages.items() if not digest.root]
    assert_matched(job, recorded)
    (job.folder / FOOTHOLD).touch()
    at = located(job, job.run(world=2))
    assert (at.step, at.rank, at.stage, at.tensors) == (4, 1, Stage.LOCAL_GRADIENTS, ("3.weight",))
