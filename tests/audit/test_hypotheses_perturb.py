"""A perturbation means the same in the search, in a rank and after a trip through JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainwarden.audit.capture import open_captures
from trainwarden.audit.perturb import (
    Assign,
    Autocast,
    BatchFrom,
    ClearState,
    Clip,
    Dropout,
    Element,
    EvalMode,
    Noise,
    Perturbation,
    Reseed,
    Rows,
    Scale,
    ScaleRows,
    SetHyper,
    SkipStep,
    TakeFrom,
    Ulp,
    Unary,
    Zero,
    cannot_execute,
    decode,
    encode,
)
from trainwarden.audit.perturbing import (
    apply_tensors,
    clip_by_norm,
    edited_groups,
    mean_of_ranks,
    step_ulps,
    torch_rng_state,
    transform,
)
from trainwarden.errors import CannotDecide
from trainwarden.model import Stage

G = Stage.LOCAL_GRADIENTS
EVERY: tuple[Perturbation, ...] = (
    Scale(stage=G, factor=-1.0, ranks=(1,), tensors=("a",)),
    Zero(stage=G, start=0, stop=2, dim=1),
    ScaleRows(stage=G, factor=2.0, start=1, stop=2),
    Noise(stage=G, seed=3, std=0.1, form="alpha"),
    Unary(stage=G, op="sign"),
    TakeFrom(stage=G, other="b"),
    Assign(stage=G, path="/x"),
    Rows(stage=Stage.BATCH, order=(1, 0)),
    Element(stage=G, index=4, value=1.5),
    Ulp(stage=Stage.WEIGHTS, before=True, index=0, ulps=-1),
    SetHyper(key="betas", value=(0.9, 0.95), hidden=True),
    SetHyper(key="amsgrad", value=True, group=1),
    SetHyper(key="foreach", value=None),
    Clip(),
    Clip(max_norm=0.5),
    Reseed(seed=4, generators=("torch", "numpy")),
    BatchFrom(step=2, rank=0),
    Dropout(p=0.5),
    EvalMode(),
    Autocast(dtype="bfloat16"),
    SkipStep(ranks=(0,)),
    ClearState(keys=("exp_avg",)),
)


def test_every_kind_survives_json() -> None:
    assert decode(encode(EVERY)) == EVERY


def test_perturbations_reach_only_their_stage_rank_tensor_and_moment() -> None:
    tensors = {"a": torch.ones(3), "b": torch.ones(3)}
    flip = Scale(stage=G, factor=-1.0, ranks=(1,), tensors=("a",))
    assert list(apply_tensors([flip], G, 1, tensors)) == ["a"]
    assert apply_tensors([flip], G, 0, tensors) == {}
    assert apply_tensors([flip], Stage.REDUCED_GRADIENTS, 1, tensors) == {}
    assert apply_tensors([flip], G, 1, tensors, before=True) == {}
    assert tensors["a"].equal(torch.ones(3))


def test_two_tensors_can_be_exchanged() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.ones(2)}
    swap = [TakeFrom(stage=G, tensors=("a",), other="b"), TakeFrom(stage=G, tensors=("b",), other="a")]
    changed = apply_tensors(swap, G, 0, tensors)
    assert changed["a"].equal(torch.ones(2))
    assert changed["b"].equal(torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_unit_in_the_last_place_is_the_next_number(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, -1.0, 3.5, -0.125, 1024.0], dtype=dtype)
    assert step_ulps(values, 1).equal(torch.nextafter(values, torch.full_like(values, torch.inf)))
    assert step_ulps(values, -1).equal(torch.nextafter(values, torch.full_like(values, -torch.inf)))
    assert step_ulps(step_ulps(values, 7), -7).equal(values)


def test_rounding_of_a_factor_matters_and_is_named() -> None:
    t = torch.tensor([1.0, 3.0, 5.0, 7.0]).bfloat16()
    scalar = transform(Scale(stage=G, factor=1.01), t, {})
    rounded = transform(Scale(stage=G, factor=1.01, rounding="tensor"), t, {})
    assert scalar.equal(t * 1.01)
    assert rounded.equal(t * torch.tensor(1.01).bfloat16())


@pytest.mark.parametrize(
    "misfit",
    [
        Scale(stage=G, factor=2.0),
        Rows(stage=G, order=(0, 9)),
        Element(stage=G, index=6, value=0),
        Zero(stage=G, start=0, stop=1, dim=2),
        TakeFrom(stage=G, other="gone"),
        Assign(stage=G, path="/nowhere.safetensors", name="x"),
    ],
)
def test_misfit_is_a_value_error(misfit: Perturbation) -> None:
    with pytest.raises(ValueError):
        transform(misfit, torch.arange(6).reshape(2, 3), {}, "t")  # type: ignore[arg-type]


def test_noise_leaves_the_default_generator_alone_and_is_what_manual_seed_gives() -> None:
    state = torch.get_rng_state()
    noisy = transform(Noise(stage=G, seed=5, std=1.0), torch.zeros(40), {})
    assert torch.get_rng_state().equal(state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert noisy.equal(torch.randn(40))
        torch.manual_seed(8)
        assert torch.get_rng_state().equal(torch_rng_state(8))


def test_mean_is_what_distributed_data_parallel_computes() -> None:
    parts = [torch.tensor([0.1, 0.7, -3.3]), torch.tensor([1e-3, 2.5, 9.1]), torch.tensor([7.7, -0.3, 1e3])]
    third = 1.0 / 3.0
    assert mean_of_ranks(parts, 3, "scale").equal(parts[0] * third + parts[1] * third + parts[2] * third)
    assert mean_of_ranks(parts, 3, "after").equal((parts[0] + parts[1] + parts[2]) / 3)


def test_clipping_is_torchs_own_and_leaves_its_input() -> None:
    gradients = {"a": torch.full((3,), 2.0), "b": torch.full((2,), -1.0)}
    clipped = clip_by_norm(gradients, 0.5)
    assert torch.cat(list(clipped.values())).norm() <= 0.5
    assert gradients["a"].equal(torch.full((3,), 2.0))
    assert clip_by_norm(gradients, None)["a"].equal(gradients["a"])


def test_settings_are_edited_in_the_groups_meant() -> None:
    edits = (SetHyper(key="lr", value=0.5), SetHyper(key="lr", value=0.25, group=1, ranks=(1,)))
    groups = [{"lr": 1.0}, {"lr": 1.0}]
    assert edited_groups(edits, 0, groups) == {(0, "lr"): 0.5, (1, "lr"): 0.5}
    assert edited_groups(edits, 1, groups) == {(0, "lr"): 0.5, (1, "lr"): 0.25}


def test_missing_capture_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotDecide, match="no capture"):
        open_captures(tmp_path)


@pytest.mark.parametrize("meta", ["", "{", '{"step": "x", "rank": 0, "world": 1}'])
def test_corrupt_capture_is_said(meta: str, tmp_path: Path) -> None:
    (tmp_path / "rank-0").mkdir()
    (tmp_path / "rank-0" / "meta.json").write_text(meta)
    with pytest.raises(CannotDecide, match=r"meta\.json"):
        open_captures(tmp_path)


def test_corrupt_tensors_of_a_capture_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "rank-0"
    folder.mkdir()
    (folder / "meta.json").write_text('{"step": 1, "rank": 0, "world": 1}')
    (folder / "batch.safetensors").write_bytes(b"not tensors")
    capture = open_captures(tmp_path)[0]
    with pytest.raises(CannotDecide, match="batch"):
        capture.clean(Stage.BATCH)
    assert capture.clean(Stage.RNG) == {}


def test_names_of_a_capture_are_those_of_the_record(tmp_path: Path) -> None:
    folder = tmp_path / "rank-0"
    folder.mkdir()
    (folder / "meta.json").write_text('{"step": 1, "rank": 0, "world": 1}')
    t = torch.ones(2)
    save_file(
        {"weights/a": t, "weights/buffer/b": t.clone(), "state/a/exp_avg": t.clone()}, folder / "after.safetensors"
    )
    capture = open_captures(tmp_path)[0]
    assert sorted(capture.clean(Stage.WEIGHTS)) == ["a", "buffer/b"]
    assert sorted(capture.clean(Stage.OPTIMIZER_STATE)) == ["a/exp_avg"]
    assert capture.before(Stage.WEIGHTS) == {}


def test_a_change_that_a_replay_cannot_bring_about_is_refused_and_not_passed_over() -> None:
    assert cannot_execute([Scale(stage=Stage.WEIGHTS, factor=2.0, before=True), Reseed(seed=1)]) == ""
    assert "step 3, rank 1" in cannot_execute([BatchFrom(step=3, rank=1)])
    for stage in (Stage.RNG, Stage.ACTIVATIONS, Stage.HYPERPARAMETERS):
        assert f"at stage {stage}" in cannot_execute([TakeFrom(stage=stage, other="x")])
        assert f"at stage {stage}" in cannot_execute([Assign(stage=stage, path="x")])
