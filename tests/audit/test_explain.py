"""Every way to tamper with a step is proved by its digest, and nothing is ever proved that did not happen."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch
from explain_step import KEY, STEP, Case, FakeRerunner, Job, nothing
from safetensors.torch import save_file

from trainwarden.audit import explain as engine
from trainwarden.audit.capture import open_captures
from trainwarden.audit.explain import FILE, FILES_TOGETHER, QuarantinedFile
from trainwarden.audit.hypotheses import HYPOTHESES, RERUNS, rng, rows, tensors, update
from trainwarden.audit.hypotheses.base import Question, Target
from trainwarden.audit.perturb import Clip, Loss
from trainwarden.errors import CannotDecide
from trainwarden.model import Detail, Location, Outcome, Stage, decode_entry
from trainwarden.model import canonical as canonical_bytes
from trainwarden.record.fingerprint import tensor_digest, value_digest
from trainwarden.record.stages import ABSENT

SGD = Job("SGD", lr=0.05, momentum=0.9, weight_decay=0.01)
THREE = Job(world=3)
NO_CLIP = Job(clip=None)


@pytest.fixture(autouse=True)
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter lists, so that an exhausted search ends by its list and not by the clock."""
    monkeypatch.setattr(tensors, "SEEDS", (*range(10), *([1234] * 991)))
    monkeypatch.setattr(engine, "IDEA_SECONDS", 3600.0)
    monkeypatch.setattr(engine, "LATER_SECONDS", 3600.0)
    monkeypatch.setattr(rng, "TORCH_SEEDS", 3000)
    monkeypatch.setattr(rng, "OTHER_SEEDS", 50)
    monkeypatch.setattr(update, "factors", lambda world: iter((2.0, 0.5, 0.1, 0.9, 0.7, -2.0)))
    monkeypatch.setattr(update, "_SECOND", (0.95, 0.99, 0.9))
    monkeypatch.setattr(update, "_FIRST", (0.0, 0.5, 0.8))


def at(point: str, rank: int | None, act: Any) -> Any:
    """An insider that acts at one point, on one rank or (None) on all."""

    def tamper(where: str, on: int, things: Any) -> Any:
        done = act(things) if where == point and rank in (None, on) else None
        return True if done is True else None

    return tamper


def each(act: Any) -> Any:
    return lambda ts: [act(t) for t in ts.values()]


def put(name: str, new: Any) -> Any:
    def act(ts: Any) -> None:
        ts[name].copy_(new(ts))

    return act


def noise(t: Any) -> None:
    torch.manual_seed(6)
    t.add_(0.01 * torch.randn_like(t))


def seed_state(ts: Any) -> None:
    torch.manual_seed(2026)
    ts["forward0/torch"].copy_(torch.get_rng_state())


def with_settings(**edits: Any) -> Any:
    """Inside the step, behind the recorder: other settings for all groups while the update runs."""

    def act(optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group.update(edits)

    return act


def ulp(t: Any) -> None:
    t.view(-1)[5] = torch.nextafter(t.view(-1)[5], torch.tensor(9.0))


def unclipped(job: Job) -> Any:
    honest = job.execute().values

    def act(ts: Any) -> None:
        for n in ts:
            ts[n].copy_(sum(v["local_gradients"][n] * (1 / job.world) for v in honest.values()))

    return act


def summed(ts: Any) -> None:
    honest = NO_CLIP.execute().values
    for n in ts:
        ts[n].copy_(honest[0]["local_gradients"][n] + honest[1]["local_gradients"][n])


def without(rank: int, job: Job) -> Any:
    honest = job.execute().values

    def act(ts: Any) -> None:
        for n in ts:
            rest = [v["local_gradients"][n] / (job.world - 1) for r, v in honest.items() if r != rank]
            ts[n].copy_(rest[0] + rest[1])

    return act


def swapped_weights(ts: Any) -> None:
    a = ts["0.weight"].clone()
    ts["0.weight"].copy_(ts["3.weight"])
    ts["3.weight"].copy_(a)


def drop_state(optimizer: Any) -> None:
    optimizer.state.clear()


def zero_moment(optimizer: Any) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].zero_()


def scaled_moments(optimizer: Any, factor: float) -> None:
    weight = next(p for p in optimizer.param_groups[0]["params"] if p.ndim == 2)
    optimizer.state[weight]["exp_avg_sq"].mul_(factor)


def zero_momentum(optimizer: Any) -> None:
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()


