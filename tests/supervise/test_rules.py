"""The rules against torch's own implementations: honest updates fit within rounding, altered ones do not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import optim

from trainwarden import wire
from trainwarden.record.observers.slices import UpdateSlices
from trainwarden.supervise.slices import Outcome, judge

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "record"))
from stand_in import StandIn

Make = Callable[[list[torch.nn.Parameter]], optim.Optimizer]
SHAPES = ((33, 17), (64,), (5, 3, 3, 3), (1,), ())
MATRICES = ((33, 17), (64, 64), (8, 100))


class Lion(optim.Optimizer):
    """As the well-known third-party packages have it (Chen et al. 2023)."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.1, sign: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": weight_decay})
        self.sign = sign

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_((m * beta1 + p.grad * (1 - beta1)).sign_(), alpha=-lr * self.sign)
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many tiny updates: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


def updates(
    make: Make,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    steps: int = 7,
    before_step: Callable[[int, optim.Optimizer], None] = lambda i, o: None,
) -> list[wire.Updated]:
    """What the observer tells of an optimizer that is given random gradients."""
    draw = torch.Generator().manual_seed(0)
    ps = [torch.nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in shapes]
    optimizer = make(ps)
    stand_in = StandIn(UpdateSlices)
    stand_in.follow(optimizer)
    for i in range(steps):
        for n, p in enumerate(ps):
            p.grad = (torch.randn(p.shape, generator=draw) * scale * 10.0 ** ((i + n) % 5 - 2)).to(dtype)
        before_step(i, optimizer)
        optimizer.step()
    return stand_in.updates


def judged(rule: str, make: Make, **kwargs: Any) -> list[Outcome]:
    return [judge(message, rule) for message in updates(make, **kwargs)]


def assert_fits(rule: str, make: Make, **kwargs: Any) -> None:
    outcomes = judged(rule, make, **kwargs)
    assert [m for o in outcomes for m in o.misfits] == []
    assert {o.unchecked for o in outcomes} == {""}
    assert sum(o.elements for o in outcomes) > 0


