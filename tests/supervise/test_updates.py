"""The desk that judges updates: what it holds to a rule, what it says it does not, and how much it compared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from test_rules import Lion, updates
from torch import optim

from trainwarden import wire
from trainwarden.model import Entry, Gap, UpdateSeen
from trainwarden.supervise import updates as module
from trainwarden.supervise.updates import UpdateDesk


class Kept:
    """Stands for the ledger."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def submit(self, entry: Entry) -> bool:
        self.entries.append(entry)
        return True

    def seen(self) -> list[UpdateSeen]:
        return [e for e in self.entries if isinstance(e, UpdateSeen)]


class OtherAdamW(optim.AdamW):
    """Below a class with a rule, and holding it."""


class Backwards(optim.AdamW):
    """Below a class with a rule, and not holding it."""

    def step(self, closure: Any = None) -> None:
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step(closure)
        with torch.no_grad():
            for old, p in zip(before, self.param_groups[0]["params"], strict=True):
                p.copy_(2 * old - p)


def desk_on(messages: list[wire.Updated], left: bool = True) -> Kept:
    kept = Kept()
    desk = UpdateDesk(kept)  # type: ignore[arg-type]
    for message in messages:
        desk.seen(0, 1, message.step, message)
    if left:
        desk.left(0, 1)
    desk.close()
    return kept


def test_an_honest_optimizer_is_told_at_first_and_summed_up_once() -> None:
    first, last = desk_on(updates(lambda ps: optim.AdamW(ps))).seen()
    assert (first.rule, first.updates, first.misfits, first.last) == ("AdamW", 1, (), False)
    assert (last.updates, last.tensors, last.differing, last.last, last.rank) == (7, 5, 0, True, 1)
    assert last.elements > 500


def test_a_rank_that_does_not_say_goodbye_is_summed_up_at_the_end() -> None:
    assert [e.last for e in desk_on(updates(lambda ps: optim.AdamW(ps)), left=False).seen()] == [False, True]


def test_a_difference_is_told_once_for_each_tensor_and_counted() -> None:
    def faster(i: int, optimizer: optim.Optimizer) -> None:
        if i == 3:

            def swap(o: optim.Optimizer, args: Any, kwargs: Any) -> None:
                o.param_groups[0]["lr"] = 0.1

            def back(o: optim.Optimizer, args: Any, kwargs: Any) -> None:
                o.param_groups[0]["lr"] = 0.01

            optimizer.register_step_pre_hook(swap)
            optimizer.register_step_post_hook(back)

    told = desk_on(updates(lambda ps: optim.SGD(ps, lr=0.01), before_step=faster)).seen()
    assert [len(e.misfits) for e in told] == [0, 5, 0]
    assert {m.fits for m in told[1].misfits} == {"it moved 10 times as far"}
    assert told[-1].differing == 4


@pytest.mark.parametrize(
    ("make", "kind", "rule"),
    [(OtherAdamW, "OtherAdamW", "AdamW"), (Lion, "Lion", "Lion")],
)
def test_a_class_that_is_not_torchs_is_held_to_a_rule_once_it_has_held_it(
    make: Callable[..., optim.Optimizer], kind: str, rule: str
) -> None:
    first, last = desk_on(updates(lambda ps: make(ps))).seen()
    assert first.kind.endswith(f".{kind}")
    assert (first.rule, first.updates, last.updates, last.differing) == (rule, module.TRIAL, 7, 0)


def test_a_class_that_does_not_hold_the_rule_is_said_to_be_unchecked() -> None:
    first, last = desk_on(updates(lambda ps: Backwards(ps))).seen()
    assert (first.rule, first.differing) == ("", 0)
    assert first.unchecked.startswith("its updates do not hold the rule of AdamW: weights of p")
    assert last.last


def test_an_optimizer_without_a_rule_is_said_once_with_its_name() -> None:
    first, _ = desk_on(updates(lambda ps: optim.RMSprop(ps))).seen()
    assert first.unchecked == "no rule is known for torch.optim.rmsprop.RMSprop"


def test_a_tampered_class_of_torchs_own_name_is_held_to_its_rule_at_once() -> None:
    (message, *_) = updates(lambda ps: optim.SGD(ps, lr=0.01), steps=1)
    lying = msgspec.structs.replace(message, settings=({**message.settings[0], "lr": -0.01},))
    (told, _) = desk_on([lying]).seen()
    assert {m.fits for m in told.misfits} == {"it moved the opposite way"}


def test_slices_that_do_not_hold_together_are_a_gap_and_the_desk_goes_on() -> None:
    good = updates(lambda ps: optim.AdamW(ps), steps=1)
    bad = [
        msgspec.structs.replace(good[0], settings=()),
        msgspec.structs.replace(good[0], settings=({"lr": {}, "betas": None},)),
        msgspec.structs.replace(good[0], settings=({**good[0].settings[0], "betas": [2, "x"]},)),
        msgspec.structs.replace(good[0], scale=0.0),
        msgspec.structs.replace(
            good[0], batches=(wire.Batch(0, ("p",), (0,), (1,), {"weight": wire.Cut("int8", b"1")}, {}),)
        ),
    ]
    kept = desk_on([*bad, *good])
    assert len([e for e in kept.entries if isinstance(e, Gap)]) >= 2
    assert kept.seen()[-1].updates >= 1


def test_updates_that_come_faster_than_they_are_judged_are_counted_as_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = updates(lambda ps: optim.AdamW(ps))
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    held = threading.Event()
    kept = Kept()
    desk = UpdateDesk(kept)  # type: ignore[arg-type]
    judge = desk._judge
    desk._judge = lambda *a: (held.wait(30), judge(*a))[1]  # type: ignore[method-assign,func-returns-value]
    for message in messages:
        desk.seen(0, 0, message.step, message)
    held.set()
    desk.close()
    last = kept.seen()[-1]
    assert last.updates + last.missed == 7
    assert last.missed >= 4
