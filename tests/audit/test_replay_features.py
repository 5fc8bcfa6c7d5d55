"""Jobs of every kind: recorded without changing a bit, seen whole or said not to be, and replayed bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import job_scripts as scripts
import pytest
from guarded_job import LAUNCH, Job, make_job

from trainwarden.audit.capture import open_captures
from trainwarden.audit.compare import digest_of
from trainwarden.audit.engine import Audit
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import rerun
from trainwarden.model import CheckpointSaved, Diverged, Gap, Matched, Stage, StepRecord
from trainwarden.record.fingerprint import tensor_digest, value_digest
from trainwarden.record.stages import ABSENT


def steps(recorded: Recorded) -> list[StepRecord]:
    return [e for e in recorded.entries if isinstance(e, StepRecord)]


def plain_state(job: Job, world: int = 1) -> str:
    """The final state of the job without us."""
    command = [sys.executable, LAUNCH, str(world), "job.py"] if world > 1 else [sys.executable, "job.py"]
    subprocess.run(command, cwd=job.folder, check=True, env={"OMP_NUM_THREADS": "1", "PATH": ""})
    return (job.folder / "state.txt").read_text()


@pytest.mark.parametrize(
    "script",
    [scripts.MANY, scripts.COMPILED, scripts.WANDERER, scripts.REMADE, scripts.SPAWNED, scripts.NESTED],
    ids=["many", "compiled", "wanderer", "remade", "spawned", "nested"],
)
def test_recording_changes_no_bit_and_the_job_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    job = make_job(tmp_path, monkeypatch, script)
    honest = plain_state(job)
    recorded = job.run(snapshot_every=2)
    assert (job.folder / "state.txt").read_text() == honest
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert all(isinstance(v, Matched) for v in said), said


def test_a_file_written_beside_training_or_renamed_later_is_of_the_step_whose_weights_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = make_job(tmp_path, monkeypatch, scripts.LATE_SAVES).run()
    saved = {(Path(e.path).name, e.step) for e in recorded.entries if isinstance(e, CheckpointSaved)}
    assert {("beside.pt", 2), ("best.pt", 3)} <= saved
    (gap,) = [e for e in recorded.entries if isinstance(e, Gap)]
    assert "foreign.pt was written beside training, and holds the weights of none of" in gap.reason


@pytest.mark.parametrize("at", [1, 3])
def test_an_attack_on_the_second_optimizer_of_a_step_is_found_and_its_step_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.CRITIC)
    (job.folder / "evil.txt").write_text(str(at))
    recorded = job.run()
    (said,) = Audit(recorded, job.room).run(recorded.history.segments)
    assert isinstance(said, Diverged), said
    assert (said.at.step, said.at.optimizer, said.at.tensor) == (2 * at + 1, 0, "weight")
    again = rerun(recorded, job.room, 0, said.at.step)
    assert set(again) == {(said.at.step, 0), (said.at.step, 1)}


def test_own_gradients_of_every_optimizer_are_recorded_and_tampering_is_found_on_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.DIVIDED)
    (job.folder / "evil.txt").write_text("2")
    recorded = job.run(world=2)
    local = [r.stages[Stage.LOCAL_GRADIENTS] for r in steps(recorded)]
    assert [(d.tensors, d.unseen) for d in local] == [(3, "")] * 16
    (job.folder / "evil.txt").unlink()
    (said,) = Audit(recorded, job.room).run(recorded.history.segments)
    assert isinstance(said, Diverged), said
    at = said.at
    assert (at.step, at.rank, at.stage, at.optimizer, at.tensor) == (2, 1, Stage.LOCAL_GRADIENTS, 1, "5.bias")
    rerun(recorded, job.room, 0, at.step, capture=tmp_path / "capture", optimizer=1)
    own = open_captures(tmp_path / "capture")[at.rank].clean(Stage.LOCAL_GRADIENTS)
    assert sorted(own) == ["0.bias", "3.bias", "5.bias"]
    assert tensor_digest(recorded.key, own["5.bias"]).hex() == at.replayed


def test_two_optimizers_a_skipped_step_and_a_late_group_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.MANY)
    recorded = job.run()
    seen = steps(recorded)
    assert [(r.step, r.optimizer) for r in seen] == [(s, o) for s in range(10) for o in (0, 1)]
    assert {(r.step, r.optimizer) for r in seen if r.skipped} == {(5, 0), (5, 1)}
    second = [r for r in seen if r.optimizer == 1]
    assert [len(r.hyper) for r in second] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert second[0].stages[Stage.REDUCED_GRADIENTS].tensors == 2  # the parameter without a gradient is one of them
    details = recorded.seen(recorded.updates(0)[0, 1][0]).details
    assert digest_of(details[Stage.REDUCED_GRADIENTS], "1.unused") == value_digest(recorded.key, ABSENT).hex()
    assert [r.hyper[0]["lr"] for r in seen if r.optimizer == 0][:3] == [0.1, 0.1, 0.05]
    assert seen[0].stages[Stage.LOCAL_GRADIENTS].unseen


@pytest.mark.parametrize("optimizer", [0, 1])
def test_the_update_of_either_optimizer_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: int
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.MANY)
    recorded = job.run()
    folder = tmp_path / "capture"
    rerun(recorded, job.room, 0, 4, capture=folder, optimizer=optimizer)
    capture = open_captures(folder)[0]
    assert capture.meta.optimizer == optimizer
    details = recorded.seen(recorded.updates(0)[4, optimizer][0]).details
    earlier = recorded.seen(recorded.updates(0)[3, optimizer][0]).details
    for stage in (Stage.REDUCED_GRADIENTS, Stage.WEIGHTS):
        values = capture.clean(stage)
        assert values
        assert all(tensor_digest(recorded.key, t).hex() == digest_of(details[stage], n) for n, t in values.items())
    before = capture.before(Stage.WEIGHTS)
    names = [n for n in before if n in earlier[Stage.WEIGHTS].names]
    assert names
    assert all(tensor_digest(recorded.key, before[n]).hex() == digest_of(earlier[Stage.WEIGHTS], n) for n in names)
    assert bool(capture.clean(Stage.BATCH)) is (Stage.BATCH in details)


def test_an_error_in_the_recorder_is_a_gap_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.HOSTILE_SETTINGS)
    honest = plain_state(job)
    recorded = job.run()
    assert (job.folder / "state.txt").read_text() == honest
    assert any("no settings for you" in e.reason for e in recorded.entries if isinstance(e, Gap))
    assert {r.step for r in steps(recorded)} >= {0, 1}


REDUCED_EACH_TIME = scripts.ACCUMULATE.replace(
    "contextlib.nullcontext() if last or W == 1 else net.no_sync()", "contextlib.nullcontext()"
)


@pytest.mark.parametrize("script", [scripts.ACCUMULATE, REDUCED_EACH_TIME], ids=["no_sync", "reduced-each-time"])
def test_a_step_of_several_passes_is_recorded_with_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    job = make_job(tmp_path, monkeypatch, script)
    recorded = job.run("--steps", "3", "--every", "9", world=2, activations_every=0)
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
    for seen in (recorded.seen(recorded.updates(0)[1, 0][rank]) for rank in (0, 1)):
        assert seen.record.micro_batches == 3
        assert not [stage for stage, digest in seen.record.stages.items() if not digest.root]
        names = {stage: set(detail.names) for stage, detail in seen.details.items()}
        assert {f"loader/{i}.0" for i in range(3)} | {f"input/{i}.0.0" for i in range(3)} <= names[Stage.BATCH]
        assert {f"forward{i}/torch" for i in range(3)} <= names[Stage.RNG]
        assert names[Stage.ACTIVATIONS] == {f"loss/{i}" for i in range(3)}
        assert names[Stage.LOCAL_GRADIENTS] == names[Stage.REDUCED_GRADIENTS] == names[Stage.WEIGHTS]
    one, other = (recorded.updates(0)[1, 0][rank].stages for rank in (0, 1))
    assert one[Stage.LOCAL_GRADIENTS].root != other[Stage.LOCAL_GRADIENTS].root
    assert one[Stage.REDUCED_GRADIENTS].root == other[Stage.REDUCED_GRADIENTS].root
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert all(isinstance(v, Matched) for v in said), said


# Weights that belong to no module, gradients set by hand, then an optimizer that computes them itself.
BY_HAND = """
import torch
torch.manual_seed(0)
p = torch.nn.Parameter(torch.randn(8)); o = torch.optim.SGD([p], lr=.1)
for s in range(2):
    p.grad = torch.randn(8); o.step(); o.zero_grad()
