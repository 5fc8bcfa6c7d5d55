"""What is no longer as an update left it, tried on real optimizers with a stand-in for the recorder."""

from __future__ import annotations

import torch
from stand_in import StandIn
from torch import optim

from trainwarden.model import StateChanged
from trainwarden.record.observers.left import IN_TURN, WhatIsLeft

MANY = 3 * IN_TURN


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(s)) for s in shapes]


def steps(count: int, *optimizers: optim.Optimizer) -> None:
    for _ in range(count):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn(p.shape)
            optimizer.step()


def follow(*optimizers: optim.Optimizer) -> StandIn:
    stand_in = StandIn(WhatIsLeft)
    stand_in.follow(*optimizers)
    return stand_in


def changes(stand_in: StandIn) -> list[StateChanged]:
    return [n for n in stand_in.notes if isinstance(n, StateChanged)]


def test_state_edited_between_updates_is_told_as_what_became_of_it() -> None:
    (p,) = ps = parameters((16,))
    optimizer = optim.AdamW(ps)
    stand_in = follow(optimizer)
    steps(3, optimizer)
    assert stand_in.notes == []
    optimizer.state[p]["exp_avg_sq"].mul_(2)
    optimizer.state[p]["exp_avg"].zero_()
    optimizer.state[p]["step"].fill_(1.0)
    steps(1, optimizer)
    with torch.no_grad():
        p.add_(1)
    steps(1, optimizer)
    optimizer.state.clear()
    steps(1, optimizer)
    first, second, third = changes(stand_in)
    assert (first.step, first.state, first.emptied) == (3, ("p0/exp_avg_sq",), ("p0/exp_avg",))
    assert (first.lowered, first.weights) == (("p0/step",), ())
    assert (second.weights, second.state) == (("p0",), ())
    assert set(third.emptied) == {"p0/exp_avg", "p0/exp_avg_sq", "p0/step"}


def test_moments_of_any_one_tensor_scaled_once_are_told_whichever_tensors_turn_it_is() -> None:
    ps = parameters(*[(8, 8)] * MANY)
    optimizer = optim.AdamW(ps)
    stand_in = follow(optimizer)
    steps(2, optimizer)
    for p in ps:
        optimizer.state[p]["exp_avg_sq"].data.mul_(4)
        steps(1, optimizer)
    assert [n.state for n in changes(stand_in)] == [(f"p{i}/exp_avg_sq",) for i in range(MANY)]


def test_one_row_of_a_small_weight_is_told_wherever_the_look_begins() -> None:
    (p,) = ps = parameters((2, 4))
    optimizer = optim.SGD(ps, lr=0.1)
    stand_in = follow(optimizer)
    steps(1, optimizer)
    for _ in range(20):
        with torch.no_grad():
            p[0].mul_(1.001)
        steps(1, optimizer)
    assert [n.weights for n in changes(stand_in)] == [("p0",)] * 20


def test_state_put_in_place_of_the_old_is_told_though_the_old_still_lies_in_memory() -> None:
    (p,) = ps = parameters((64,))
    optimizer = optim.AdamW(ps)
    stand_in = follow(optimizer)
    steps(2, optimizer)
    kept = optimizer.state[p]["exp_avg"]
    optimizer.state[p]["exp_avg"] = kept * 2
    steps(1, optimizer)
    assert [n.state for n in changes(stand_in)] == [("p0/exp_avg",)]


def test_equal_state_loaded_anew_and_steps_of_honest_optimizers_are_not_told() -> None:
    ps = parameters((8, 8), (3,), (0,), (2, 2))
    ps.append(torch.nn.Parameter(torch.randn(6, 4).T))
    half = torch.nn.Parameter(torch.randn(40, dtype=torch.bfloat16))
    optimizers = optim.AdamW([*ps, half], fused=True), optim.SGD(parameters((5,)), momentum=0.9), optim.Adagrad(ps)
    stand_in = follow(*optimizers)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        optimizer.step()
    assert stand_in.notes == []


def test_a_tensor_of_two_optimizers_is_not_told_as_changed() -> None:
    ps = parameters((16,))
    one, other = optim.SGD(ps, lr=0.1), optim.AdamW(ps)
    stand_in = follow(one, other)
    steps(4, one, other)
    assert stand_in.notes == []


def test_looking_changes_neither_values_nor_generators_and_keeps_no_optimizer_alive() -> None:
    (p,) = ps = parameters((8, 8))
    optimizer = optim.Adam(ps)
    stand_in = follow(optimizer)
    steps(1, optimizer)
    before = [p.detach().clone(), *(v.clone() for v in optimizer.state[p].values())]
    generator = torch.random.get_rng_state()
    stand_in.observer.after_update(optimizer, 0, False)
    stand_in.observer.before_update(optimizer, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, [p, *optimizer.state[p].values()], strict=True))
    assert torch.equal(generator, torch.random.get_rng_state())
    import weakref

    moment = weakref.ref(optimizer.state[p]["exp_avg"])
    optimizer.state.clear()
    assert moment() is None