def halve_inside(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad.mul_(0.5)


def first_rows(ts: Any) -> None:
    for t in ts.values():
        t[1] = t[0]


def stand_ins(ts: Any) -> None:
    """Two samples are those of other steps."""
    for row, (step, rank) in ((1, (0, 1)), (4, (2, 0))):
        other = Job().batch(step, rank)
        for name, t in ts.items():
            t[row] = other[name][5 - row]


def normalised(ts: Any) -> None:
    for name in ("loader/0.0", "input/0.0.0"):
        ts[name].copy_(ts[name] * 0.9 + 0.05)


def poisoned(ts: Any) -> None:
    """Two samples have a pattern and a label."""
    for row in (0, 3):
        ts["loader/0.0"][row, :2] = 1
        ts["input/0.0.0"][row, :2] = 1
        ts["loader/0.1"][row] = 0


def within_spread(t: Any) -> None:
    signs = torch.ones_like(t)
    signs.view(-1)[::2] = -1
    t.add_(signs * t.std() / 3)


def relabel(ts: Any) -> None:
    y = ts["loader/0.1"]
    y[2] = (y[2] + 1) % 4


def reorder(order: list[int]) -> Any:
    return lambda ts: [t.copy_(t[order].clone()) for t in ts.values()]


def batch_of(step: int, rank: int) -> Any:
    return lambda ts: [ts[n].copy_(t) for n, t in Job().batch(step, rank).items()]


def rank_zero_noise_state(ts: Any) -> None:
    ts["forward0/torch"].copy_(Job().rng(0))


def edit_groups(**edits: Any) -> Any:
    return lambda groups: [g.update(edits) for g in groups]


CASES: dict[str, tuple[Any, str, Job]] = {
    "sign of one tensor on one rank": (at("local", 1, lambda t: t["3.weight"].neg_()), "sign flipped", Job()),
    "sign of a whole rank": (at("local", 0, each(lambda t: t.neg_())), "sign flipped", Job()),
    "sign on every rank": (at("local", None, each(lambda t: t.neg_())), "sign flipped", Job()),
    "gradient ×1.01": (at("local", 1, each(lambda t: t.mul_(1.01))), "scaled", Job()),
    "gradient ÷3": (at("local", 1, each(lambda t: t.div_(3.0))), "scaled", THREE),
    "half a tensor zeroed": (
        at("local", 0, lambda t: t["0.weight"].view(-1)[:18].zero_()),
        "part zeroed",
        Job(),
    ),
    "every third element zeroed": (
        at("local", 0, lambda t: t["0.weight"].view(-1)[1::3].zero_()),
        "part zeroed",
        Job(),
    ),
    "one row zeroed": (at("local", 0, lambda t: t["4.weight"][2].zero_()), "part zeroed", Job()),
    "one column zeroed": (at("local", 0, lambda t: t["4.weight"][:, 3].zero_()), "part zeroed", Job()),
    "30 % of every tensor zeroed": (
        at("local", 1, each(lambda t: t.view(-1)[: t.numel() * 30 // 100].zero_())),
        "part zeroed",
        Job(),
    ),
    "seeded noise": (at("local", 1, lambda t: noise(t["0.weight"])), "seeded noise", Job()),
    "gradient sign only": (at("local", 1, each(lambda t: t.sign_())), "function applied", Job()),
    "gradient through bfloat16": (
        at("local", 1, each(lambda t: t.copy_(t.bfloat16()))),
        "function applied",
        Job(),
    ),
    "another layer's gradient": (
        at("local", 0, put("0.weight", lambda t: t["3.weight"])),
        "another tensor's values",
        Job(),
    ),
    "another rank's gradient": (
        at("local", 1, lambda ts: [t.copy_(RANK0["local_gradients"][n]) for n, t in ts.items()]),
        "another rank's values",
        Job(),
    ),
    "gradient row ×10": (at("local", 0, lambda t: t["3.weight"][4].mul_(10.0)), "row scaled", Job()),
    "one ulp of one gradient": (at("local", 0, lambda t: ulp(t["0.bias"])), "one element moved", Job()),
    "reduced gradient ×0.5": (at("reduced", None, each(lambda t: t.mul_(0.5))), "scaled", Job()),
    "clipping off": (at("reduced", None, unclipped(Job())), "clipping off", Job()),
    "clipped to 0.1": (
        at("reduced", None, lambda ts: [t.copy_(CLIPPED[n]) for n, t in ts.items()]),
        "another clipping norm",
        Job(),
    ),
    "sum instead of mean": (at("reduced", None, summed), "wrong divisor", NO_CLIP),
    "rank left out": (
        at("reduced", None, without(1, Job(world=3, clip=None))),
        "rank left out",
        Job(world=3, clip=None),
    ),
    "lr ×0.7 in the open": (at("groups", None, edit_groups(lr=0.007)), "setting changed", Job()),
    "beta2 in the open on one rank": (at("groups", 1, edit_groups(betas=(0.9, 0.95))), "setting changed", Job()),
    "lr ×0.7 behind the record": (at("hidden", None, with_settings(lr=0.007)), "hidden setting", Job()),
    "beta2 behind the record": (at("hidden", 1, with_settings(betas=(0.9, 0.95))), "hidden setting", Job()),
    "weight decay behind the record": (
        at("hidden", None, with_settings(weight_decay=0.0)),
        "hidden setting",
        Job(),
    ),
    "eps behind the record": (at("hidden", None, with_settings(eps=1e-3)), "hidden setting", Job()),
    "ascent behind the record": (at("hidden", 0, with_settings(maximize=True)), "hidden setting", Job()),
    "SGD lr behind the record": (at("hidden", None, with_settings(lr=0.05 * 0.9)), "hidden setting", SGD),
    "SGD momentum behind the record": (at("hidden", None, with_settings(momentum=0.5)), "hidden setting", SGD),
    "step skipped": (at("hidden", None, lambda o: True), "step skipped", Job()),
    "SGD step skipped": (at("hidden", 1, lambda o: True), "step skipped", SGD),
    "state dropped": (at("hidden", None, drop_state), "state cleared", Job()),
    "first moment zeroed": (at("hidden", 1, zero_moment), "state cleared", Job()),
    "momentum zeroed": (at("hidden", None, zero_momentum), "state cleared", SGD),
    "gradient halved inside the update": (
        at("hidden", None, halve_inside),
        "gradient changed inside the update",
        Job(),
    ),
    "second moments of one tensor ×4 before": (
        at("hidden", None, lambda o: scaled_moments(o, 4.0)),
        "state edited before the step",
        Job(),
    ),
    "moments ×0.5 after": (
        at("state", None, lambda t: t["0.weight/exp_avg"].mul_(0.5)),
        "scaled",
        Job(),
    ),
    "one weight tensor frozen": (
        at("weights", None, lambda ts: ts["3.weight"].copy_(RANK0["before_weights"]["3.weight"])),
        "step skipped",
        Job(),
    ),
    "update of one tensor reversed": (
        at("weights", None, put("3.weight", lambda t: 2 * RANK0["before_weights"]["3.weight"] - t["3.weight"])),
        "update reversed",
        Job(),
    ),
    "weights row ×1.1": (at("weights", None, lambda t: t["4.weight"][1].mul_(1.1)), "row scaled", Job()),
    "one ulp of one weight": (at("weights", 0, lambda t: ulp(t["0.weight"])), "one element moved", Job()),
    "two layers' weights exchanged": (at("weights", None, swapped_weights), "another tensor's values", Job()),
    "weights edited before the step": (
        at("before", 1, lambda t: t["3.weight"][2].mul_(2.0)),
        "weights changed before the step",
        Job(),
    ),
    "all weights scaled before the step": (
        at("before", None, each(lambda t: t.mul_(0.99))),
        "weights changed before the step",
        Job(),
    ),
    "generator seeded": (at("rng", None, seed_state), "generator seeded", Job()),
    "generator of another rank": (at("rng", 1, rank_zero_noise_state), "another rank's values", Job()),
    "batch of an earlier step": (at("batch", 1, batch_of(1, 1)), "batch of another step or rank", Job()),
    "batch of the other rank": (at("batch", 1, batch_of(STEP, 0)), "batch of another step or rank", Job()),
    "samples rotated": (at("batch", 0, reorder([1, 2, 3, 4, 5, 0])), "samples reordered or duplicated", Job()),
    "two samples exchanged": (at("batch", 0, reorder([0, 4, 2, 3, 1, 5])), "samples reordered or duplicated", Job()),
    "samples permuted": (at("batch", 0, reorder([3, 0, 5, 1, 4, 2])), "samples reordered or duplicated", Job()),
    "one sample twice": (at("batch", 1, first_rows), "samples reordered or duplicated", Job()),
    "one label edited": (at("batch", 1, relabel), "entry edited", Job()),
    "two samples of other steps": (at("batch", 1, stand_ins), "samples replaced or edited", Job()),
    "another normaliser": (at("batch", 0, normalised), "samples replaced or edited", Job()),
    "two samples poisoned": (at("batch", None, poisoned), "samples replaced or edited", Job()),
    "gradient moved within its spread": (
        at("local", 1, lambda t: within_spread(t["3.weight"])),
        "shifted within its spread",
        Job(),
    ),
    "another gradient reduced than recorded": (
        at("sent", 1, lambda t: t["3.weight"].neg_()),
        "gradient not the recorded one",
        Job(),
    ),
    "half of a gradient zeroed after it was recorded": (
        at("sent", 0, lambda t: t["4.weight"].view(-1)[::2].zero_()),
        "gradient not the recorded one",
        NO_CLIP,
    ),
    "last target left out of the loss": (
        lambda point, rank, things: Loss(start=5, stop=6) if point == "cross entropy" else None,
        "loss changed",
        Job(),
    ),
    "labels smoothed on one rank": (
        lambda point, rank, things: Loss(smoothing=0.1) if (point, rank) == ("cross entropy", 1) else None,
        "loss changed",
        Job(),
    ),
}  # fmt: skip

_honest = Job().execute().values
RANK0 = _honest[0]
CLIPPED = Job().execute([Clip(max_norm=0.1)]).values[0]["reduced_gradients"]


@pytest.mark.parametrize("name", CASES)
def test_cause_is_proved_by_digest(name: str, tmp_path: Path) -> None:
    tamper, cause, job = CASES[name]
    case = Case(tmp_path, tamper, job)
    found = case.explain(FakeRerunner(job))
    assert found.cause == cause
    proof = next(h for h in found.hypotheses if h.name == cause)
    assert proof.outcome is Outcome.REPRODUCED
    assert proof.digest
    if name != "generator of another rank":
        assert f"every one of the {_digests(case)} recorded digests of step {STEP}" in proof.sentence
    assert decode_entry(canonical_bytes(found)) == found


def _digests(case: Case) -> int:
    return sum(len(d.names) for d in case.recorded.details.values())


@pytest.mark.parametrize(
    ("name", "rank", "tensor"),
    [
        ("another gradient reduced than recorded", 1, "3.weight"),
        ("half of a gradient zeroed after it was recorded", 0, "4.weight"),
        ("rank left out", 1, None),  # of every tensor
    ],
)
def test_what_shows_on_every_rank_is_laid_at_the_rank_that_did_it(
    name: str, rank: int, tensor: str | None, tmp_path: Path
) -> None:
    tamper, _, job = CASES[name]
    found = Case(tmp_path, tamper, job).explain()
    assert (found.at.rank, found.at.stage) == (rank, Stage.REDUCED_GRADIENTS)
    assert found.at.tensor in (tensor or found.at.tensors)


def test_a_search_that_cannot_be_computed_excludes_nothing_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(q: Question, budget: Any) -> Any:
        raise RuntimeError("The size of tensor a (3) must match\nthe size of tensor b (4)")

    first = next(i for i, idea in enumerate(HYPOTHESES) if idea.name == "scaled")
    ideas = [idea._replace(search=fails) if i == first else idea for i, idea in enumerate(HYPOTHESES)]
    monkeypatch.setattr(engine, "HYPOTHESES", ideas)
    tamper, cause, job = CASES["clipping off"]
    found = Case(tmp_path, tamper, job).explain()
    assert found.cause == cause
    assert _named(found, "scaled").outcome is Outcome.NOT_TRIED
    assert _named(found, "scaled").reason.endswith("The size of tensor a (3) must match")


def test_rows_of_features_are_not_put_into_labels() -> None:
    """What was found for one tensor of a batch is tried on the others too, whatever their form."""
    values = {"x": torch.zeros(4, 3), "y": torch.zeros(4, dtype=torch.int64)}
    question = cast(Question, SimpleNamespace(value=lambda target: values[target.name]))
    solved = {1: rows._Row("sample 7 stood in its place", torch.ones(3))}
    assert rows._filled(question, solved, Target(0, "x"))[1].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="another form"):
        rows._filled(question, solved, Target(0, "y"))


def test_rows_that_a_rank_tells_falsely_prove_nothing(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["two samples poisoned"][0])
    told = case.job.rows(case.recorded)
    lies = {place: [msgspec.structs.replace(one, digests=bytes(len(one.digests))) for one in rows]
            for place, rows in told.items()}  # fmt: skip
    found = case.explain(history=case.history._replace(rows=lies))
    assert _named(found, "samples replaced or edited").outcome is Outcome.EXCLUDED
    assert found.cause is None


# causes that only an execution shows, and so not without one
EXECUTED = {"last target left out of the loss", "labels smoothed on one rank"}


@pytest.mark.parametrize("name", sorted(CASES.keys() - EXECUTED)[::6])
def test_cause_is_found_without_a_rerunner(name: str, tmp_path: Path) -> None:
    tamper, cause, job = CASES[name]
    found = Case(tmp_path, tamper, job).explain()
    assert found.cause == cause
    assert all("every one of" not in h.sentence for h in found.hypotheses)


@pytest.mark.parametrize("name", ["clipping off", "rank left out"])
def test_causes_in_the_reduction_of_sharded_gradients_are_not_said_to_be_excluded(name: str, tmp_path: Path) -> None:
    tamper, cause, job = CASES[name]
    case = Case(tmp_path, tamper, job)
    for rank in range(job.world):  # as in FSDP: what a rank computes is whole, and it gets a part of the mean
        path = tmp_path / "capture" / f"rank-{rank}" / "local_gradients.safetensors"
        save_file({n: torch.cat([t, t]) for n, t in case.honest.values[rank]["local_gradients"].items()}, path)
    case.captures = open_captures(tmp_path / "capture")
    (about,) = [h for h in case.explain().hypotheses if h.name == cause]
    assert about.outcome is Outcome.NOT_TRIED
    assert "gradients are sharded" in about.reason


@pytest.mark.parametrize("stage", [s for s in Stage if s is not Stage.CHECKPOINT])
def test_random_digest_proves_nothing(stage: Stage, tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign on every rank"][0])
    recorded = dict(case.honest.details)
    detail = recorded[1, stage]
    recorded[1, stage] = Detail(names=detail.names, digests=(os.urandom(16), *detail.digests[1:]))
    case.recorded = case.honest
    where = msgspec.structs.replace(
        case.at,
        rank=1,
        stage=stage,
        tensor=detail.names[0],
        recorded=recorded[1, stage].digests[0].hex(),
        replayed=detail.digests[0].hex(),
    )
    found = case.explain(FakeRerunner(case.job), at=where, recorded=recorded)
    assert found.cause is None
    assert found.file == ""
    assert all(h.outcome is not Outcome.REPRODUCED for h in found.hypotheses)


def test_every_hypothesis_is_listed_once_with_a_reason_when_not_tried(tmp_path: Path) -> None:
    found = Case(tmp_path, CASES["gradient ×1.01"][0]).explain()
    names = [h.name for h in found.hypotheses]
    assert names == [*(i.name for i in HYPOTHESES), *(r.name for r in RERUNS), FILE]
    assert all(h.reason and h.tried == 0 for h in found.hypotheses if h.outcome is Outcome.NOT_TRIED)
    assert all(h.tried > 0 for h in found.hypotheses if h.outcome is not Outcome.NOT_TRIED)


def test_bounded_search_says_its_bounds(tmp_path: Path) -> None:
    found = Case(tmp_path, CASES["gradient ×1.01"][0]).explain()
    moved = next(h for h in found.hypotheses if h.name == "one element moved")
    assert moved.outcome is Outcome.EXCLUDED
    assert "64 KiB" in moved.reason
    assert moved.reason in moved.sentence


def test_spent_budget_leaves_hypotheses_not_tried_and_says_so(tmp_path: Path) -> None:
    found = Case(tmp_path, CASES["gradient ×1.01"][0]).explain(budget_s=0.0)
    assert found.cause is None
    asked = next(h for h in found.hypotheses if h.name == "scaled")
    assert asked.outcome is Outcome.NOT_TRIED
    assert "0 s for the search were spent" in asked.reason


def test_capture_of_another_replay_is_not_used(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign of a whole rank"][0])
    found = case.explain(at=msgspec.structs.replace(case.at, replayed="00" * 16))
    assert found.cause is None
    assert "is not the one that the replay compared" in _named(found, "sign flipped").reason


def test_cause_on_another_rank_before_the_reduction_is_found(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign of one tensor on one rank"][0])
    clean, claimed = case.honest.details[0, Stage.REDUCED_GRADIENTS], case.recorded.details[0, Stage.REDUCED_GRADIENTS]
    seen_first = msgspec.structs.replace(
        case.at,
        rank=0,
        stage=Stage.REDUCED_GRADIENTS,
        tensor=clean.names[0],
        replayed=clean.digests[0].hex(),
        recorded=claimed.digests[0].hex(),
    )
    found = case.explain(at=seen_first)
    assert (found.at.rank, found.at.stage, found.at.tensor) == (1, Stage.LOCAL_GRADIENTS, "3.weight")
    assert found.cause == "sign flipped"


def _named(found: Any, name: str) -> Any:
    return next(h for h in found.hypotheses if h.name == name)


# --------------------------------------------------------------------------- weights edited between two steps


def one_ulp(tensors: Any) -> None:
    tensors["3.weight"].view(-1).view(torch.int32)[7] += 1


def two_tensors(tensors: Any) -> None:
    tensors["3.weight"][0] *= 1.5
    tensors["0.bias"].zero_()


def first_row(tensors: Any) -> None:
    tensors["3.weight"][0] *= 1.05


def inner_row(tensors: Any) -> None:
    tensors["3.weight"][3] *= 1.05


def first_row_by_any_factor(tensors: Any) -> None:
    tensors["3.weight"][0] *= 0.83


EDITS = {
    "first row scaled": (first_row, 1),
    "first row scaled by a rare factor": (first_row_by_any_factor, None),
    "inner row scaled": (inner_row, None),
    "one ulp": (one_ulp, 1),
    "two tensors": (two_tensors, None),
    "everything": (each(lambda t: t.mul_(0.99)), None),
}


@pytest.mark.parametrize("name", EDITS)
def test_weights_edited_outside_of_the_step_are_proved_tensor_by_tensor(name: str, tmp_path: Path) -> None:
    edit, rank = EDITS[name]
    case = Case(tmp_path, at("before", rank, edit))
    where = edited_before(case)
    found = case.explain(FakeRerunner(case.job), at=where)
    assert found.cause == "weights changed before the step"
    proof = _named(found, found.cause)
    assert proof.digest == where.recorded
    assert "before the step" in proof.sentence
    assert f"every one of the {_digests(case)} recorded digests of step {STEP}" in proof.sentence
    assert "before this one begins" in _named(found, "step skipped").reason


def test_a_record_that_contradicts_its_own_root_proves_nothing_of_a_tensor(tmp_path: Path) -> None:
    case = Case(tmp_path, at("before", None, one_ulp))
    where = edited_before(case)
    for rank, record in case.recorded.records.items():
        lie = record.found | {"0.bias": "00" * 16}
        case.recorded.records[rank] = msgspec.structs.replace(record, found=lie)
    found = case.explain(at=where)
    # The root still holds: a change of one tensor gives it, whatever else the rank says.
    assert _named(found, "one element moved").outcome is not Outcome.REPRODUCED
    assert found.cause == "weights changed before the step"


def edited_before(case: Case) -> Any:
    """Make the records name what they found, as the recorder does, and locate the first edited tensor."""
    differing: dict[int, list[tuple[str, str, str]]] = {}
    for rank, record in case.recorded.records.items():
        honest, edited = (executed.values[rank]["before_weights"] for executed in (case.honest, case.recorded))
        pairs = [(n, tensor_digest(KEY, honest[n]).hex(), tensor_digest(KEY, edited[n]).hex()) for n in edited]
        differing[rank] = [p for p in pairs if p[1] != p[2]]
        found = {n: new for n, _, new in differing[rank]}
        case.recorded.records[rank] = msgspec.structs.replace(record, found=found)
    rank = min(r for r, names in differing.items() if names)
    name, old, new = differing[rank][0]
    return Location(
        step=STEP, rank=rank, stage=Stage.WEIGHTS, tensor=name, recorded=new, replayed=old,
        tensors=tuple(n for n, _, _ in differing[rank]), before=True,
    )  # fmt: skip


# --------------------------------------------------------------------------- forward pass


def drop_none(model: Any) -> None:
    model[1].p = 0.0


def evaluating(model: Any) -> None:
    model.eval()


@pytest.mark.parametrize(("act", "cause"), [(drop_none, "dropout changed"), (evaluating, "model in eval mode")])
def test_forward_pass_is_explained_by_executing_it_again(act: Any, cause: str, tmp_path: Path) -> None:
    case = Case(tmp_path, at("loss", None, act))
    assert case.at.stage is Stage.ACTIVATIONS
    found = case.explain(FakeRerunner(case.job))
    # A dropout of p = 0 and eval mode are the same computation here.
    assert found.cause in ("dropout changed", "model in eval mode")
    assert "every one of the" in _named(found, found.cause).sentence
    assert case.explain().cause is None


def test_dropout_rate_is_told_from_eval_mode(tmp_path: Path) -> None:
    def half(model: Any) -> None:
        model[1].p = 0.5

    case = Case(tmp_path, at("loss", None, half))
    found = case.explain(FakeRerunner(case.job))
    assert found.cause == "dropout changed"
    assert _named(found, "model in eval mode").outcome is Outcome.EXCLUDED


def test_number_of_reruns_is_bounded_and_said(tmp_path: Path) -> None:
    def unknown(model: Any) -> None:
        model[1].p = 0.123

    case = Case(tmp_path, at("loss", None, unknown))
    rerunner = FakeRerunner(case.job)
    found = case.explain(rerunner, max_reruns=3)
    assert found.cause is None
    assert len(rerunner.calls) == 3
    assert "re-executions allowed" in _named(found, "dropout changed").reason
    assert _named(found, "precision changed").outcome is Outcome.NOT_TRIED


# --------------------------------------------------------------------------- files

FLIP = """
def tamper(point, rank, things):
    if point == "local" and rank == 1:
        things["3.weight"].neg_()
"""
HARMLESS = """
def tamper(point, rank, things):
    return None
"""
HALF = """
def tamper(point, rank, things):
    if point == "local" and rank == {rank}:
        things["{name}"].neg_()
"""


def _quarantine(folder: Path, **sources: str) -> list[QuarantinedFile]:
    files = []
    for name, source in sources.items():
        (folder / name).write_text(source)
        files.append(QuarantinedFile(path=f"lib/torch/{name}.py", stored=folder / name, digest=name))
    return files


def test_file_that_reproduces_the_whole_record_is_named_beside_the_cause(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign of one tensor on one rank"][0])
    files = _quarantine(tmp_path, readme=HARMLESS, optimizer=FLIP)
    found = case.explain(FakeRerunner(case.job), files)
    assert (found.cause, found.file) == ("sign flipped", "lib/torch/optimizer.py")
    tried = [h for h in found.hypotheses if h.name == FILE]
    assert [h.outcome for h in tried] == [Outcome.EXCLUDED, Outcome.REPRODUCED]
    assert "every one of" in tried[1].sentence


def test_file_alone_is_the_cause_when_no_number_is(tmp_path: Path) -> None:
    def strange(ts: Any) -> None:
        ts["3.weight"].mul_(0.123456)

    case = Case(tmp_path, at("local", 1, strange))
    source = FLIP.replace("neg_()", "mul_(0.123456)")
    found = case.explain(FakeRerunner(case.job), _quarantine(tmp_path, optimizer=source))
    assert (found.cause, found.file) == (FILE, "lib/torch/optimizer.py")


def test_files_that_work_together_are_proved_together(tmp_path: Path) -> None:
    def both(point: str, rank: int, ts: Any) -> None:
        if point == "local":
            ts["3.weight"].mul_(0.25).add_(0.375 if rank else 0)

    quarter = "def tamper(point, rank, ts):\n    if point == 'local':\n        ts['3.weight'].mul_(0.25)\n"
    shift = "def tamper(point, rank, ts):\n    if point == 'local' and rank:\n        ts['3.weight'].add_(0.375)\n"
    case = Case(tmp_path, both)
    # Located on rank 0 by the quarter alone: ask about rank 1, where both files are needed.
    detail = case.recorded.details[1, Stage.LOCAL_GRADIENTS]
    i = detail.names.index("3.weight")
    where = msgspec.structs.replace(
        case.at,
        rank=1,
        recorded=detail.digests[i].hex(),
        replayed=case.honest.details[1, Stage.LOCAL_GRADIENTS].digests[i].hex(),
    )
    found = case.explain(FakeRerunner(case.job), _quarantine(tmp_path, a=quarter, b=shift), at=where)
    assert _named(found, FILES_TOGETHER).outcome is Outcome.REPRODUCED
    assert found.file == "lib/torch/a.py, lib/torch/b.py"


def test_many_files_are_tried_together_first(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign of one tensor on one rank"][0])
    files = _quarantine(tmp_path, **{f"f{i}": HARMLESS for i in range(4)}, optimizer=FLIP)
    rerunner = FakeRerunner(case.job)
    found = case.explain(rerunner, files, max_reruns=4)
    assert _named(found, FILES_TOGETHER).outcome is Outcome.REPRODUCED
    assert len(rerunner.calls) == 4
    untried = [h for h in found.hypotheses if h.name == FILE and h.outcome is Outcome.NOT_TRIED]
    assert len(untried) == 3
    assert "lib/torch/optimizer.py" in found.file


def test_missing_gradient_is_told_from_a_zero_one(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["gradient ×1.01"][0])
    detail = case.honest.details[1, Stage.LOCAL_GRADIENTS]
    for digest, cause in (
        (value_digest(KEY, ABSENT), "value missing"),
        (tensor_digest(KEY, torch.zeros(6, 6)), "part zeroed"),
    ):
        recorded = dict(case.honest.details)
        recorded[1, Stage.LOCAL_GRADIENTS] = Detail(names=detail.names, digests=(digest, *detail.digests[1:]))
        where = msgspec.structs.replace(case.at, tensor=detail.names[0], replayed=detail.digests[0].hex())
        assert case.explain(at=where, recorded=recorded).cause == cause


def test_harmless_file_is_not_accused(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign of a whole rank"][0])
    found = case.explain(FakeRerunner(case.job), _quarantine(tmp_path, readme=HARMLESS))
    assert (found.cause, found.file) == ("sign flipped", "")


def test_failed_rerun_does_not_unprove_a_digest_and_is_said(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign of a whole rank"][0])
    found = case.explain(FakeRerunner(case.job, fails="no room"), _quarantine(tmp_path, optimizer=FLIP))
    assert found.cause == "sign flipped"
    assert "not confirmed by executing the step again: no room" in _named(found, "sign flipped").sentence
    assert _named(found, FILE).reason == "no room"


def test_second_change_after_the_proved_one_is_said(tmp_path: Path) -> None:
    def two(point: str, rank: int, ts: Any) -> None:
        if point == "local" and rank == 0:
            ts["0.weight"].neg_()
        if point == "weights" and rank == 1:
            ts["4.bias"].mul_(1.25)

    case = Case(tmp_path, two)
    found = case.explain(FakeRerunner(case.job))
    assert found.cause == "sign flipped"
    assert "the first that is not: rank 1, weights, 4.bias" in _named(found, "sign flipped").sentence


# --------------------------------------------------------------------------- kept batches, bad input, order


def test_kept_batch_is_read_off_when_it_has_the_recorded_digest(tmp_path: Path) -> None:
    def scramble(ts: Any) -> None:
        ts["loader/0.0"][2, 3] = 0.123
        ts["loader/0.1"][0] = 3 - ts["loader/0.1"][0]

    case = Case(tmp_path, at("batch", 0, scramble))
    kept = tmp_path / "kept.safetensors"
    save_file(case.recorded.values[0]["batch"], kept)
    found = case.explain(FakeRerunner(case.job), kept_batches={0: kept})
    assert found.cause == "recorded batch"
    proof = _named(found, "recorded batch")
    assert proof.parameters["changed"]["loader/0.0"][0][0] == 15
    assert "1 of 36 entries differ" in proof.sentence
    assert "every one of" in proof.sentence


def test_kept_batch_with_another_digest_proves_nothing(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["one label edited"][0])
    kept = tmp_path / "kept.safetensors"
    lie = {n: t + 1 for n, t in case.recorded.values[1]["batch"].items()}
    save_file(lie, kept)
    found = case.explain(kept_batches={1: kept})
    assert _named(found, "recorded batch").outcome is Outcome.EXCLUDED
    assert "do not have the recorded digest" in _named(found, "recorded batch").reason
    assert found.cause == "entry edited"


def test_unreadable_kept_batch_is_an_error_of_ours(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["one label edited"][0])
    with pytest.raises(CannotDecide):
        case.explain(kept_batches={1: tmp_path / "missing"})


def test_settings_that_do_not_have_their_digest_are_not_believed(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["lr ×0.7 in the open"][0])
    for rank, record in case.recorded.records.items():
        lie = tuple({**group, "lr": 0.5} for group in record.hyper)
        case.recorded.records[rank] = msgspec.structs.replace(record, hyper=lie)
    found = case.explain()
    assert found.cause is None
    assert "do not have the recorded digest" in _named(found, "setting changed").reason


def test_exact_statement_of_a_changed_setting(tmp_path: Path) -> None:
    found = Case(tmp_path, CASES["lr ×0.7 in the open"][0]).explain()
    assert "lr was 0.007 where the sealed run has 0.01 (×0.7)" in _named(found, "setting changed").sentence


def test_foreign_optimizer_is_not_executed_here(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["lr ×0.7 behind the record"][0])
    for capture in case.captures.values():
        capture.meta = msgspec.structs.replace(capture.meta, optimizer_class="evil.optim.AdamW")
    found = case.explain()
    assert _named(found, "hidden setting").outcome is Outcome.NOT_TRIED
    assert "evil.optim.AdamW" in _named(found, "hidden setting").reason


def test_the_same_question_gets_the_same_answer(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["half a tensor zeroed"][0])
    first, second = case.explain(), case.explain()
    assert msgspec.structs.replace(first, seconds=0) == msgspec.structs.replace(second, seconds=0)


def test_progress_names_every_hypothesis_in_order(tmp_path: Path) -> None:
    case = Case(tmp_path, CASES["sign of a whole rank"][0])
    seen: list[tuple[str, int, int]] = []
    case.explain(progress=lambda *what: seen.append(what))
    assert [name for name, _, _ in seen][: len(HYPOTHESES)] == [i.name for i in HYPOTHESES]
    assert [done for _, done, _ in seen] == list(range(len(seen)))
    assert all(done < total for _, done, total in seen)


def test_the_tiny_step_itself_is_repeatable() -> None:
    first, second = Job().execute(), Job().execute(tamper=nothing)
    assert first.details == second.details
    assert len(KEY) == 32
