"""The real auditor process beside a real training job: it finds a tampered gradient while the job trains."""

from __future__ import annotations

import sys
from pathlib import Path

import job_scripts as scripts
import msgspec
import pytest
from guarded_job import Job, make_job, plain_seal

from trainwarden.checks import Passed, verify_run
from trainwarden.config import AuditConfig, PolicyConfig
from trainwarden.model import (
    Action,
    Entry,
    Finding,
    RunEnded,
    SampledAudit,
    Severity,
    Stage,
    StepRecord,
    UnitAudited,
    UnitResult,
    UnitsDrawn,
)
from trainwarden.sampling import wrong_draws
from trainwarden.seal.seal import sign_seal
from trainwarden.supervise import auditing, supervisor

AUDITOR = Path(__file__).with_name("auditor.py")

ON_AND_ON = (
    scripts.HEAD
    + """
import pathlib, time
o = torch.optim.SGD(m.parameters(), lr=1e-3, momentum=.9)
evil, end = pathlib.Path("evil.txt").exists(), time.monotonic() + 240
big = torch.ones(320, 320)
while time.monotonic() < end:
    for x, y in torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True):
        if evil: h = m[3].weight.register_hook(lambda g: -g)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        if evil: h.remove()
        for _ in range(4): big @ big
        o.step(); o.zero_grad()
final()
"""
)


def job_with_auditor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose run is audited by a process of its own, and stopped by policy at what that finds."""
    job = make_job(tmp_path, monkeypatch, ON_AND_ON)
    monkeypatch.setattr(
        supervisor,
        "seal_command",
        lambda store, command, *a, **k: sign_seal(plain_seal(Path(command.cwd), tuple(command.argv)).seal, job.key),
    )
    monkeypatch.setattr(auditing, "same_again", lambda: [sys.executable, str(AUDITOR)])
    job.audit = AuditConfig(budget="100%")
    job.policy = PolicyConfig(detectors={"sampled-audit": Action.STOP})
    return job


def test_a_tampered_gradient_is_found_by_the_auditor_while_the_job_trains_and_its_draws_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_with_auditor(tmp_path, monkeypatch)
    (job.folder / "evil.txt").touch()
    code, recorded = job.attempt(snapshot_every=1)
    entries: list[Entry] = list(recorded.entries)
    told = [e for e in entries if isinstance(e, UnitAudited) and e.result is UnitResult.DIVERGED]
    assert told, [e for e in entries if isinstance(e, UnitAudited | SampledAudit | Finding)]
    assert code != 0, "the job would have gone on for minutes: what was found ended it"
    assert told[0].at is not None
    assert told[0].at.stage is Stage.REDUCED_GRADIENTS, "of one rank they are its own"
    index = entries.index(told[0])
    assert isinstance(entries[told[0].draw], UnitsDrawn), "drawn, and the draw durable, before it was replayed"
    assert any(isinstance(e, StepRecord) and e.step > told[0].step for e in entries[:index]), "while it trained"
    assert not any(isinstance(e, RunEnded | SampledAudit) for e in entries[:index])
    (found,) = [e for e in entries if isinstance(e, Finding) and e.detector == "sampled-audit"]
    assert found.severity is Severity.HIGH
    checks = {c.name: c.result for c in verify_run(job.store, recorded.folder.id)}
    assert isinstance(checks["draws"], Passed), checks
    draw = next(e for e in entries if isinstance(e, UnitsDrawn) and e.units)
    forged = [msgspec.structs.replace(draw, units=()) if e is draw else e for e in entries]
    assert wrong_draws(recorded.folder.id, forged), "a draw that left units out is not made again"
