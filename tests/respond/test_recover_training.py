"""A sabotaged training run, audited, taken back and resumed: the new run's final checkpoint is cleared by its audit.

The environment is not sealed here (`guarded_job`); seals, logs, replays and verdicts are the real ones.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "audit"))

import job_scripts as scripts
from guarded_job import Job, make_job
from resuming import diverged, matched

from trainwarden.audit.engine import Audit
from trainwarden.audit.recorded import Recorded
from trainwarden.casefile import Intact, load_case, read_entries
from trainwarden.config import Config
from trainwarden.log.journal import LogWriter
from trainwarden.model import ComparisonPolicy, Diverged, Seal, SignedSeal, Standing, Verdict, canonical
from trainwarden.respond.plan import make_plan
from trainwarden.respond.recover import apply_plan, loaded_its_checkpoint, resume
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.manifest import make_manifest, manifest_ref
from trainwarden.seal.seal import sign_seal
from trainwarden.supervise import supervisor


def empty_seal(job: Job, command: LaunchCommand, config: Config) -> SignedSeal:
    """A signed seal of a command with nothing in its manifests."""
    refs = {}
    for kind in ("code", "environment", "data"):
        manifest = make_manifest(kind, {})
        job.store.put_bytes(canonical(manifest))
        refs[kind] = manifest_ref(manifest)
    seal = Seal(
        created_ns=0,
        argv=command.argv,
        cwd=command.cwd,
        interpreter=command.interpreter,
        comparison=ComparisonPolicy(activations_every=config.record.activations_every),
        **refs,
    )
    return sign_seal(seal, job.key)


def audited(job: Job, run: str, earlier: str = "") -> list[Verdict]:
    """Audit a run with real replays and log the verdicts."""
    case = load_case(job.store, run)
    assert isinstance(case.state, Intact)
    assert case.seal is not None
    before = read_entries(job.store.run(earlier))[0] if earlier else ()
    recorded = Recorded(job.store, job.store.run(run), case.seal, case.entries, before)
    said = Audit(recorded, job.room).run(recorded.history.segments)  # type: ignore[arg-type]
    append(job, run, said)
    return said


def append(job: Job, run: str, verdicts: Sequence[Verdict]) -> None:
    with closing(LogWriter.open(job.store.run(run).log, job.key)) as log:
        log.append([canonical(v) for v in verdicts])


def test_the_final_checkpoint_of_a_recovered_run_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.ATTACKED)
    monkeypatch.setattr(supervisor, "seal_command", lambda _, *a, **k: empty_seal(job, *a[:2]))
    monkeypatch.chdir(job.folder)
    (job.folder / "evil.txt").write_text("batch 9 0")  # the insider's: no replay ever sees it
    code, _ = job.attempt("--steps", "12", "--every", "4")
    assert code == 0
    (job.folder / "evil.txt").unlink()
    run = job.store.runs()[-1]
    said = audited(job, run)
    assert [v.at.step for v in said if isinstance(v, Diverged)] == [9]

    case = load_case(job.store, run, look_at_files=False)
    assert case.seal is not None
    plan = make_plan(job.store, case, "--resume {checkpoint}")
    assert (plan.from_step, plan.checkpoint) == (8, str(job.folder / "ck8.pt"))
    assert {m.path for m in plan.quarantine} == {str(job.folder / name) for name in ("ck12.pt", "state.txt")}
    folder = job.store.run(run)
    apply_plan(job.store, folder, case.seal, plan, job.key, lambda _: None)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = resume(job.store, folder, case.seal, plan, Config(), job.key, env=env)
    assert (result.exit_code, result.records) == (0, 4)
    assert loaded_its_checkpoint(job.store, plan, result.run_id)

    before = load_case(job.store, result.run_id).history.checkpoints[-1]
    assert (before.step, before.standing is Standing.CLEARED) == (12, False)
    audited(job, result.run_id, earlier=run)
    final = load_case(job.store, result.run_id).history.checkpoints[-1]
    assert (final.step, final.standing) == (12, Standing.CLEARED), final.reason
    assert {s.run for s in final.lineage} == {"", run}
    assert load_case(job.store, run).history.checkpoints[-1].standing is not Standing.CLEARED


TRAINER = """
import argparse, torch
from transformers import Trainer, TrainingArguments, set_seed
p = argparse.ArgumentParser(); p.add_argument("--resume_from_checkpoint"); a = p.parse_args()
torch.set_num_threads(1); set_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2))
    def forward(self, x, labels=None): return {"loss": torch.nn.functional.cross_entropy(self.body(x), labels)}
X = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
rows = [{"x": x, "labels": int(x.sum() > 0)} for x in X]
args = TrainingArguments("out", max_steps=9, per_device_train_batch_size=8, save_steps=3, report_to=[], use_cpu=True,
    disable_tqdm=True)
Trainer(model=Net(), args=args, train_dataset=rows).train(resume_from_checkpoint=a.resume_from_checkpoint)
"""


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="pip install 'trainwarden[frameworks]'")
def test_a_run_of_trainer_goes_on_from_its_cleared_checkpoint_to_the_bits_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, TRAINER)
    monkeypatch.setattr(supervisor, "seal_command", lambda _, *a, **k: empty_seal(job, *a[:2]))
    monkeypatch.chdir(job.folder)
    code, _ = job.attempt()
    assert code == 0
    run = job.store.runs()[-1]
    append(job, run, [matched(0, 2), diverged(3, 5, at=4), matched(6, 8)])
    model = job.folder / "out" / "checkpoint-9" / "model.safetensors"
    whole = model.read_bytes()

    case = load_case(job.store, run, look_at_files=False)
    assert case.seal is not None
    plan = make_plan(job.store, case, "--resume_from_checkpoint {checkpoint}")
    assert (plan.from_step, plan.checkpoint) == (3, str(job.folder / "out" / "checkpoint-3"))
    apply_plan(job.store, job.store.run(run), case.seal, plan, job.key, lambda _: None)
    assert not model.exists()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = resume(job.store, job.store.run(run), case.seal, plan, Config(), job.key, env=env)
    assert (result.exit_code, result.records) == (0, 6)
    assert loaded_its_checkpoint(job.store, plan, result.run_id)
    assert model.read_bytes() == whole
