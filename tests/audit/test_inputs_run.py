"""Whole guarded runs: what is done to a job's data, seeds and loss is found; an honest job is silent.

The jobs are real; of the guard only the seal of the environment is left out (`guarded_job.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from guarded_job import Job, make_job

from trainwarden.audit.recorded import Recorded
from trainwarden.detect import Engine, all_detectors
from trainwarden.model import DataDiffers, Finding, Gap, PassSeen, Severity, StepRecord

OURS = ("order", "samples", "rng", "loss-mask")

JOB = """
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, TensorDataset


class Text(Dataset):
    relabelled = False

    def __init__(self):
        draws = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(0, 32, (96, 8), generator=draws)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        labels = torch.roll(self.tokens[i], -1)
        labels[-1] = -100
        if self.relabelled and i % 16 == 0:
            labels[0] = (labels[0] + 1) % 32
        return self.tokens[i], labels


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = torch.nn.Embedding(32, 16), torch.nn.Linear(16, 32)

    def forward(self, tokens, labels, ignored):
        hidden = checkpoint(lambda t: F.dropout(self.inside(t), 0.1), tokens, use_reentrant=False)
        return F.cross_entropy(self.out(hidden).flatten(0, 1), labels.flatten(), ignore_index=ignored)


attacks = sys.argv[1:]
torch.set_num_threads(1)
rank, world = 0, 1
if "many" in attacks:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
data, model, ignored = Text(), Model(), -100
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trained = DDP(model) if world > 1 else model
sampler = DistributedSampler(data, world, rank, seed=0)
loader = DataLoader(data, 8, sampler=sampler, num_workers=1 if "workers" in attacks else 0)
torch.manual_seed(1 + rank)
given = DistributedSampler.__iter__
for epoch in range(4):
    sampler.set_epoch(epoch)
    for number, (tokens, labels) in enumerate(loader):
        if epoch == 3 and "reseed" in attacks and number in (2, 5):
            torch.manual_seed(99)
        loss = trained(tokens, labels, ignored)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = torch.get_rng_state()
    torch.manual_seed(1234)  # an evaluation with its own seed, put back
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(4321)
        other = TensorDataset(torch.rand(12, 3))
        for _ in DataLoader(other, 4, sampler=RandomSampler(other, generator=torch.Generator().manual_seed(epoch))):
            pass
        for _ in DataLoader(other, 4, shuffle=True):
            break
    torch.set_rng_state(state)
    if epoch == 1 and "unshuffle" in attacks:
        DistributedSampler.__iter__ = lambda self: iter(sorted(given(self)))
    if epoch == 2:
        DistributedSampler.__iter__ = given
        Text.relabelled = "relabel" in attacks
        ignored = -101 if "mask" in attacks else ignored
        if ignored == -101:
            Text.__getitem__ = lambda self, i: (self.tokens[i], torch.roll(self.tokens[i], -1))
if world > 1:
    dist.destroy_process_group()
"""


def found(recorded: Recorded) -> list[Finding]:
    engine = Engine(all_detectors())
    said: list[Finding] = []
    for index, entry in enumerate(recorded.entries):
        details = recorded.seen(entry).details if isinstance(entry, StepRecord) else None
        said += engine.observe(index, entry, details)
    return said + engine.finish()


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *attacks: str, world: int = 1) -> tuple[Job, Recorded]:
    job = make_job(tmp_path, monkeypatch, JOB)
    recorded = job.run(*attacks, world=world, activations_every=0)
    assert [e for e in recorded.entries if isinstance(e, Gap)] == []
    return job, recorded


def test_honest_ranks_are_silent_and_their_order_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorded = run(tmp_path, monkeypatch, "many", "workers", world=2)
    said = [f for f in found(recorded) if f.detector in OURS]
    assert [f for f in said if f.severity is not Severity.INFO] == []
    passes = [e for e in recorded.entries if isinstance(e, PassSeen)]
    assert {p.rank for p in passes} == {0, 1}
    assert [(p.dataset, p.unordered, p.uncompared) for p in passes if p.unordered or p.uncompared] == []
    whole = [p for p in passes if p.order == "distributed" and p.ended]
    assert whole
    assert all(p.ordered == p.batches == 6 for p in whole)
    assert any(p.compared == 48 for p in whole)


def test_data_seeds_and_loss_that_change_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorded = run(tmp_path, monkeypatch, "unshuffle", "relabel", "reseed")
    said = [f for f in found(recorded) if f.severity is not Severity.INFO]
    order = next(f for f in said if f.detector == "order")
    assert order.severity is Severity.HIGH
    assert order.step == 24, "the first batch of the third epoch"
    samples = [e for e in recorded.entries if isinstance(e, DataDiffers) and e.kind == "changed"]
    assert {e.index for e in samples} == {0, 16, 32, 48, 64, 80}
    assert all(e.parts == ("1",) for e in samples)
    reseeded = next(f for f in said if f.detector == "rng" and "seeded again with 99" in f.seen)
    assert "job.py" in reseeded.seen
    assert reseeded.step == 38
    assert any(f.detector == "rng" and "where it stood" in f.seen and f.step == 41 for f in said)
    assert {f.detector for f in said} <= {"order", "samples", "rng"}


def test_a_loss_that_counts_other_targets_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorded = run(tmp_path, monkeypatch, "mask")
    said = [f for f in found(recorded) if f.severity is not Severity.INFO]
    mask = next(f for f in said if f.detector == "loss-mask")
    assert mask.step == 36
    assert "ignore_index -101" in mask.seen
    assert {f.detector for f in said} == {"loss-mask", "samples"}
