"""How well `trainwarden damage` recovers a loss that is known: the simulated cluster, several seeds, sabotaged and not.

python -m benchmarks.damage [--seeds 5]    writes its keys of results/incident.json (two minutes on a quiet core)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.cluster import Plot, simulate
from benchmarks.machine import merge
from trainwarden.config import DamageConfig
from trainwarden.respond.account.account import account
from trainwarden.respond.account.claims import EXAMPLE, hold, read_claims
from trainwarden.respond.account.lines import HOUR, Account, Line, Range

PART = "damage"
_INJECTED = {Line.INTERRUPTION: "interruption", Line.DISCARDED: "discarded", Line.SLOWDOWN: "slowdown"}


def measure(seed: int, *, sabotage: bool) -> tuple[dict[str, Any], Account]:
    """One simulated incident, or three honest months, and what the account makes of its records."""
    plot = Plot(sabotage=sabotage)
    cluster = simulate(plot, seed)
    begun = time.perf_counter()
    found = account(cluster.jobs, DamageConfig(), honest=cluster.small, since=plot.since)
    seconds = time.perf_counter() - begun
    truth = cluster.truth.lost / HOUR
    lines = {a.line: a.hours for a in found.amounts}
    row = {
        "seed": seed,
        "sabotage": sabotage,
        "ranks": sum(plot.jobs),
        "rank_steps": cluster.rank_steps,
        "kills": cluster.truth.kills,
        "natural_failures": cluster.truth.failures,
        "held_gpu_hours": round(found.held),
        "injected_gpu_hours": round(truth),
        "found_gpu_hours": _whole(found.lost),
        "within": found.lost.low <= truth <= found.lost.high,
        "lines": {
            line.value: {"injected": round(getattr(cluster.truth, name) / HOUR), "found": _whole(lines[line])}
            for line, name in _INJECTED.items()
        },
        "claims": {c.id: hold(c, found).stand.value for c in read_claims(EXAMPLE)},
        "account_s": round(seconds, 1),
    }
    return row | ({"error_pct": round(100 * abs(found.lost.mid - truth) / truth, 2)} if sabotage else {}), found


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures: the largest error over all seeds, and what honest months were said to have lost, at most."""
    struck = [r for r in rows if r["sabotage"]]
    honest = [r for r in rows if not r["sabotage"]]
    return {
        "damage_error_pct": max(r["error_pct"] for r in struck),
        "damage_seeds": len(struck),
        "damage_within_range": sum(r["within"] for r in rows),
        "damage_runs": len(rows),
        "honest_loss_pct": round(max(100 * r["found_gpu_hours"][1] / r["held_gpu_hours"] for r in honest), 4),
        "ranks_simulated": max(r["ranks"] for r in rows),
        "rank_steps_simulated": sum(r["rank_steps"] for r in rows),
    }


def _whole(r: Range) -> list[int]:
    return [round(r.low), round(r.mid), round(r.high)]


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, account, compare, write."""
    parser = argparse.ArgumentParser(description="Recover a known loss from the records of a simulated cluster.")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args(argv)
    rows = []
    for seed in range(given.seeds):
        for sabotage in (True, False):
            row, _ = measure(seed, sabotage=sabotage)
            rows.append(row)
            print({k: row.get(k) for k in ("seed", "injected_gpu_hours", "found_gpu_hours", "error_pct")}, flush=True)
    print(summed(rows))
    merge("incident", PART, summed(rows), rows)


if __name__ == "__main__":
    main()
