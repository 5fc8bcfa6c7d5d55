"""A whole attack on a tiny job of two ranks: the honest run is silent, the struck one is found at the right step."""

from __future__ import annotations

from pathlib import Path

from trainwarden.redteam.catalogue import find, load
from trainwarden.redteam.place import Range
from trainwarden.redteam.trial import attack, honest
from trainwarden.redteam.workloads import Workload

JOB = """
import os, torch, torch.distributed as dist
torch.set_num_threads(1); torch.manual_seed(0); dist.init_process_group("gloo"); rank = dist.get_rank()
m = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
net = torch.nn.parallel.DistributedDataParallel(m); o = torch.optim.AdamW(m.parameters(), lr=1e-2)
X = torch.randn(640, 16, generator=torch.Generator().manual_seed(1)); Y = X[:, :4].argmax(1)
for s in range(20):
    i = slice((2 * s + rank) * 16, (2 * s + rank + 1) * 16)
    torch.nn.functional.cross_entropy(net(X[i]), Y[i]).backward(); o.step(); o.zero_grad()
    if rank == 0: print(f"step {s + 1}", flush=True)
os.makedirs("out", exist_ok=True)
if rank == 0: torch.save(m.state_dict(), "out/last.pt")
dist.barrier(); dist.destroy_process_group()
"""


def test_an_edit_of_memory_is_carried_out_found_at_its_step_and_leaves_the_copy_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "job.py").write_text(JOB)
    job = Workload(
        "toy",
        source=source,
        command=("torchrun", "--nproc-per-node", "2", "job.py"),
        steps=20,
        first=10,
        lead=10,
        every=20,
        packages=("torch", "numpy", "blake3", "msgspec"),
        checkpoints="*.pt",
        weights="",
        has=frozenset({"ranks", "adam", "pickle"}),
    )
    technique, variant = find(load(), "30/memory")
    assert variant is not None
    with Range(tmp_path / "range", job) as place:
        place.open()
        before = sorted(p.name for p in place.site.iterdir())
        measured, row = honest(place, lambda what, step: None)
        assert row is not None
        assert (row.verdict, row.found, measured.steps) == ("silent", (), 20)
        found = attack(place, technique, variant, audit=False, say=lambda what, step: None)
        assert (found.verdict, found.worked, found.false) == ("found", True, ()), found
        assert [(m.rank, m.step) for m in found.marks] == [(0, 10), (1, 10)], (
            "both ranks, at the step that was asked for"
        )
        (continuity,) = [f for f in found.found if f.by == "continuity"]
        assert (continuity.exact, continuity.step) == (True, 10)
        assert found.effect.weights_differ
        place.clean_up()
        assert sorted(p.name for p in place.site.iterdir()) == before
        kill, as_kill = find(load(), "34/kill")
        assert as_kill is not None
        assert attack(place, kill, as_kill, audit=False, say=lambda what, step: None).verdict == "not carried out"
