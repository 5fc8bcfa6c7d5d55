"""The curve watcher finds what shows in a curve, keeps quiet on honest runs, and its files are anybody's to write."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.sabotage import curves
from benchmarks.sabotage.traces import Run, Step, Struck, Trace, Truth, Verdict, read, read_truths, read_verdicts, write

STEPS, STRUCK = 120, 60


def honest(seed: int, change: Callable[[int, float], float] = lambda step, loss: loss, name: str = "") -> Trace:
    """Two ranks whose loss falls with noise; `change` is what an attack does to it."""
    random = np.random.default_rng(seed)
    steps = []
    for step in range(STEPS):
        level = 2 + 5 * math.exp(-step / 30)
        for rank in (0, 1):
            loss = change(step, level * (1 + 0.02 * random.standard_normal()))
            norm = (1 + 0.1 * random.standard_normal()) * (loss / level)
            steps.append(Step(step=step, rank=rank, loss=loss, grad_norm=norm, lr=1e-3, wall_ns=step * 10**6))
    run = Run(run=name or f"honest-{seed}", workload="toy", seed=seed, world=2, steps=STEPS)
    return Trace(run=run, steps=tuple(steps))


@pytest.fixture(scope="module")
def tuned() -> curves.Tuned:
    return curves.tune([curves.series(honest(seed).steps, STEPS) for seed in range(12)])


def test_no_honest_run_that_was_tuned_on_is_flagged(tuned: curves.Tuned) -> None:
    assert [v for seed in range(12) if (v := curves.judge(honest(seed), tuned)).flagged] == []


def test_new_honest_runs_are_rarely_flagged(tuned: curves.Tuned) -> None:
    flagged = [v for seed in range(200, 240) if (v := curves.judge(honest(seed), tuned)).flagged]
    assert len(flagged) <= 6, flagged  # expected is one in 13


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("spike", lambda step, loss: loss * (1.5 if step == STRUCK else 1)),
        ("small lasting shift", lambda step, loss: loss * (1.03 if step >= STRUCK else 1)),
        ("ramp", lambda step, loss: loss * (1 + 0.01 * max(0, step - STRUCK))),
    ],
)
def test_a_curve_that_leaves_the_noise_of_honest_runs_is_flagged_once_it_does(
    tuned: curves.Tuned, name: str, change: Callable[[int, float], float]
) -> None:
    verdict = curves.judge(honest(100, change), tuned)
    assert verdict.flagged, name
    assert STRUCK <= verdict.step <= STRUCK + 30, verdict


def test_a_sabotage_inside_the_noise_is_not_flagged(tuned: curves.Tuned) -> None:
    flipped = honest(100, lambda step, loss: loss * (1.001 if step >= STRUCK else 1))
    assert curves.judge(flipped, tuned) == Verdict(run="honest-100", flagged=False)


def test_a_loss_that_is_no_number_is_flagged_whatever_the_thresholds(tuned: curves.Tuned) -> None:
    trace = honest(100)
    replace = msgspec.structs.replace
    broken = tuple(replace(s, loss=None if s.step == 70 else s.loss, grad_norm=None) for s in trace.steps)
    verdict = curves.judge(Trace(run=trace.run, steps=broken), tuned)
    assert (verdict.flagged, verdict.step) == (True, 70)


def test_a_step_that_was_made_twice_counts_as_it_was_made_last(tuned: curves.Tuned) -> None:
    trace = honest(3)
    before = tuple(s for s in trace.steps if s.step <= 40)
    after = tuple(s for s in trace.steps if s.step > 30)
    again = Trace(run=trace.run, steps=before + after)
    assert not curves.judge(again, tuned).flagged
    np.testing.assert_array_equal(curves.series(again.steps, STEPS)["loss"], curves.series(trace.steps, STEPS)["loss"])


def test_too_few_honest_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least four"):
        curves.tune([curves.series(honest(seed).steps, STEPS) for seed in range(3)])


def test_the_detector_reads_a_folder_of_runs_and_writes_verdicts_without_the_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(12):
        write(tmp_path / "tuning", honest(seed).run, honest(seed).steps)
    attacked = honest(100, lambda step, loss: loss * (1.5 if step >= STRUCK else 1), "attacked")
    truth = Truth(
        kind="attack", technique="26", variant="off", struck=(Struck(step=STRUCK, rank=0),), first_step=STRUCK
    )
    write(tmp_path / "cases", attacked.run, attacked.steps, truth)
    write(tmp_path / "cases", honest(3, name="quiet").run, honest(3).steps)
    assert read(tmp_path / "cases")[0] == attacked
    assert read_truths(tmp_path / "cases") == {"attacked": truth}
    (tmp_path / "cases" / "attacked" / "truth.json").unlink()
    assert curves.main([str(tmp_path)]) == 0
    verdicts = read_verdicts(tmp_path / "curves.jsonl")
    assert {name: (v.flagged, v.step) for name, v in verdicts.items()} == {
        "attacked": (True, STRUCK),
        "quiet": (False, -1),
    }
    assert "1 of 2 runs flagged" in capsys.readouterr().out
