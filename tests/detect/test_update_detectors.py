"""What can be told of updates from the log alone: every case that must fire, and its benign twin."""

from __future__ import annotations

import math
from typing import Any

import pytest
from records import feed
from updates import Updates, changing_settings, standing_still, update

from trainwarden.detect import Facts
from trainwarden.detect.cleared import Cleared
from trainwarden.detect.continuity import Continuity
from trainwarden.detect.engine import Engine
from trainwarden.detect.frozen import Frozen
from trainwarden.detect.schedule import ScheduleDetector
from trainwarden.detect.schedules import declared
from trainwarden.detect.skipped import Skipped
from trainwarden.detect.update_rule import UpdateRule
from trainwarden.model import Finding, Misfit, ModelSeen, ScheduleSeen, Severity, StateChanged, UpdateSeen

ADAMW = "torch.optim.adamw.AdamW"


def seen(**fields: Any) -> UpdateSeen:
    return UpdateSeen(**{"attempt": 0, "rank": 0, "step": 3, "optimizer": 0, "kind": ADAMW, "rule": "AdamW", **fields})


# -- update-rule


def test_a_misfit_is_told_with_tensor_values_and_explanation() -> None:
    misfit = Misfit(tensor="h.w", part="weights", wrong=32, looked=32, element=5, expected=0.5, seen=0.25, fits="so")
    (found,) = feed(UpdateRule(), [seen(misfits=(misfit,))])
    assert (found.severity, found.tensor, found.step) == (Severity.HIGH, "h.w", 3)
    assert "(so): 0.25 in place of 0.5, element 5, 32 of 32" in found.seen


def test_many_tensors_of_one_cause_are_one_finding() -> None:
    misfits = tuple(Misfit(tensor=t, part="weights", fits="it did not move") for t in "abc")
    (found,) = feed(UpdateRule(), [seen(misfits=misfits)])
    assert "'a' and of 2 others" in found.seen


def test_clipping_in_a_hook_is_less_than_a_reversed_gradient() -> None:
    for value, severity in ((0.5, Severity.MEDIUM), (-1.0, Severity.HIGH)):
        misfit = Misfit(tensor="w", part="gradient", expected=1.0, seen=value)
        assert [f.severity for f in feed(UpdateRule(), [seen(misfits=(misfit,))])] == [severity]


def test_updates_that_fit_are_silent_and_what_is_not_compared_is_a_note_once() -> None:
    unknown = seen(kind="x.Y", rule="", unchecked="no rule is known for x.Y")
    found = feed(UpdateRule(), [seen(), unknown, unknown, seen(last=True, updates=9)])
    assert [(f.severity, "x.Y" in f.seen) for f in found] == [(Severity.INFO, True)]


# -- continuity and cleared


def test_state_that_changed_between_updates_is_told_by_what_became_of_it() -> None:
    note = StateChanged(attempt=0, rank=1, step=4, weights=("w",), state=("w/exp_avg",), emptied=("w/x", "v/x"))
    found = feed(Continuity(), [note])
    assert [(f.tensor, f.severity) for f in found] == [("w", Severity.MEDIUM), ("w/exp_avg", Severity.MEDIUM)]
    (cleared,) = feed(Cleared(), [note])
    assert "emptied before the update at step 4: w/x and 1 more" in cleared.seen


def test_state_that_is_gone_after_an_update_is_told() -> None:
    fed = [update(0), update(1), update(2, state={"a/step": "step2"})]
    (found,) = feed(Cleared(), fed)
    assert "a/exp_avg and 4 more" in found.seen


def test_a_scaler_that_goes_is_not_state_that_is_gone() -> None:
    base = {"a/step": "1"}
    fed = [update(i, state={**base, "a/step": str(i), **({"scaler0/scale": "s"} if i < 5 else {})}) for i in range(9)]
    assert feed(Cleared(), fed) == []


def test_a_counter_that_stands_still_or_begins_again_is_told() -> None:
    honest = [update(i) for i in range(6)]
    still = update(6, state={f"{n}/{k}": f"{k}5" for n in "abc" for k in ("step", "exp_avg")})
    (found,) = feed(Cleared(), [*honest, still])
    assert "stands still, though its tensor moved" in found.seen
    again = update(6, state={f"{n}/{k}": f"{k}0" for n in "abc" for k in ("step", "exp_avg")})
    (found,) = feed(Cleared(), [*honest, again])
    assert "is again what it was after the first update" in found.seen


