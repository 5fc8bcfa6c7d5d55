"""Whole guarded jobs whose reduction of gradients is attacked after the digests were taken, and their benign twins."""

from __future__ import annotations

from pathlib import Path

import job_scripts as scripts
import pytest
from guarded_job import Job, make_job

from trainwarden.audit.recorded import Recorded
from trainwarden.detect.precision import UNREAD, Precision
from trainwarden.detect.reduction import Reduction
from trainwarden.model import Finding, PrecisionSeen, ReductionSeen, Severity

# `evil.txt` holds code that is run before training with the script's own names.
OPEN = (
    scripts.HEAD
    + """
import pathlib
evil = pathlib.Path("evil.txt"); before = after = lambda s: None
if evil.exists(): exec(evil.read_text())
o = torch.optim.AdamW(m.parameters(), lr=1e-2)
for s in range(a.steps):
    i = torch.randperm(96, generator=torch.Generator().manual_seed(10 * s + r))[:8]
    before(s); torch.nn.functional.cross_entropy(net(X[i]), Y[i]).backward(); after(s); o.step(); o.zero_grad()
m.float(); final()
"""
)
# Between the recorder, which has seen the gradients, and the collective: turned, left out, summed instead of averaged.
PATCH = """
reduce, now = dist.all_reduce, 0
def all_reduce(tensor, *args, **kwargs):
    if now == 0 and r == 1: tensor.neg_()
    if now == 1 and r == 0: tensor.zero_()
    if now == 2: tensor.mul_(W)
    return reduce(tensor, *args, **kwargs)
def before(s):
    global now
    now = s
dist.all_reduce = all_reduce
"""

CLIP = "def after(s):\n    torch.nn.utils.clip_grad_norm_(m.parameters(), .05)\n"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return make_job(tmp_path, monkeypatch, OPEN)


def findings(recorded: Recorded) -> list[Finding]:
    detector = Reduction()
    return [f for i, e in enumerate(recorded.entries) for f in detector.observe(i, e, None)]


def attacked(job: Job, evil: str, world: int = 2, steps: int = 3) -> list[Finding]:
    (job.folder / "evil.txt").write_text(evil)
    return findings(job.run("--steps", str(steps), world=world))


def test_what_is_done_to_gradients_after_their_digests_is_named_at_once(job: Job) -> None:
    found = attacked(job, PATCH, world=3)
    assert [f.step for f in found] == [0, 1, 2]
    assert {f.severity for f in found} == {Severity.HIGH}
    assert "rank 1 entered the reduction with the sign turned" in found[0].seen
    assert "rank 0 entered the reduction as zeros" in found[1].seen
    assert "the reduction gave 3 times the mean" in found[2].seen


def test_one_tensor_turned_between_reduction_and_update_is_told_from_clipping(job: Job) -> None:
    evil = (
        "def after(s):\n    torch.nn.utils.clip_grad_norm_(m.parameters(), .05)\n    s == 1 and m[3].weight.grad.neg_()"
    )
    (found,) = attacked(job, evil)
    assert (found.step, found.tensor, found.ranks, found.severity) == (1, "3.weight", (0, 1), Severity.HIGH)
    assert "turned the sign" in found.seen


MORE = "def before(s):\n    for _ in range(2): net(X[:4 + r]).mean().backward()\n"
LOCAL = "def before(s):\n    with net.no_sync(): net(X[:4 + r]).mean().backward()\n"


@pytest.mark.parametrize(
    "honest",
    [
        "net = DDP(m, bucket_cap_mb=0.008, gradient_as_bucket_view=True)\n" + CLIP + MORE,
        "m[0].unused = torch.nn.Parameter(torch.ones(9)); net = DDP(m, find_unused_parameters=True)\n" + CLIP + LOCAL,
        "net = DDP(m.to(torch.bfloat16), static_graph=True); X = X.bfloat16()\n" + CLIP,
    ],
    ids=["views, accumulated", "unused, no_sync", "bfloat16, static"],
)
def test_honest_reductions_are_compared_and_silent(job: Job, honest: str) -> None:
    (job.folder / "evil.txt").write_text(honest)
    recorded = job.run("--steps", "3", world=2)
    assert findings(recorded) == []
    (told,) = [e for e in recorded.entries if isinstance(e, ReductionSeen)]
    assert (told.updates, told.faults) == (3, ())
    assert told.parts >= 12


def test_a_communication_hook_of_the_script_is_said_not_to_be_checked(job: Job) -> None:
    hooks = "from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook\n"
    (found,) = attacked(job, hooks + "net.register_comm_hook(None, fp16_compress_hook)")
    assert found.severity is Severity.INFO
    assert "the script's own communication hook" in found.seen


# One rank's precision and a hook on a parameter from the third step on; an evaluation with autocast of its own.
SWITCHED = """
def before(s):
    if r == 1 and s == 2: torch.set_float32_matmul_precision("medium")
    if s == 2: m[3].weight.register_hook(lambda g: g)
    if s == 3:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad(): net(X)
"""


def test_flags_switched_in_mid_run_are_told_and_those_of_an_evaluation_are_not(job: Job) -> None:
    (job.folder / "evil.txt").write_text(SWITCHED)
    recorded = job.run("--steps", "160", world=2)
    detector = Precision()
    found = [f for i, e in enumerate(recorded.entries) for f in detector.observe(i, e, None)]
    assert {f.severity for f in found} == {Severity.MEDIUM}
    told = " ".join(f.seen for f in found)
    assert "On rank 1 changed" in told
    assert "matmul precision from highest to medium" in told
    assert "hooks on parameters from 0 to 1" in told
    assert "autocast" not in told
    first = next(e for e in recorded.entries if isinstance(e, PrecisionSeen))
    assert (first.step, first.flags["autocast"], first.flags["backend"]) == (1, "off", "gloo")
    assert UNREAD not in first.flags.values()
