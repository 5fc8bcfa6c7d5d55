"""Sampled audit on real jobs: single units replay bit for bit, and tampered ones are found."""

from __future__ import annotations

from pathlib import Path

import job_scripts as scripts
import pytest
from guarded_job import Job, make_job

from trainwarden.audit import units
from trainwarden.audit.randomness import System
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.unitrun import WITHOUT_PEERS, Outcome, UnitRunner
from trainwarden.audit.units import UnitAudit
from trainwarden.detect.sampled import SampledUnits
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    Diverged,
    Entry,
    Severity,
    Stage,
    Unit,
    UnitAudited,
    UnitKind,
    UnitResult,
    UnitsDrawn,
    canonical,
    decode_entry,
)
from trainwarden.sampling import sampled, wrong_draws
from trainwarden.standing import matched_steps


def run_one(job: Job, recorded: Recorded, runner: UnitRunner, step: int, rank: int, kind: UnitKind) -> Outcome:
    return runner.run(recorded, Unit(attempt=0, step=step, rank=rank, kind=kind), lambda: recorded)


def runner_of(job: Job) -> UnitRunner:
    return UnitRunner(lambda: job.room)  # type: ignore[arg-type,return-value]


def test_one_warm_process_replays_units_of_one_rank_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.NO_CHECKPOINT)
    recorded = job.run("--steps", "14", world=2, snapshot_every=3)
    runner = runner_of(job)
    try:
        for step in (4, 10, 7):
            told = run_one(job, recorded, runner, step, 1, UnitKind.NEAR).audited
            assert told.result is UnitResult.MATCHED, told.reasons
            assert told.processes == 1
            assert set(told.stages) == set(WITHOUT_PEERS), "what needs peers is not compared, and not said to be"
            assert Stage.WEIGHTS in told.coverage.unseen
            assert runner.warm == ((0, 1),)
        far = run_one(job, recorded, runner, 8, 0, UnitKind.FAR).audited
        assert far.result is UnitResult.MATCHED, far.reasons
        assert far.processes == 2
        assert Stage.WEIGHTS in far.stages
    finally:
        runner.close()


def test_a_gradient_turned_around_on_one_rank_is_found_by_one_unit_and_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.TAMPERED)
    (job.folder / "evil.txt").touch()
    recorded = job.run("--steps", "9", world=2, snapshot_every=1)
    runner = runner_of(job)
    try:
        honest = run_one(job, recorded, runner, 7, 1, UnitKind.NEAR).audited
        assert honest.result is UnitResult.MATCHED, "from the bad state it goes on honestly"
        outcome = run_one(job, recorded, runner, 4, 1, UnitKind.NEAR)
    finally:
        runner.close()
    assert outcome.audited.result is UnitResult.DIVERGED, outcome.audited.reasons
    verdict = outcome.diverged
    assert verdict is not None
    assert (verdict.at.step, verdict.at.rank, verdict.at.stage) == (3, 1, Stage.LOCAL_GRADIENTS), (
        "the first, from the start"
    )
    assert verdict.segment.first == verdict.segment.last == 3, "of other steps it says nothing"
    (found,) = SampledUnits().observe(0, outcome.audited, None)
    assert (found.severity, found.step, found.ranks) == (Severity.HIGH, 3, (1,))


class Cpu:
    """As much as is needed."""

    def job(self) -> float:
        return 1e6

    def spent(self) -> float:
        return 0.0


def audited(job: Job, recorded: Recorded) -> list[Entry]:
    """The log after everything was drawn and run."""
    log = LogWriter.open(recorded.folder.log, job.key)
    runner = runner_of(job)
    audit = UnitAudit(
        job.store,
        recorded.folder,
        recorded.seal,
        runner,
        System(),
        Cpu(),
        1000.0,
        lambda entry: log.append([canonical(entry)]),
    )
    try:
        while audit.turn(hurry=True) == 0:
            pass
    finally:
        audit.close()
        log.close()
    with LogReader.open(recorded.folder.log) as reader:
        return [decode_entry(leaf) for _, leaf in reader.entries()]


def test_a_state_that_the_recorder_removes_while_it_is_looked_for_ends_no_audit() -> None:
    looks = iter([{3: Path("/s/full-3"), 4: Path("/s/full-4")}, {4: Path("/s/full-4")}, {4: Path("/s/full-4")}])

    class Ring:
        attempt = staticmethod(lambda number: type("", (), {"base": 0}))
        starts = staticmethod(lambda number: [(type("", (), {"rank": 0}), {})])
        snapshots = staticmethod(lambda number, rank, kind: next(looks))

    unit = Unit(attempt=0, step=4, rank=0, kind=UnitKind.NEAR)
    assert units._needed(Ring(), unit) == {Path("/s/full-4")}  # type: ignore[arg-type]


def test_the_draw_is_in_the_log_before_its_units_are_run_and_clears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.TAMPERED)
    recorded = job.run("--steps", "6", snapshot_every=1)
    entries = audited(job, recorded)
    draws = [(i, e) for i, e in enumerate(entries) if isinstance(e, UnitsDrawn)]
    told = [(i, e) for i, e in enumerate(entries) if isinstance(e, UnitAudited)]
    assert [u.step for u in draws[0][1].units] == list(range(6)), "a chance of one draws everything"
    assert wrong_draws(recorded.folder.id, entries) == []
    assert all(e.draw == draws[0][0] < i for i, e in told)
    bought = sampled(entries)
    assert bought is not None
    assert bought.results == {UnitResult.MATCHED: 6}, [e.reasons for _, e in told]
    assert (bought.waiting, bought.all.share) == (0, 1.0)
    assert not any(isinstance(e, Diverged) for e in entries)
    assert matched_steps(entries) == frozenset(), "a unit that matched clears nothing"