def test_a_tensor_without_a_gradient_keeps_its_counter() -> None:
    fed: Updates = []
    for i in range(12):
        a = i if i < 6 else 5  # an expert that is not used any more
        weights = {"a": f"w{a}", "b": f"w{i}"}
        fed.append(update(i, weights=weights, state={"a/step": f"s{a}", "b/step": f"s{i}"}))
    assert feed(Cleared(), fed) == []


def test_an_optimizer_made_anew_is_told_and_two_from_the_start_are_not() -> None:
    fed = [*(update(i) for i in range(5)), *(update(i, optimizer=1) for i in range(5, 8))]
    (found,) = feed(Cleared(), fed)
    assert found.severity is Severity.LOW
    assert "after 5 updates by optimizer 0" in found.seen
    pair = [update(i, optimizer=o, weights={f"{o}": f"{i}"}) for i in range(6) for o in (0, 1)]
    assert feed(Cleared(), pair) == []


# -- frozen


def frozen_from(start: int, gradient: str, length: int = 80) -> Updates:
    """Tensor a stands still from update `start` on."""
    fed: Updates = []
    for i in range(length):
        at = min(i, start)
        grad = {"absent": f"g{at}", "there": f"g{i}"}[gradient]
        fed.append(update(i, weights={"a": f"w{at}", "b": f"w{i}", "c": f"w{i}"},
                          gradients={"a": grad, "b": f"g{i}", "c": f"g{i}"}))  # fmt: skip
    return fed


def test_a_tensor_that_stands_still_while_others_move_is_told_once() -> None:
    (found,) = feed(Frozen(), frozen_from(20, "there"))
    assert found.tensor == "a"
    assert "moves no longer" in found.seen
    assert "though it gets gradients" in found.seen
    (found,) = feed(Frozen(), frozen_from(0, "absent"))
    assert "has not moved so far" in found.seen
    assert "its gradient is absent" in found.seen


def test_warm_up_at_zero_lora_and_tiny_changes_are_benign() -> None:
    names = "abcd"
    zero = [update(i, lr=0.0, weights=dict.fromkeys(names, "w")) for i in range(60)]
    assert feed(Frozen(), zero) == []
    lora = [update(i, weights={"A": f"w{max(i, 1)}", "B": f"w{i}"}) for i in range(60)]
    assert feed(Frozen(), lora) == []
    rounded = [update(i, weights={n: f"w{i if n == 'a' else 0}" for n in names}) for i in range(60)]
    assert feed(Frozen(), rounded) == []


def test_a_tensor_taken_from_the_optimizer_is_told() -> None:
    fed = [*(update(i) for i in range(17)), *(update(i, weights={"a": f"{i}", "b": f"{i}"}) for i in range(17, 30))]
    (found,) = feed(Frozen(), fed)
    assert (found.tensor, found.severity) == ("c", Severity.MEDIUM)


def test_idle_tensors_are_told_for_one_rank_and_changes_for_each() -> None:
    notes = [ModelSeen(attempt=0, rank=r, step=0, parameters=4, idle=("x",), idle_count=1) for r in (0, 1)]
    (found,) = feed(Frozen(), notes)
    assert (found.ranks, found.severity) == ((0,), Severity.LOW)
    fewer = ModelSeen(attempt=0, rank=1, step=64, parameters=3, idle=("x", "y"), idle_count=2)
    assert [f.severity for f in feed(Frozen(), [*notes, fewer])][1:] == [Severity.MEDIUM]
    same = ModelSeen(attempt=0, rank=1, step=64, parameters=4, idle=("x",), idle_count=1)
    assert len(feed(Frozen(), [*notes, same])) == 1
    assert feed(Frozen(), [ModelSeen(attempt=0, rank=0, parameters=4, frozen=7)]) == []


# -- skipped


def test_an_update_that_changed_nothing_is_told() -> None:
    (found,) = feed(Skipped(), standing_still())
    assert (found.step, found.severity) == (2, Severity.MEDIUM)