o = torch.optim.LBFGS([p], lr=.1, max_iter=2)
def closure():
    o.zero_grad(); loss = (p * p).sum(); loss.backward(); return loss
for s in range(2): o.step(closure)
"""


def test_a_stage_that_cannot_be_seen_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, monkeypatch, BY_HAND)
    recorded = job.run()
    by_hand, closure = ({s: d.unseen for s, d in r.stages.items() if not d.root} for r in steps(recorded)[1::2])
    assert by_hand == {
        Stage.BATCH: "no loader and no watched forward pass",
        Stage.ACTIVATIONS: "backward was not called",
        Stage.LOCAL_GRADIENTS: "no reduction across ranks was seen",
    }
    assert closure == {
        Stage.BATCH: "no loader and no watched forward pass",
        Stage.LOCAL_GRADIENTS: "no reduction across ranks was seen",
        Stage.REDUCED_GRADIENTS: "the optimizer computes gradients itself (closure)",
    }
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert all(isinstance(v, Matched) for v in said), said
    assert all(v.coverage.unseen.keys() >= by_hand.keys() for v in said if isinstance(v, Matched))


BY_CLOSURE = """
import torch
torch.set_num_threads(1); torch.manual_seed(0)
m = torch.nn.Linear(4, 2); o = torch.optim.AdamW(m.parameters(), lr=.1)
def closure():
    o.zero_grad(); loss = m(torch.randn(3, 4)).pow(2).sum(); loss.backward(); return loss
