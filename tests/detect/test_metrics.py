"""Reported losses against recorded ones: what must fire, and the many honest ways to report a loss."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from records import Fed, feed

from trainwarden.detect.metrics import Metrics
from trainwarden.model import Reported, Severity, StepRecord, TrackerSeen

STEPS = 80


def losses(seed: int, steps: int = STEPS) -> list[float]:
    draw = random.Random(seed)
    return [3.0 - 0.01 * i + draw.gauss(0, 0.2) for i in range(steps)]


def run_of(report: Callable[[int], float | None], world: int = 2, before: bool = False) -> list[Fed]:
    """Records of all ranks, and rank 0's report after each step (or before its record, while it is being made)."""
    ranks = [losses(r) for r in range(world)]
    fed: list[Fed] = []
    for i in range(STEPS):
        value = report(i)
        told = [] if value is None else [reported(i + (0 if before else 1), value)]
        fed += told if before else []
        fed += [
            StepRecord(attempt=0, rank=r, world=world, step=i, optimizer=0, seq=i, stages={}, loss=ranks[r][i])
            for r in range(world)
        ]
        fed += [] if before else told
    return fed


def reported(step: int, value: float, name: str = "train/loss") -> Reported:
    return Reported(attempt=0, rank=0, step=step, tracker="trackio", name=name, value=value)


OWN, OTHER = losses(0), losses(1)
BOTH = [(a + b) / 2 for a, b in zip(OWN, OTHER, strict=True)]


def ema(values: list[float], beta: float) -> list[float]:
    out: list[float] = []
    for v in values:
        out.append(v if not out else beta * out[-1] + (1 - beta) * v)
    return out


HONEST: dict[str, Callable[[int], float | None]] = {
    "own loss": lambda i: OWN[i],
    "rounded": lambda i: round(OWN[i], 4),
    "mean of the ranks": lambda i: BOTH[i],
    "every tenth step": lambda i: OWN[i] if i % 10 == 9 else None,
    "mean of ten": lambda i: sum(OWN[i - 9 : i + 1]) / 10 if i % 10 == 9 else None,
    "mean of the ranks over ten": lambda i: sum(BOTH[i - 9 : i + 1]) / 10 if i % 10 == 9 else None,
    "running mean of 20": lambda i: sum(OWN[i - 19 : i + 1]) / 20 if i >= 19 else None,
    "mean of the last four as they come": lambda i: sum(OWN[max(0, i - 3) : i + 1]) / min(4, i + 1),
    "mean of all so far": lambda i: sum(OWN[: i + 1]) / (i + 1),
    "exponential average": lambda i: ema(OWN, 0.9)[i],
    "the step before": lambda i: OWN[i - 1] if i else None,
    "under a gradient scaler that grows": lambda i: OWN[i] / 2 ** (16 + i // 40),
    "loss divided by micro-batches": lambda i: OWN[i] * 4,
}


@pytest.mark.parametrize("way", HONEST)
def test_honest_ways_to_report_a_loss_are_silent(way: str) -> None:
    assert feed(Metrics(), run_of(HONEST[way]), finish=True) == []


def test_a_loss_reported_before_the_optimizer_steps_is_silent() -> None:
    assert feed(Metrics(), run_of(lambda i: OWN[i], before=True), finish=True) == []


@pytest.mark.parametrize("way", ["own loss", "mean of the ranks", "mean of ten", "exponential average"])
def test_a_loss_that_is_made_to_look_better_from_some_step_on_is_told(way: str) -> None:
    def falsified(i: int) -> float | None:
        value = HONEST[way](i)
        return value if value is None or i < 40 else value * 0.97

    (found,) = feed(Metrics(), run_of(falsified), finish=True)
    assert (found.severity, found.ranks) == (Severity.MEDIUM, (0,))
    assert found.step > 40
    assert "train/loss" in found.seen


def test_one_odd_report_is_silent() -> None:
    assert feed(Metrics(), run_of(lambda i: OWN[i] * (0.5 if i == 50 else 1)), finish=True) == []


def test_a_fixed_share_of_the_loss_from_the_start_is_told_as_low() -> None:
    (found,) = feed(Metrics(), run_of(lambda i: OWN[i] * 0.9), finish=True)
    assert found.severity is Severity.LOW


def test_what_is_something_else_is_said_once_not_to_be_checked() -> None:
    draw = random.Random(9)
    (found,) = feed(Metrics(), run_of(lambda i: OWN[i] - draw.random()), finish=True)
    assert found.severity is Severity.INFO
    seen = TrackerSeen(attempt=0, rank=0, tracker="wandb", unchecked="accuracy")
    assert [f.severity for f in feed(Metrics(), [seen, seen])] == [Severity.INFO]


def test_reports_and_ranks_without_end_do_not_fill_the_memory() -> None:
    detector = Metrics()
    feed(detector, [*run_of(lambda i: None), *(reported(80, 1.0, f"loss/{i}") for i in range(2_000))])
    assert len(detector._streams) <= 256