def test_refused_updates_zero_rates_and_zero_gradients_are_benign() -> None:
    still = dict.fromkeys("abc", "w")
    assert feed(Skipped(), [update(i, weights=still, skipped=True) for i in range(5)]) == []
    assert feed(Skipped(), [update(i, weights=still, lr=0.0) for i in range(5)]) == []
    assert feed(Skipped(), [update(i, weights=still, gradients=still) for i in range(5)]) == []


def test_a_step_with_twice_the_passes_is_told_and_short_or_longer_accumulation_is_not() -> None:
    def passes(*counts: int) -> list[Finding]:
        return feed(Skipped(), [update(i, passes=n) for i, n in enumerate(counts)])

    (found,) = passes(*[4] * 10, 8, 4, 4)
    assert (found.step, found.severity) == (10, Severity.LOW)
    assert passes(*[4] * 10, 2, 4, 4, 6, 4) == []
    assert passes(*[4] * 10, *[8] * 20) == []
    assert passes(1, 2, 1, 2, 1, 2, 1, 2) == []


def test_a_scaler_that_refuses_much_is_told_and_its_run_in_is_not() -> None:
    assert feed(Skipped(), [update(i, skipped=i < 60) for i in range(400)]) == []
    (found,) = feed(Skipped(), [update(i, skipped=i > 200 and i % 4 == 0) for i in range(400)])
    assert "refused 21 of the last 200 updates" in found.seen


# -- schedule


def rates(values: list[float], facts: Facts = Facts(), notes: tuple[ScheduleSeen, ...] = ()) -> list[Finding]:  # noqa: B008
    fed = [update(i, groups=({"lr": lr, "initial_lr": 0.1, "betas": [0.9, 0.999]},)) for i, lr in enumerate(values)]
    return feed(ScheduleDetector(facts), [*fed[:1], *notes, *fed[1:]], finish=True)


def cosine(total: int = 200, peak: float = 0.1, warmup: int = 20) -> list[float]:
    rate = declared(f"cosine peak={peak} warmup={warmup} total={total}")
    return [rate(i) for i in range(total)]


def times(values: list[float], factor: float, at: range) -> list[float]:
    return [v * factor if i in at else v for i, v in enumerate(values)]


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.1, 10.0])
def test_a_rate_that_jumps_and_comes_back_is_told(factor: float) -> None:
    (found,) = rates(times(cosine(), factor, range(90, 96)))
    assert found.severity is Severity.MEDIUM
    assert "from step 90 on for 6 updates" in found.seen
    assert f"was {factor:.2g} times" in found.seen


