"""The ranking workload's figures: means over the seeds with what lies around them, and the baselines beside them."""

from __future__ import annotations

from typing import Any

from benchmarks import ranking


def scored(auc: float) -> dict[str, float]:
    return {"auc": auc, "auc_within": 0.7, "logloss": 0.5}


def runs() -> list[dict[str, Any]]:
    return [{"step": 9, "seed": n, "test": scored(auc), "cpu_s": 10.0 + n} for n, auc in enumerate((0.79, 0.83, 0.81))]


BASELINES = {"fields": {"test": scored(0.75)}, "fields_and_history": {"test": scored(0.8)}}


def test_figures_are_means_of_the_test_part_and_say_the_spread() -> None:
    told = ranking.summary(runs(), BASELINES)
    assert (told["auc"], told["auc_lowest"], told["auc_highest"]) == (0.81, 0.79, 0.83)
    assert (told["seeds"], told["cpu_s"]) == (3, 11.0)
    assert (told["fields_auc"], told["fields_and_history_auc"]) == (0.75, 0.8)


def test_the_readme_shows_ranker_and_baselines_or_that_nothing_was_measured() -> None:
    result = {"summary": ranking.summary(runs(), BASELINES), "machine": {"cores": 2}, "commit": "abc", "date": "today"}
    shown = ranking.block(result)
    assert "| the ranker, mean of 3 seeds (lowest to highest) | 0.8100 (0.7900 to 0.8300) |" in shown
    assert f"| {ranking.BASELINES['fields']} | 0.7500 | 0.7000 | 0.5000 |" in shown
    assert "on cores 2; commit `abc`, today." in shown
    assert ranking.block(None) == "Not measured yet."
