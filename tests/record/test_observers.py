"""What observers tell of real optimizers, tried with a stand-in for the recorder."""

from __future__ import annotations

import torch
from stand_in import StandIn
from torch import optim

from trainwarden.model import ModelSeen, ScheduleSeen
from trainwarden.record.observers.slices import UpdateSlices
from trainwarden.record.observers.trained import WhatIsTrained


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(s)) for s in shapes]


def steps(count: int, *optimizers: optim.Optimizer) -> None:
    for _ in range(count):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn(p.shape)
            optimizer.step()


def follow(*optimizers: optim.Optimizer, make: type = UpdateSlices) -> StandIn:
    stand_in = StandIn(make)
    stand_in.follow(*optimizers)
    return stand_in


def test_every_tensor_comes_up_and_the_order_follows_the_key() -> None:
    ps = parameters(*[(40,)] * 30)
    optimizer = optim.AdamW(ps)
    stand_in = follow(optimizer)
    steps(8, optimizer)
    turns = [{n for b in m.batches for n in b.names} for m in stand_in.updates]
    assert len(set.union(*turns[:4])) == len(set.union(*turns[4:])) == 30
    assert turns[:4] != turns[4:]
    other = StandIn(UpdateSlices, key=bytes(32))
    other.follow(optimizer)
    steps(1, optimizer)
    assert {n for b in other.updates[0].batches for n in b.names} != turns[0]


def test_looking_changes_neither_values_nor_generators() -> None:
    ps = parameters((8, 8), (3,))
    optimizer = optim.Adam(ps)
    for p in ps:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in ps]
    generator = torch.random.get_rng_state()
    stand_in = follow(optimizer)
    stand_in.observer.before_update(optimizer, 0)
    stand_in.observer.after_update(optimizer, 0, False)
    assert all(torch.equal(a, b) for a, b in zip(before, ps, strict=True))
    assert torch.equal(generator, torch.random.get_rng_state())
    assert not optimizer.state


def test_tensors_that_do_not_lie_in_order_are_read_as_they_count() -> None:
    p = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
    optimizer = optim.SGD([p], lr=0.0)
    stand_in = follow(optimizer)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    (batch,) = stand_in.updates[0].batches
    assert (
        torch.frombuffer(bytearray(batch.values["weight"].data), dtype=torch.float32).tolist() == p.flatten().tolist()
    )


def test_an_optimizer_that_calls_its_closure_often_is_told_as_unseen() -> None:
    (p,) = ps = parameters((4,))
    optimizer = optim.LBFGS(ps)
    stand_in = follow(optimizer)

    def closure() -> torch.Tensor:
        loss = p.square().sum()
        p.grad = 2 * p.detach()
        return loss.detach()

    optimizer.step(closure)
    assert stand_in.updates[0].unseen
    assert stand_in.updates[0].batches == ()


def test_a_fused_optimizers_gradients_are_told_with_their_scale() -> None:
    ps = parameters((8,))
    optimizer = optim.AdamW(ps, fused=True)
    stand_in = follow(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(ps[0].square().sum()).backward()
    scaler.step(optimizer)
    assert stand_in.updates[0].scale == 64.0


def trained(stand_in: StandIn) -> list[ModelSeen]:
    return [n for n in stand_in.notes if isinstance(n, ModelSeen)]


def test_what_is_trained_is_told_at_first_and_when_it_changes() -> None:
    import weakref

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    model[2].requires_grad_(False)
    optimizer = optim.SGD(model[0].parameters(), lr=0.1)
    stand_in = follow(optimizer, make=WhatIsTrained)
    stand_in.names |= {id(p): n for n, p in model.named_parameters()}
    stand_in.roots.append(weakref.ref(model))
    for _ in range(3):
        steps(1, optimizer)
        stand_in.observer.boundary()
    (seen,) = trained(stand_in)
    assert (seen.parameters, seen.elements, seen.frozen) == (2, 9, 2)
    assert (seen.idle, seen.idle_count) == (("1.weight", "1.bias"), 2)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    steps(1, optimizer)
    stand_in.observer.boundary()
    assert [s.idle_count for s in trained(stand_in)] == [2, 0]


def test_a_scheduler_is_told_once_with_its_numbers() -> None:
    optimizer = optim.SGD(parameters((3,)), lr=0.1)
    schedule = optim.lr_scheduler.MultiStepLR(optimizer, [3, 5], gamma=0.5)
    stand_in = follow(optimizer, make=WhatIsTrained)
    for _ in range(70):
        steps(1, optimizer)
        stand_in.observer.boundary()
        schedule.step()
    (told,) = (n for n in stand_in.notes if isinstance(n, ScheduleSeen))
    assert told.kind == "torch.optim.lr_scheduler.MultiStepLR"
    assert (told.state["milestones"], told.state["gamma"], told.state["last_epoch"]) == ({3: 1, 5: 1}, 0.5, 0)


def test_a_class_that_calls_the_one_below_it_is_judged_by_what_it_leaves() -> None:
    class Clamped(optim.SGD):
        def step(self, closure: object = None) -> None:
            super().step(closure)
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.clamp_(-0.1, 0.1)

    optimizer = Clamped(parameters((8,)), lr=0.1)
    stand_in = follow(optimizer)
    steps(3, optimizer)
    assert stand_in.notes == []
    left = [
        torch.frombuffer(bytearray(m.batches[0].values["left"].data), dtype=torch.float32) for m in stand_in.updates
    ]
    assert len(left) == 6
    assert torch.equal(left[-1], optimizer.param_groups[0]["params"][0])


def test_an_update_that_raised_leaves_nothing_behind() -> None:
    optimizer = optim.SGD(parameters((8,)), lr=0.1)
    stand_in = follow(optimizer)
    steps(2, optimizer)
    stand_in.observer.before_update(optimizer, 0)
    stand_in.step += 1
    steps(2, optimizer)
    assert len(stand_in.updates) == 4
    assert stand_in.notes == []