IMPLEMENTATIONS = ({"foreach": True}, {"foreach": False}, {"fused": True})
ADAM = (
    {}, {"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True, "weight_decay": 0.01},
    {"betas": (0.0, 0.5)}, {"betas": (0.95, 0.9999), "eps": 1e-30},
)  # fmt: skip
SGD = (
    {}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, {"maximize": True, "momentum": 0.5},
    {"lr": torch.tensor(0.03)},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
)  # fmt: skip


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", IMPLEMENTATIONS, ids=str)
def test_honest_adam_and_sgd_fit(how: dict[str, bool], dtype: torch.dtype, scale: float) -> None:
    for kw in ADAM:
        settings = {"lr": 1e-3, **kw, **how}
        assert_fits("Adam", lambda ps, s=settings: optim.Adam(ps, **s), dtype=dtype, scale=scale)
        assert_fits("AdamW", lambda ps, s=settings: optim.AdamW(ps, **s), dtype=dtype, scale=scale)
    for kw in SGD:
        if not (how.get("fused") and dtype is torch.bfloat16):  # whose kernel on CPU has a defect, below
            settings = {"lr": 0.1, **kw, **how}
            assert_fits("SGD", lambda ps, s=settings: optim.SGD(ps, **s), dtype=dtype, scale=scale)


@pytest.mark.parametrize("scale", [1e-12, 1.0])
def test_honest_half_and_double_precision_fit(scale: float) -> None:
    for dtype in (torch.float16, torch.float64):
        for how in IMPLEMENTATIONS:
            settings = {"lr": 1e-3 if how.get("foreach") else torch.tensor(1e-3), "weight_decay": 0.1, **how}
            assert_fits("Adam", lambda ps, s=settings: optim.Adam(ps, **s), dtype=dtype, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_honest_lion_adafactor_and_muon_fit(dtype: torch.dtype) -> None:
    assert_fits("Lion", lambda ps: Lion(ps), dtype=dtype)
    for kw in ({}, {"weight_decay": 0.1, "maximize": True}, {"lr": torch.tensor(0.01)}, {"foreach": True}):
        settings = {"lr": 1e-2, **kw}
        assert_fits("Adafactor", lambda ps, s=settings: optim.Adafactor(ps, **s), dtype=dtype)
    for kw in ({}, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}):
        settings = {"lr": 2e-2, **kw}
        assert_fits("Muon", lambda ps, s=settings: optim.Muon(ps, **s), dtype=dtype, shapes=MATRICES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_honest_muon_without_nesterov_fits_where_it_can_be_compared(dtype: torch.dtype) -> None:
    """In bfloat16 torch divides the momentum that it keeps by its norm, which only a whole matrix shows."""
    outcomes = judged(
        "Muon", lambda ps: optim.Muon(ps, lr=2e-2, nesterov=False), dtype=dtype, shapes=MATRICES, steps=18
    )
    assert [m for o in outcomes for m in o.misfits] == []
    for whole in (outcomes[0], outcomes[16]):
        assert (whole.elements > 5000, whole.unchecked) == (True, "")
    told = "a bfloat16 momentum by its norm" if dtype is torch.bfloat16 else ""
    assert told in outcomes[1].unchecked


def test_a_tensor_without_a_gradient_fits_when_it_stays() -> None:
    def drop(i: int, optimizer: optim.Optimizer) -> None:
        if i % 2:
            optimizer.param_groups[0]["params"][0].grad = None

    assert_fits("AdamW", lambda ps: optim.AdamW(ps), before_step=drop)


def test_a_closure_that_makes_the_gradients_fits() -> None:
    draw = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(9, generator=draw))
    optimizer = optim.AdamW([p])
    stand_in = StandIn(UpdateSlices)
    stand_in.follow(optimizer)

    def closure() -> float:
        p.grad = torch.randn(9, generator=draw)
        return 0.0

    for _ in range(4):
        optimizer.step(closure)
    outcomes = [judge(m, "AdamW") for m in stand_in.updates]
    assert [len(o.misfits) for o in outcomes] == [0] * 4
    assert sum(o.elements for o in outcomes) == 36


def altered(rule: str, make: Make, alter: Callable[[optim.Optimizer], None], **kwargs: Any) -> dict[str, str]:
    """part → explanation of the misfits at the last of some updates, in which `alter` is called in the update."""

    def last(i: int, optimizer: optim.Optimizer) -> None:
        if i == 6:
            optimizer.register_step_post_hook(lambda o, a, k: alter(o))
            # Ours must come after it, as the recorder's global hook does.
            ours = next(iter(optimizer._optimizer_step_post_hooks))
            optimizer._optimizer_step_post_hooks.move_to_end(ours)

    outcomes = judged(rule, make, before_step=last, **kwargs)
    assert [m for o in outcomes[:-1] for m in o.misfits] == []
    return {m.part: m.fits for m in outcomes[-1].misfits}


def with_settings(**changed: Any) -> Callable[[int, optim.Optimizer], None]:
    """Another setting for the time of the last update: read by the observer before, used by torch after."""

    def before_step(i: int, optimizer: optim.Optimizer) -> None:
        if i == 6:

            def swap(o: optim.Optimizer, args: Any, kwargs: Any) -> None:
                for group in o.param_groups:
                    group.update({k: group[k] * v if k == "lr" else v for k, v in changed.items()})

            optimizer.register_step_pre_hook(swap)

    return before_step


def explained(rule: str, make: Make, **changed: Any) -> dict[str, str]:
    outcomes = judged(rule, make, before_step=with_settings(**changed))
    assert [m for o in outcomes[:-1] for m in o.misfits] == []
    return {m.part: m.fits for m in outcomes[-1].misfits if m.tensor == "p0"}


def test_another_learning_rate_is_named_by_its_factor() -> None:
    assert explained("AdamW", lambda ps: optim.AdamW(ps), lr=1.1) == {"weights": "it moved 1.1 times as far"}
    assert explained("SGD", lambda ps: optim.SGD(ps, lr=0.1), lr=0.7) == {"weights": "it moved 0.7 times as far"}


def test_another_beta_is_named_with_its_value() -> None:
    found = explained("AdamW", lambda ps: optim.AdamW(ps), betas=(0.9, 0.99))
    assert found["exp_avg_sq"] == "as with beta2 = 0.99"
    assert explained("Adam", lambda ps: optim.Adam(ps), betas=(0.8, 0.999))["exp_avg"] == "as with beta1 = 0.8"
    found = explained("SGD", lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9), momentum=0.5)
    assert found["momentum_buffer"] == "as with momentum = 0.5"


def test_moments_emptied_inside_of_an_update_are_named() -> None:
    def empty(i: int, optimizer: optim.Optimizer) -> None:
        if i == 6:

            def zero(o: optim.Optimizer, args: Any, kwargs: Any) -> None:
                for state in o.state.values():
                    state["exp_avg"].zero_()

            optimizer.register_step_pre_hook(zero)

    *before, last = judged("AdamW", lambda ps: optim.AdamW(ps), before_step=empty)
    assert [m for o in before for m in o.misfits] == []
    assert {m.part for m in last.misfits} == {"exp_avg"}
    assert {m.fits for m in last.misfits if m.tensor == "p0"} == {"as if exp_avg had been emptied"}


def test_decay_left_out_is_named() -> None:
    found = explained("AdamW", lambda ps: optim.AdamW(ps, weight_decay=0.1), weight_decay=0.0)
    assert found == {"weights": "as without weight decay"}


def test_a_reversed_update_is_named() -> None:
    assert explained("SGD", lambda ps: optim.SGD(ps, lr=0.1), maximize=True) == {"weights": "it moved the opposite way"}
    found = explained("AdamW", lambda ps: optim.AdamW(ps), maximize=True)
    assert found["exp_avg"] == "as with the opposite gradient"


def test_weights_put_back_or_touched_in_the_update_are_found() -> None:
    def touch(optimizer: optim.Optimizer) -> None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][1].add_(1e-4)

    assert altered("AdamW", lambda ps: optim.AdamW(ps), touch) == {"weights": ""}


