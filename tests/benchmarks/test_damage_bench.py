"""The simulated cluster: its truth is what its records hold, and the account finds a known loss in honest noise."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from benchmarks import damage
from benchmarks.cluster import Plot, simulate
from trainwarden.config import DamageConfig
from trainwarden.redteam import catalogue
from trainwarden.respond.account.account import account
from trainwarden.respond.account.claims import Stand
from trainwarden.respond.account.lines import HOUR, Line

SMALL = Plot(
    jobs=(512, 256, 64, 64), days_before=5, days=12, step_seconds=12.7, failures=60, drift=2e-4, own_drift=1e-4
)


def test_a_known_loss_is_recovered_with_natural_failures_present() -> None:
    plot = replace(
        SMALL, stragglers=0, hidden_kills=0
    )  # the benchmark has these, too, and two months to see through them
    cluster = simulate(plot, 1)
    assert cluster.truth.kills > 5
    assert cluster.truth.failures > 5
    found = account(cluster.jobs, DamageConfig(), honest=cluster.small, since=plot.since)
    truth = cluster.truth.lost / HOUR
    assert found.lost.low <= truth <= found.lost.high
    assert found.lost.mid == pytest.approx(truth, rel=0.05)
    assert found.natural.mid > 0


def test_what_is_hidden_keeps_the_loss_within_the_range() -> None:
    cluster = simulate(SMALL, 2)
    found = account(cluster.jobs, DamageConfig(), honest=cluster.small, since=SMALL.since)
    assert 0 < found.lost.low <= cluster.truth.lost / HOUR <= found.lost.high


def test_honest_weeks_are_not_accused() -> None:
    plot = replace(SMALL, sabotage=False)
    cluster = simulate(plot, 1)
    assert cluster.truth.lost == 0
    found = account(cluster.jobs, DamageConfig(), honest=cluster.small, since=plot.since)
    assert found.lost.low == 0
    assert found.lost.mid <= 0.001 * found.held
    assert found.lost.high > 0


def test_sabotage_is_the_catalogues() -> None:
    known = {t.id: t for t in catalogue.load()}
    sleeping = known["28"].variants[0].does
    assert f"{SMALL.sleep_seconds} s in one update of four" in sleeping
    assert SMALL.sleep_share == 0.25
    assert "SIGKILL" in known["34"].variants[0].does


def test_one_seed_one_cluster() -> None:
    plot = Plot(jobs=(256,), days_before=0.5, days=1)
    a, b, c = simulate(plot, 3), simulate(plot, 3), simulate(plot, 4)
    assert (a.truth, a.rank_steps) == (b.truth, b.rank_steps)
    assert a.rank_steps != c.rank_steps


def test_the_summary_has_the_worst_seed() -> None:
    row = {
        "sabotage": True,
        "error_pct": 2.0,
        "within": True,
        "ranks": 8192,
        "rank_steps": 10,
        "found_gpu_hours": [1, 2, 3],
    }
    honest = {"sabotage": False, "within": True, "ranks": 8192, "rank_steps": 5, "found_gpu_hours": [0, 1, 9]}
    rows = [
        row | {"held_gpu_hours": 100},
        row | {"error_pct": 3.5, "held_gpu_hours": 100},
        honest | {"held_gpu_hours": 1000},
    ]
    told = damage.summed(rows)
    assert (told["damage_error_pct"], told["ranks_simulated"], told["honest_loss_pct"]) == (3.5, 8192, 0.1)
    assert (told["damage_seeds"], told["damage_runs"], told["rank_steps_simulated"]) == (2, 3, 25)


def test_statements_are_tested_on_every_simulated_incident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "Plot", lambda sabotage: Plot(jobs=(256, 64), days_before=2, days=2, sabotage=sabotage))
    row, found = damage.measure(0, sabotage=True)
    assert row["claims"]["thousands-of-gpus"] == Stand.REFUTED
    assert row["lines"][Line.SLOWDOWN.value]["injected"] > 0
    assert msgspec.json.encode(found)
