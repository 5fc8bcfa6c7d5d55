"""The order-fixed reduction: bitwise without the buckets, replays from mid-run, and lies between two ranks named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import job_scripts as scripts
import pytest
from guarded_job import LAUNCH, Job, make_job

from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import Start, replay
from trainwarden.detect.reduction import Reduction
from trainwarden.model import Finding, ReductionKey, ReductionSeen, Severity

# `evil.txt` holds code that is run before training with the script's own names.
OPEN = (
    scripts.HEAD
    + """
import pathlib
evil = pathlib.Path("evil.txt")
if evil.exists(): exec(evil.read_text())
dl = torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True); data = iter(dl)
o = torch.optim.AdamW(m.parameters(), lr=1e-2)
for s in range(a.steps):
    x, y = next(data)
    torch.nn.functional.cross_entropy(net(x), y).backward(); o.step(); o.zero_grad()
final()
"""
)
# After the digest, rank 0 sends rank 1 another part than it signed.
LIED_TO = """
send = dist.all_to_all_single
def all_to_all_single(output, tensor, *args, **kwargs):
    if r == 0: tensor[tensor.numel() // W] += 1
    return send(output, tensor, *args, **kwargs)
dist.all_to_all_single = all_to_all_single
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = make_job(tmp_path, monkeypatch, OPEN)
    job.reduction = "ordered"
    return job


def findings(recorded: Recorded) -> list[Finding]:
    detector = Reduction()
    return [f for i, e in enumerate(recorded.entries) for f in detector.observe(i, e, None)]


def state(job: Job) -> str:
    return (job.folder / "state.txt").read_text()


def replays_from_mid_run(job: Job, recorded: Recorded, world: int) -> None:
    result = replay(recorded, job.room, 0, 2, 3, Start.SUBSTITUTE)
    assert (result.divergence, result.matched, result.problems) == (None, (2, 3), ())
    keys = {e.rank: e.key for e in recorded.entries if isinstance(e, ReductionKey)}
    assert len(set(keys.values())) == world
    (told,) = [e for e in recorded.entries if isinstance(e, ReductionSeen)]
    assert (told.updates, told.faults) == (4, ())
    assert findings(recorded) == []


def test_two_ranks_end_as_without_it(job: Job) -> None:
    subprocess.run([sys.executable, LAUNCH, "2", "job.py", "--steps", "4"], cwd=job.folder, check=True)
    plain = state(job)
    recorded = job.run("--steps", "4", world=2, snapshot_every=2)
    assert state(job) == plain  # (a + b) / 2 has one order
    replays_from_mid_run(job, recorded, 2)


def test_three_ranks_end_alike_whatever_the_buckets(job: Job) -> None:
    (job.folder / "evil.txt").write_text("net = DDP(m, bucket_cap_mb=1)")
    job.run("--steps", "4", world=3)
    other = state(job)
    (job.folder / "evil.txt").unlink()
    recorded = job.run("--steps", "4", world=3, snapshot_every=2)
    assert state(job) == other
    replays_from_mid_run(job, recorded, 3)


def test_a_receiver_that_is_sent_something_else_than_was_signed_is_named_with_the_sender(job: Job) -> None:
    (job.folder / "evil.txt").write_text(LIED_TO)
    found = findings(job.run("--steps", "2", world=3))
    told = [f for f in found if "differs from what it signed" in f.seen]
    assert {(f.ranks, f.severity) for f in told} == {((0, 1), Severity.HIGH)}
    assert "what rank 1 received from rank 0" in told[0].seen
    assert told[0].tensor
