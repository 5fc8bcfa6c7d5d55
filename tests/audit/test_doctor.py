"""The doctor tells an honest job from one that cannot be replayed, and names the setting that is missing."""

from __future__ import annotations

from pathlib import Path

import job_scripts as scripts
import pytest
from guarded_job import Job, make_job

from trainwarden.audit.doctor import Diagnosis, Missing, Outcome, Try, advice, examine, verdict
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.starts import Start
from trainwarden.audit.trying import STEPS_ENV, TRIER
from trainwarden.errors import CannotDecide
from trainwarden.model import Location, Numerics, Stage, StepRecord

BITWISE = Outcome.BITWISE
CONFIG = '[replay]\nresume = "--resume {checkpoint}"\n'
TINY = """
import argparse, os, time, torch
p = argparse.ArgumentParser(); p.add_argument("--resume", default=""); a = p.parse_args()
torch.set_num_threads(1)
"""
LOOP = """
m = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(.2), torch.nn.Linear(8, 2))
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)); Y = X[:, :2] * 2
o = torch.optim.AdamW(m.parameters(), lr=1e-2); sched = torch.optim.lr_scheduler.StepLR(o, 2, .5); s = 0
for _ in range(100):
    for i in ORDER():
        l = torch.nn.functional.mse_loss(m(X[i]), Y[i]); l.backward(); o.step(); sched.step(); o.zero_grad(); s += 1
        if s >= 40: raise SystemExit(0)
"""
SEEDED = "torch.manual_seed(0)\nORDER = lambda: torch.randperm(64).view(8, 8)\n"


def diagnosed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, *, only: tuple[Start, ...] = tuple(Start)
) -> Diagnosis:
    job, recorded = recorded_steps(tmp_path, monkeypatch, script)
    return examine(recorded, job.room, ways=only)  # type: ignore[arg-type]


def recorded_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, *, world: int = 1, steps: int = 6
) -> tuple[Job, Recorded]:
    job = make_job(tmp_path, monkeypatch, script)
    (job.folder / "trainwarden.toml").write_text(CONFIG)
    monkeypatch.setenv("TRAINWARDEN_RECORDER", TRIER)
    monkeypatch.setenv(STEPS_ENV, str(steps))
    words = ("--steps", "1000") if "a.steps" in script else ()
    words += ("--every", "3") if "s % a.every" in script else ()
    return job, job.attempt(*words, world=world, snapshot_every=2, activations_every=2)[1]


def settings(found: Diagnosis) -> str:
    return "; ".join(f"{m.setting}: {m.remedy}" for m in found.missing)


def outcomes(found: Diagnosis) -> dict[Start, Outcome]:
    return {t.way: t.outcome for t in found.tries}


def test_an_honest_job_replays_and_was_stopped_after_the_steps_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, recorded = recorded_steps(tmp_path, monkeypatch, scripts.CARELESS, world=2)
    records = [e for e in recorded.entries if isinstance(e, StepRecord)]
    assert sorted((r.rank, r.step) for r in records) == [(r, s) for r in range(2) for s in range(6)]
    found = examine(recorded, job.room, ways=(Start.START, Start.RESUME, Start.RESTORE))  # type: ignore[arg-type]
    said = outcomes(found)
    assert found.replays is True, found
    assert (said[Start.START], said[Start.RESTORE]) == (BITWISE, BITWISE)
    # Its resume path saves neither generators nor the loader's position, and that is said.
    assert said[Start.RESUME] is Outcome.DIFFERS
    assert "in the checkpoint" in settings(found)


def test_a_job_without_checkpoints_replays_from_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(tmp_path, monkeypatch, scripts.NO_CHECKPOINT, only=(Start.START, Start.RESUME, Start.SUBSTITUTE))
    said = outcomes(found)
    assert found.replays is True, found
    assert (said[Start.START], said[Start.RESUME], said[Start.SUBSTITUTE]) == (BITWISE, Outcome.IMPOSSIBLE, BITWISE)
    assert "saved no checkpoint" in found.tries[1].reason


def test_what_a_script_keeps_in_variables_is_in_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(tmp_path, monkeypatch, TINY + SEEDED + LOOP, only=(Start.START, Start.SUBSTITUTE))
    assert found.replays is False
    assert outcomes(found) == {Start.START: BITWISE, Start.SUBSTITUTE: Outcome.DIFFERS}
    assert "from the start only" in found.sentence
    assert "checkpoints" in settings(found)


def test_a_seed_from_the_clock_is_named_as_the_seed_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(
        tmp_path, monkeypatch, TINY + SEEDED.replace("(0)", "(time.time_ns() % 2**31)") + LOOP, only=(Start.START,)
    )
    assert found.replays is False
    assert "rng" in settings(found)
    assert "torch.manual_seed" in settings(found)
    assert "shuffle" not in settings(found)


def test_an_order_from_the_operating_system_is_named_as_the_loaders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = "g = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), 'big'))\n"
    order += "torch.manual_seed(0)\nORDER = lambda: torch.randperm(64, generator=g).view(8, 8)\n"
    found = diagnosed(tmp_path, monkeypatch, TINY + order + LOOP, only=(Start.START,))
    assert found.replays is False
    assert found.tries[0].at is not None
    assert found.tries[0].at.stage is Stage.BATCH
    assert "loader's order" in settings(found)
    assert "PYTHONHASHSEED" in settings(found)
    assert "manual_seed(SEED) first" not in settings(found)


