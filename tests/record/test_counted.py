"""Optimizers count their own updates: those that nobody recorded are known when the rank leaves."""

from __future__ import annotations

import torch

from trainwarden.record.counted import Counted, count_of


def model(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return kind([parameter], lr=0.1)  # type: ignore[call-arg]


def test_updates_after_the_last_record_are_counted_and_recorded_ones_are_not() -> None:
    counted, recorded, hidden = Counted(), model(torch.optim.AdamW), model(torch.optim.Adam)
    for optimizer in (recorded, hidden):
        for _ in range(3):
            optimizer.step()
            counted.recorded(optimizer)
    assert counted.unrecorded() == 0
    for _ in range(4):
        hidden.step()
    assert counted.unrecorded() == 4
    del hidden, optimizer
    assert counted.unrecorded() == 0, "an optimizer that is gone has nothing to say"


def test_a_state_that_was_set_back_or_cleared_counts_for_nothing() -> None:
    counted, optimizer = Counted(), model(torch.optim.AdamW)
    optimizer.step()
    kept = optimizer.state_dict()
    optimizer.step()
    counted.recorded(optimizer)
    optimizer.load_state_dict(kept)
    assert counted.unrecorded() == 0
    optimizer.state.clear()
    assert counted.unrecorded() == 0


def test_an_optimizer_that_does_not_count_is_not_counted() -> None:
    counted, optimizer = Counted(), model(torch.optim.SGD)
    optimizer.step()
    counted.recorded(optimizer)
    optimizer.step()
    assert (count_of(optimizer), counted.unrecorded()) == (-1, 0)
