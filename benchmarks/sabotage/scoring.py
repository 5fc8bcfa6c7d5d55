"""What verdicts and outcomes come to (pure but for `main`).

    python -m benchmarks.sabotage.scoring RUNS VERDICTS      any detector's verdicts, against RUNS/cases/*/truth.json

Rules
-----
* An attack counts as found when something more than a low finding names it: "live" before the end of the run or at its
  start, "audit" by replay or verification. What would only accuse an innocent as a low finding does not count either.
* A flag that comes before the first tampered step is a false accusation, whatever came after it.
* What was not looked for is "not checked": never found, and never missed.
* An attack whose effect on the job was measured and is none is no sabotage: it counts for nothing, and is named.
* Place and cause count over what was audited: a place wherever a step was tampered with, a cause wherever numbers were.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sabotage.traces import Truth, Verdict, read_truths, read_verdicts

Row = Mapping[str, Any]

GRAVE = frozenset({"medium", "high"})
AT_ONCE = frozenset({"before-start", "live"})


# ------------------------------------------------------------------ any detector, by its verdicts


def judged(truth: Truth, verdict: Verdict | None) -> str:
    """found | missed | false | silent | not run."""
    if verdict is None:
        return "not run"
    if truth.kind != "attack":
        return "false" if verdict.flagged else "silent"
    if not verdict.flagged:
        return "missed"
    return "false" if 0 <= verdict.step < truth.first_step else "found"


def score(truths: Mapping[str, Truth], verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """A detector's figures over the cases that it judged."""
    told = {name: judged(truth, verdicts.get(name)) for name, truth in truths.items()}
    attacks = [told[n] for n, t in truths.items() if t.kind == "attack" and told[n] != "not run"]
    others = [told[n] for n, t in truths.items() if t.kind != "attack" and told[n] != "not run"]
    return {
        "attacks": len(attacks),
        "found": attacks.count("found"),
        "found_pct": percent(attacks.count("found"), len(attacks)),
        "honest_and_twins": len(others),
        "false_accusations": attacks.count("false") + others.count("false"),
        "not_run": list(told.values()).count("not run"),
    }


# ------------------------------------------------------------------ TrainWarden, by its outcomes


def how(row: Row) -> str:
    """How an attack was found: live | audit | missed | not checked | not carried out."""
    if row["verdict"] == "not carried out":
        return "not carried out"
    told = {f["when"] for f in row["found"] if f["severity"] in GRAVE}
    if told & AT_ONCE:
        return "live"
    if told:
        return "audit"
    unchecked = any(e["state"] == "not checked" for e in row["expected"])
    return "not checked" if unchecked else "missed"


def first(row: Row) -> Row | None:
    """The finding that came first of those that count, live ones before an audit's."""
    told = [f for f in row["found"] if f["severity"] in GRAVE]
    live = [f for f in told if f["when"] in AT_ONCE]
    return min(live or told, key=lambda f: f["seconds"] or 0.0, default=None)


def numeric(row: Row) -> bool:
    """Did the attack tamper with the numbers of a step, so that there is a digest to reproduce?"""
    return bool(row["strikes"] and row["marks"])


def false_accusations(rows: Iterable[Row]) -> int:
    """Honest runs and twins that were accused, and grave findings from before an insider did anything."""
    accused = 0
    for row in rows:
        early = any(f["severity"] in GRAVE for f in row["false"])
        accused += row["verdict"] == "accused" or early
    return accused


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of results/sabotage.json over the rows of a matrix."""
    attacks = [r for r in rows if r["kind"] == "attack"]
    carried_out = [r for r in attacks if how(r) != "not carried out"]
    struck = [r for r in carried_out if r["worked"] is not False]
    kinds = [how(r) for r in struck]
    found = [r for r, kind in zip(struck, kinds, strict=True) if kind in ("live", "audit")]
    placed = [r for r in struck if r["marks"] and r["audited"]]
    explained = [r for r in struck if numeric(r) and r["audited"]]
    firsts = [f for r in struck if how(r) == "live" and (f := first(r)) is not None]
    return {
        "techniques": len({r["technique"] for r in struck}),
        "cases": len(struck),
        "found_pct": percent(len(found), len(struck)),
        "found_live_pct": percent(kinds.count("live"), len(struck)),
        "found_by_audit_alone": kinds.count("audit"),
        "exact_pct": percent(sum(r["located"] == "exact" for r in placed), len(placed)),
        "exact_of": len(placed),
        "cause_proved_pct": percent(sum(bool(r["cause_proved"]) for r in explained), len(explained)),
        "cause_proved_of": len(explained),
        "not_exact": [r["case"] for r in placed if r["located"] != "exact"],
        "cause_not_proved": [r["case"] for r in explained if not r["cause_proved"]],
        "false_accusations": false_accusations(rows),
        "honest_runs": sum(r["kind"] == "honest" for r in rows),
        "benign_twins": sum(r["kind"] == "twin" and r["verdict"] != "not carried out" for r in rows),
        "median_steps_to_detect": median([f["steps"] for f in firsts]),
        "median_seconds_to_detect": median([f["seconds"] for f in firsts]),
        **peers(struck, rows, "curves"),
        **peers(struck, rows, "traincheck"),
        "missed": names(struck, kinds, "missed"),
        "not_checked": names(struck, kinds, "not checked"),
        "without_effect": [r["case"] for r in carried_out if r["worked"] is False],
        "not_carried_out": [r["case"] for r in attacks if how(r) == "not carried out"],
    }


def peers(struck: Sequence[Row], rows: Sequence[Row], name: str) -> dict[str, Any]:
    """How another defence did: each row holds what its verdict came to under its name."""
    attacks = [r[name]["result"] for r in struck if r.get(name)]
    others = [r[name]["result"] for r in rows if r["kind"] != "attack" and r.get(name)]
    ran, innocent = [a for a in attacks if a != "not run"], [o for o in others if o != "not run"]
    return {
        f"{name}_found_pct": percent(ran.count("found"), len(ran)),
        f"{name}_cases": len(ran),
        f"{name}_false_accusations": ran.count("false") + innocent.count("false"),
        f"{name}_honest_and_twins": len(innocent),
    }


def names(rows: Sequence[Row], kinds: Sequence[str], kind: str) -> list[str]:
    """The cases of one kind."""
    return [r["case"] for r, k in zip(rows, kinds, strict=True) if k == kind]


def percent(part: int, whole: int) -> float | None:
    """A share to one decimal, None of nothing."""
    return round(100 * part / whole, 1) if whole else None


def median(values: Sequence[float | None]) -> float | None:
    """The median of those that are known, to two decimals."""
    known = [v for v in values if v is not None]
    return round(statistics.median(known), 2) if known else None


def main(argv: Sequence[str]) -> int:
    """Print a detector's figures."""
    if len(argv) != 2:
        print("usage: python -m benchmarks.sabotage.scoring RUNS VERDICTS", file=sys.stderr)
        return 3
    print(json.dumps(score(read_truths(Path(argv[0]) / "cases"), read_verdicts(Path(argv[1]))), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