def test_moments_cleared_in_the_update_are_found() -> None:
    def clear(optimizer: optim.Optimizer) -> None:
        for state in optimizer.state.values():
            state["exp_avg"].zero_()

    assert altered("AdamW", lambda ps: optim.AdamW(ps), clear)["exp_avg"] != "nothing"


def test_a_reversed_muon_lion_or_adafactor_is_found() -> None:
    def back(optimizer: optim.Optimizer) -> None:
        with torch.no_grad():
            for old, p in zip(kept, optimizer.param_groups[0]["params"], strict=True):
                p.copy_(2 * old - p)

    kept: list[torch.Tensor] = []

    def keep(i: int, optimizer: optim.Optimizer) -> None:
        kept[:] = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
        if i == 16:
            optimizer.register_step_post_hook(lambda o, a, k: back(o))
            ours = next(iter(optimizer._optimizer_step_post_hooks))
            optimizer._optimizer_step_post_hooks.move_to_end(ours)

    for rule, make in (
        ("Muon", lambda ps: optim.Muon(ps, weight_decay=0.0)),
        ("Lion", lambda ps: Lion(ps, weight_decay=0.0)),
        ("Adafactor", lambda ps: optim.Adafactor(ps)),
    ):
        outcomes = judged(rule, make, shapes=MATRICES, steps=17, before_step=keep)
        assert [m for o in outcomes[:-1] for m in o.misfits] == []
        assert {m.fits for m in outcomes[-1].misfits if m.part == "weights"} == {"it moved the opposite way"}


def test_gradients_changed_by_a_hook_of_the_optimizer_are_told_as_that() -> None:
    def clip(i: int, optimizer: optim.Optimizer) -> None:
        if i == 6:

            def scale(o: optim.Optimizer, args: Any, kwargs: Any) -> None:
                for p in o.param_groups[0]["params"]:
                    p.grad.mul_(0.5)

            optimizer.register_step_pre_hook(scale)

    last = judged("AdamW", lambda ps: optim.AdamW(ps), before_step=clip)[-1]
    assert {m.part for m in last.misfits} == {"gradient"}


def fused(ps: list[torch.nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(ps, lr=0.1, fused=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_that_torchs_own_kernel_leaves_alone_are_not_judged_and_that_is_said(dtype: torch.dtype) -> None:
    """Fused SGD on CPU leaves most half-precision weights alone in torch 2.13 (pytorch issue 191763)."""
    outcomes = judged("SGD", fused, dtype=dtype)
    assert [m for o in outcomes for m in o.misfits] == []
    if torch.__version__.startswith("2.13."):
        assert "pytorch issue 191763" in outcomes[0].unchecked


def test_weights_left_alone_or_moved_otherwise_are_found_where_no_kernel_is_known_to_do_so() -> None:
    def alter(how: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[int, optim.Optimizer], None]:
        def at_last(i: int, optimizer: optim.Optimizer) -> None:
            if i == 6:
                old = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

                def after(o: optim.Optimizer, args: Any, kwargs: Any) -> None:
                    with torch.no_grad():
                        for before, p in zip(old, o.param_groups[0]["params"], strict=True):
                            p.copy_(how(before, p))

                hook = optimizer.register_step_post_hook(after)
                optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)

        return at_last

    still = judged("SGD", fused, before_step=alter(lambda before, now: before))[-1]
    assert {m.fits for m in still.misfits if m.tensor == "p1"} == {"it did not move"}
    moved = judged("SGD", fused, dtype=torch.bfloat16, before_step=alter(lambda before, now: now + 1))[-1]
    assert {m.part for m in moved.misfits} == {"weights"}


def test_a_scaled_momentum_of_muon_is_found_where_the_matrix_is_whole() -> None:
    def scale(i: int, optimizer: optim.Optimizer) -> None:
        if i == 16:

            def after(o: optim.Optimizer, args: Any, kwargs: Any) -> None:
                for state in o.state.values():
                    state["momentum_buffer"].mul_(0.5)

            hook = optimizer.register_step_post_hook(after)
            optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)

    last = judged(
        "Muon",
        lambda ps: optim.Muon(ps, nesterov=False),
        dtype=torch.bfloat16,
        shapes=MATRICES,
        steps=17,
        before_step=scale,
    )[-1]
    assert "momentum_buffer" in {m.part for m in last.misfits}


def test_what_does_not_hold_together_is_refused() -> None:
    (message, *_) = updates(lambda ps: optim.AdamW(ps), steps=1)
    (batch, *_) = message.batches
    short = wire.Cut("float32", b"\0" * 8)
    for values in ({**batch.values, "left": short}, {"left": batch.values["left"]}):
        broken = wire.Batch(batch.group, batch.names, batch.starts, batch.counts, values, batch.numbers)
        with pytest.raises(ValueError, match=r"elements|weights"):
            judge(wire.Updated(step=0, optimizer=0, kind="", settings=message.settings, batches=(broken,)), "AdamW")
    with pytest.raises(ValueError, match="group 0 of 0"):
        judge(wire.Updated(step=0, optimizer=0, kind="", batches=message.batches), "AdamW")