def test_a_crash_before_the_first_step_cannot_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotDecide, match="no optimizer step"):
        diagnosed(tmp_path, monkeypatch, TINY + "raise RuntimeError('no luck')")


def test_a_job_without_an_optimizer_step_cannot_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotDecide, match="no optimizer step"):
        diagnosed(tmp_path, monkeypatch, TINY + "torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1)")


# --------------------------------------------------------------------------- the advice itself (pure)


def differs(way: Start, stage: Stage, step: int = 0, loss: float = 0.0, names: tuple[str, ...] = ("x",)) -> Try:
    at = Location(step=step, rank=0, stage=stage, tensor=names[0], tensors=names)
    return Try(way=way, outcome=Outcome.DIFFERS, first=0, last=5, at=at, stages={stage: names}, loss=loss)


def told(tried: Try, threads: int = 1, accelerator: str = "", env: dict[str, str] | None = None) -> str:
    return str([m.setting for m in advice(tried, Numerics(threads=threads, accelerator=accelerator), env or {})])


@pytest.mark.parametrize(
    ("tried", "setting"),
    [
        (differs(Start.START, Stage.RNG, names=("forward0/python", "forward0/numpy")), "numpy and python"),
        (differs(Start.START, Stage.ACTIVATIONS, loss=0.3), "before the model is made"),
        (differs(Start.START, Stage.ACTIVATIONS, loss=1e-7), "deterministic kernels"),
        (differs(Start.START, Stage.LOCAL_GRADIENTS, step=3), "deterministic kernels"),
        (differs(Start.START, Stage.REDUCED_GRADIENTS), "order of reduction"),
        (differs(Start.START, Stage.HYPERPARAMETERS), "decided by the step"),
        (differs(Start.START, Stage.WEIGHTS), "deterministic optimizer"),
        (differs(Start.START, Stage.CHECKPOINT), "state only"),
        (differs(Start.RESUME, Stage.HYPERPARAMETERS), "scheduler in the checkpoint"),
        (differs(Start.RESUME, Stage.RNG), "generators in the checkpoint"),
        (differs(Start.RESUME, Stage.BATCH), "loader's position"),
        (differs(Start.RESUME, Stage.OPTIMIZER_STATE), "optimizer's state in the checkpoint"),
    ],
)
def test_each_stage_has_its_remedy(tried: Try, setting: str) -> None:
    assert setting in told(tried)


def test_threads_hash_seed_and_autotuning_are_named_only_where_they_can_matter() -> None:
    kernel, batch = differs(Start.START, Stage.LOCAL_GRADIENTS), differs(Start.START, Stage.BATCH)
    assert "thread count" in told(kernel, threads=2)
    assert "thread count" not in told(kernel, threads=1)
    assert "autotuning" in told(kernel, accelerator="a GPU")
    assert "autotuning" not in told(kernel)
    assert "PYTHONHASHSEED" not in told(batch, env={"PYTHONHASHSEED": "0"})
    assert advice(Try(way=Start.START, outcome=Outcome.BITWISE, first=0, last=5), Numerics(), {}) == []


def test_a_replay_under_other_numerics_was_not_tried() -> None:
    reason = "rank 0: an exact replay needs the recorded numerics: threads 1 recorded, 2 here"
    tried = Try(way=Start.START, outcome=Outcome.IMPOSSIBLE, first=0, last=5, reason=reason)
    assert verdict([tried])[0] is None
    (missing,) = advice(tried, Numerics(), {})
    assert isinstance(missing, Missing)
    assert "thread count" in missing.setting


def test_kept_workers_are_named_as_what_keeps_a_replay_from_beginning_in_the_middle() -> None:
    reason = "rank 0: batch: RuntimeError: a loader whose workers are kept cannot be put into a later epoch"
    tried = Try(way=Start.SUBSTITUTE, outcome=Outcome.IMPOSSIBLE, first=3, last=5, reason=reason)
    (missing,) = advice(tried, Numerics(), {})
    assert "persistent_workers=False" in missing.remedy
    assert (
        advice(Try(way=Start.SUBSTITUTE, outcome=Outcome.IMPOSSIBLE, first=3, last=5, reason="none"), Numerics(), {})
        == []
    )


def test_a_job_that_replays_from_the_start_only_is_no_pass() -> None:
    good = Try(way=Start.START, outcome=Outcome.BITWISE, first=0, last=5)
    bad = Try(way=Start.RESUME, outcome=Outcome.DIFFERS, first=3, last=5)
    middle = Try(way=Start.RESTORE, outcome=BITWISE, first=3, last=5)
    never = Try(way=Start.SUBSTITUTE, outcome=Outcome.IMPOSSIBLE, first=3, last=5, reason="no snapshot")
    assert verdict([good, bad, never])[0] is False
    assert verdict([good, never])[0] is None
    assert verdict([good, bad, middle])[0] is True