def test_honest_schedules_are_silent() -> None:
    restarts = [0.05 * (1 + math.cos(math.pi * (i % 50) / 50)) for i in range(300)]
    short = [0.05 * (1 + math.cos(math.pi * (i % 3) / 3)) for i in range(100)]
    triangle = [0.001 + 0.1 * abs((i % 40) - 20) / 20 for i in range(300)]
    steps = [0.1 * 0.1 ** (i // 60) for i in range(300)]
    plateau = [0.1 if i < 77 else 0.02 for i in range(300)]
    inverse = [0.1 / math.sqrt(max(i, 10)) for i in range(300)]
    for values in (cosine(), restarts, short, triangle, steps, plateau, inverse, [0.1] * 50):
        assert rates(values) == []


def test_a_declared_schedule_is_held_to_the_digit() -> None:
    facts = Facts(expect={"lr": "cosine peak=0.1 warmup=20 total=200"})
    assert rates(cosine(), facts) == []
    assert rates(cosine()[1:], facts) == []  # a script that steps its schedule first
    (found,) = rates(times(cosine(), 1.001, range(100, 200)), facts)
    assert (found.step, found.severity) == (100, Severity.HIGH)


def test_declared_settings_are_held() -> None:
    facts = Facts(expect={"betas": (0.9, 0.999), "weight_decay": 0.01})
    assert feed(ScheduleDetector(facts), [update(i) for i in range(4)]) == []
    found = feed(ScheduleDetector(facts), changing_settings())
    assert {(f.severity, "[0.9, 0.5]" in f.seen) for f in found} == {(Severity.HIGH, True)}


@pytest.mark.parametrize(
    "text", ["sine lr=1", "cosine peak=1", "constant lr=x", "step lr=1 every=0 gamma=1", "linear up=1"]
)
def test_a_declaration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"lr = |could not convert"):
        declared(text)


def test_torchs_scheduler_is_followed() -> None:
    note = ScheduleSeen(
        attempt=0,
        rank=0,
        kind="torch.optim.lr_scheduler.StepLR",
        state={"step_size": 10, "gamma": 0.5, "last_epoch": 0},
    )
    honest = [0.1 * 0.5 ** (i // 10) for i in range(60)]
    assert rates(honest, notes=(note,)) == []
    by_epochs = [0.1 * 0.5 ** (i // 7 // 10) for i in range(200)]
    assert rates(by_epochs, notes=(note,)) == []
    (found,) = rates([v * 1.1 if i >= 33 else v for i, v in enumerate(honest)], notes=(note,))
    assert (found.step, found.severity) == (33, Severity.MEDIUM)
    assert "where StepLR gives 0.0125" in found.seen


def test_a_scheduler_that_another_one_joins_is_not_followed() -> None:
    kinds = ("torch.optim.lr_scheduler.LinearLR", "torch.optim.lr_scheduler.StepLR")
    notes = tuple(ScheduleSeen(attempt=0, rank=0, kind=k, state={"step_size": 10, "gamma": 0.5}) for k in kinds)
    assert rates(cosine(), notes=notes) == []


def test_a_sudden_change_of_a_setting_is_told_and_cycles_and_counters_are_not() -> None:
    (found,) = feed(ScheduleDetector(Facts()), changing_settings())
    assert "changed betas of group 0 from [0.9, 0.999] to [0.9, 0.5] at step 10" in found.seen
    cycle = [update(i, groups=({"lr": 0.1, "betas": [0.9 - 0.05 * math.sin(i / 9), 0.99], "k": i},)) for i in range(60)]
    assert feed(ScheduleDetector(Facts()), cycle) == []


def test_ranks_that_part_are_told_and_stages_of_a_pipeline_are_not() -> None:
    fed = [update(i, rank=r, world=2, lr=0.1 if i < 5 or not r else 0.2) for i in range(8) for r in (0, 1)]
    found = [f for f in feed(ScheduleDetector(Facts()), fed) if len(f.ranks) == 2]
    assert [(f.step, f.ranks, f.severity) for f in found] == [(5, (0, 1), Severity.HIGH)]
    pipeline = [update(i, rank=r, world=2, lr=0.1 * (r + 1)) for i in range(8) for r in (0, 1)]
    assert feed(ScheduleDetector(Facts()), pipeline) == []


def test_the_command_lines_rate_is_a_note() -> None:
    def told(*argv: str) -> list[tuple[Severity, str]]:
        return [(f.severity, f.seen) for f in rates(cosine(), Facts(argv=argv))]

    assert told("train.py", "--lr", "0.1") == told("train.py", "--lr=0.1") == told("train.py", "--lr", "fast") == []
    assert [s for s, _ in told("train.py", "--lr=0.05")] == [Severity.INFO]
    assert [s for s, _ in told("train.py", "--learning-rate", "0.4")] == [Severity.INFO]


# -- hostile entries


def test_hostile_settings_and_states_are_taken_in() -> None:
    wild = ({"lr": "x", "betas": {"a": None}, "initial_lr": None}, {}, {"lr": [1], "weight_decay": float("inf")})
    fed: list[Any] = [
        ScheduleSeen(attempt=0, rank=0, kind="torch.optim.lr_scheduler.StepLR", state={"step_size": 0, "gamma": "x"}),
        ScheduleSeen(attempt=0, rank=1, kind="torch.optim.lr_scheduler.MultiStepLR", state={"milestones": [1]}),
        *(update(i, groups=wild, optimizer=1 << 40) for i in range(9)),
        StateChanged(attempt=0, rank=0, step=-5),
        ModelSeen(idle_count=1 << 60),
    ]
    engine = Engine([Cleared(), Frozen(), Skipped(), ScheduleDetector(Facts()), UpdateRule(), Continuity()])
    for index, item in enumerate(fed):
        entry, detail = item if isinstance(item, tuple) else (item, None)
        assert [f.seen for f in engine.observe(index, entry, detail) if "The detector failed" in f.seen] == []
