"""Replays of real jobs are the recorded runs bit for bit, however the replay starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import job_scripts as scripts
import pytest
from guarded_job import LAUNCH, Job, make_job

from trainwarden.audit.compare import digest_of
from trainwarden.audit.engine import Audit
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import Start, replay
from trainwarden.detect import Engine, all_detectors
from trainwarden.detect.continuity import Continuity
from trainwarden.model import Diverged, Finding, Inconclusive, Location, Matched, Stage, StepRecord


def all_matched(job: Job, recorded: object, **kwargs: object) -> None:
    assert isinstance(recorded, Recorded)
    said = Audit(recorded, job.room).run(recorded.history.segments)  # type: ignore[arg-type]
    assert said, "nothing was audited"
    assert all(isinstance(v, Matched) for v in said), said


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_honest_ddp_job_trains_as_without_the_recorder_and_replays_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.ATTACKED)
    subprocess.run([sys.executable, LAUNCH, str(world), "job.py", "--steps", "6"], cwd=job.folder, check=True)
    plain = (job.folder / "state.txt").read_text()
    recorded = job.run("--steps", "6", "--every", "3", world=world, snapshot_every=2)
    assert (job.folder / "state.txt").read_text() == plain
    all_matched(job, recorded)


def one_way(job: Job, recorded: object, first: int, last: int, kind: Start) -> None:
    result = replay(recorded, job.room, 0, first, last, kind)  # type: ignore[arg-type]
    assert result.divergence is None, result.divergence
    given = kind in (Start.SUBSTITUTE, Start.AHEAD)
    assert all((Stage.HYPERPARAMETERS in c.unseen) is given for c in result.coverage.values()), "given is not checked"
    assert set(range(first, last + 1)) <= set(result.matched), (result.matched, result.problems)


@pytest.mark.parametrize("world", [1, 3])
def test_careless_resume_replays_bitwise_from_mid_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.CARELESS)
    (job.folder / "trainwarden.toml").write_text('[replay]\nresume = "--resume {checkpoint}"\n')
    recorded = job.run("--steps", "16", "--every", "5", world=world)
    one_way(job, recorded, 5, 15, Start.RESTORE)  # through the end of an epoch of 12 batches
    said = Audit(recorded, job.room).run(recorded.history.segments[1:2])
    assert isinstance(said[0], Matched)
    assert said[0].mode == "resume"


@pytest.mark.parametrize("world", [1, 3])
def test_a_job_without_checkpoints_replays_bitwise_by_substitution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.NO_CHECKPOINT)
    recorded = job.run("--steps", "16", world=world, snapshot_every=5)
    one_way(job, recorded, 10, 15, Start.SUBSTITUTE)
    one_way(job, recorded, 0, 15, Start.START)


def test_a_script_that_fetches_one_step_ahead_replays_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.AHEAD)
    recorded = job.run("--steps", "12", snapshot_every=5)
    assert replay(recorded, job.room, 0, 5, 9, Start.SUBSTITUTE).divergence is not None  # one batch behind
    one_way(job, recorded, 6, 9, Start.AHEAD)


@pytest.mark.parametrize("world", [1, 2])
def test_gradient_accumulation_replays_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.ACCUMULATE)
    recorded = job.run("--steps", "7", "--every", "3", world=world, snapshot_every=3)
    all_matched(job, recorded)
    one_way(job, recorded, 3, 6, Start.SUBSTITUTE)


ATTACKS = [
    ("batch", Stage.BATCH, 1, ""),
    ("label", Stage.ACTIVATIONS, 1, "loss/0"),
    ("seed", Stage.RNG, 1, "forward0/torch"),
    ("dropout", Stage.ACTIVATIONS, 1, ""),
    ("flip", Stage.LOCAL_GRADIENTS, 1, "3.weight"),
    ("scale", Stage.LOCAL_GRADIENTS, 1, "3.weight"),
    ("clip", Stage.REDUCED_GRADIENTS, 0, ""),
    ("lr", Stage.HYPERPARAMETERS, 0, "group0"),
    ("beta", Stage.HYPERPARAMETERS, 0, "group0"),
    ("moment", Stage.OPTIMIZER_STATE, 0, "3.weight/exp_avg"),
    # Edits after step 5: step 6 began with other weights than a clean run has.
    ("ulp", Stage.WEIGHTS, 0, "3.weight"),
    ("weight", Stage.WEIGHTS, 0, "3.weight"),
]
BETWEEN = ("ulp", "weight")


def located(job: Job, attack: str, everywhere: bool, **kwargs: int) -> tuple[Recorded, Location]:
    """What the audit says of a job of two ranks that is attacked at step 5."""
    (job.folder / "evil.txt").write_text(f"{attack} 5 {-1 if everywhere else 1}")
    recorded = job.run("--steps", "7", "--every", "4", world=2, **kwargs)
    said = Audit(recorded, job.room).run(recorded.history.segments, first_only=True)
    assert isinstance(said[0], Matched)
    assert isinstance(said[1], Diverged), said
    return recorded, said[1].at


@pytest.mark.parametrize(("attack", "stage", "rank", "tensor"), ATTACKS)
def test_an_attack_is_located_to_step_rank_stage_and_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, stage: Stage, rank: int, tensor: str
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.ATTACKED)
    everywhere = attack in ("clip", "lr", "beta", "moment", *BETWEEN)
    _, at = located(job, attack, everywhere, activations_every=0)
    between = attack in BETWEEN
    assert (at.step, at.rank, at.stage, at.before) == (6 if between else 5, rank, stage, between), at
    if tensor:
        assert at.tensor == tensor
    if between:
        assert at.tensors == ("3.weight",)
        assert at.words == "weights of 3.weight, changed before the step"


@pytest.mark.parametrize("attack", BETWEEN)
def test_an_edit_between_steps_on_one_rank_is_located_and_told_live_whatever_else_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.ATTACKED)
    recorded, at = located(job, attack, False, activations_every=1)
    assert (at.step, at.rank, at.stage, at.tensor, at.before) == (6, 1, Stage.WEIGHTS, "3.weight", True), at
    before, after = (recorded.updates(0)[step, 0][1] for step in (5, 6))
    assert after.found == {"3.weight": at.recorded}
    assert digest_of(recorded.seen(before).details[Stage.WEIGHTS], "3.weight") == at.replayed
    detector = Continuity()
    live = [f for i, e in enumerate(recorded.entries) for f in detector.observe(i, e, None)]
    assert [(f.step, f.ranks, f.tensor) for f in live] == [(6, (1,), "3.weight")]


def findings(recorded: Recorded) -> list[Finding]:
    """What the detectors say of a recorded run."""
    engine, found = Engine(all_detectors()), []
    for i, e in enumerate(recorded.entries):
        found += engine.observe(i, e, recorded.seen(e).details if isinstance(e, StepRecord) else None)
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_running_statistics_are_no_finding_and_replay_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.NORMALISED)
    recorded = job.run("--steps", "6", "--every", "3", world=world)
    assert findings(recorded) == []
    all_matched(job, recorded)


def test_an_edited_weight_beside_running_statistics_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.NORMALISED)
    (job.folder / "evil.txt").touch()
    found = {(f.detector, f.step, f.ranks, f.tensor) for f in findings(job.run("--steps", "6", world=2))}
    assert {("continuity", 5, (1,), "0.weight"), ("replicas", 5, (0, 1), "0.weight")} <= found


@pytest.mark.parametrize("attack", BETWEEN)
def test_an_edit_right_after_a_checkpoint_is_located_by_a_replay_that_begins_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.EDITED_LATER)
    (job.folder / "evil.txt").write_text(attack)
    recorded = job.run("--steps", "9", snapshot_every=6)
    result = replay(recorded, job.room, 0, 6, 8, Start.SUBSTITUTE)
    at = result.divergence
    assert at is not None, result.problems
    assert (at.step, at.stage, at.tensor, at.before) == (6, Stage.WEIGHTS, "3.weight", True)


def test_a_later_segment_carries_on_honestly_from_the_bad_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainwarden.lineage import trace
    from trainwarden.model import Standing

    job = make_job(tmp_path, monkeypatch, scripts.ATTACKED)
    (job.folder / "trainwarden.toml").write_text('[replay]\nresume = "--resume {checkpoint}"\n')
    (job.folder / "evil.txt").write_text("flip 5 0")
    recorded = job.run("--steps", "12", "--every", "4")
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert [type(v) for v in said] == [Matched, Diverged, Matched], said
    checkpoints = trace([*recorded.entries, *said]).checkpoints
    standings = {c.step: c.standing for c in checkpoints}
    assert standings == {4: Standing.CLEARED, 8: Standing.TAINTED, 12: Standing.TAINTED}


def test_a_crashing_replay_is_inconclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(
        tmp_path,
        monkeypatch,
        "import pathlib\nif pathlib.Path('no').exists(): raise SystemExit('missing input')\n" + scripts.NO_CHECKPOINT,
    )
    recorded = job.run("--steps", "3")
    (job.folder / "job.py").write_text("raise SystemExit('the script is broken')")
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert isinstance(said[0], Inconclusive)
    assert "the script is broken" in " ".join(said[0].reasons)