for s in range(3): o.step(closure)
"""


def test_gradients_of_a_closure_that_is_called_once_are_those_that_the_optimizer_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, monkeypatch, BY_CLOSURE)
    recorded = job.run()
    assert {r.stages[Stage.REDUCED_GRADIENTS].tensors for r in steps(recorded)} == {2}
    assert len({r.stages[Stage.REDUCED_GRADIENTS].root for r in steps(recorded)}) == 3
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert all(isinstance(v, Matched) for v in said), said


IN_STEPS = """
o = torch.optim.AdamW(m.parameters(), lr=1e-2)
for s in range(3):
    i = torch.arange(8) + 8 * s + 40 * r
    torch.nn.functional.cross_entropy(net(X[i]), Y[i]).backward(); o.step(); o.zero_grad()
"""
PLAIN_DDP = "net = DDP(m, bucket_cap_mb=0.008)"


@pytest.mark.parametrize(
    "compiled",
    ['net = DDP(torch.compile(m, backend="aot_eager"))', 'm.compile(backend="aot_eager"); net = DDP(m)'],
    ids=["inside-ddp", "in-place"],
)
def test_a_compiled_module_is_not_traced_through_the_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: str
) -> None:
    head = scripts.HEAD.replace(PLAIN_DDP + " if W > 1 else m", compiled)
    assert compiled in head
    job = make_job(tmp_path, monkeypatch, head + IN_STEPS + "final()")
    honest = plain_state(job, world=2)
    recorded = job.run(world=2, activations_every=1)
    assert (job.folder / "state.txt").read_text() == honest
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
    for record in steps(recorded):
        assert record.micro_batches == 1
        assert not [stage for stage, digest in record.stages.items() if not digest.root]
        assert record.stages[Stage.ACTIVATIONS].tensors == 1  # the loss: the blocks are inside of what is compiled


PICKLED = """
import copy, io, pickle
f = io.BytesIO(); torch.save(net, f); twin = copy.deepcopy(m); whole = pickle.dumps((net, twin))
assert b"rainwarden" not in f.getvalue() + whole
for module in (*twin.modules(), *pickle.loads(pickle.dumps(m)).modules()):
    assert not [name for name, hooks in vars(module).items() if "hooks" in name and hooks], module
final()
"""


@pytest.mark.parametrize("world", [1, 2])
def test_a_model_that_is_pickled_or_copied_whole_has_nothing_of_the_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    job = make_job(tmp_path, monkeypatch, scripts.HEAD + IN_STEPS + PICKLED)
    honest = plain_state(job, world)
    recorded = job.run(world=world)
    assert (job.folder / "state.txt").read_text() == honest
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
