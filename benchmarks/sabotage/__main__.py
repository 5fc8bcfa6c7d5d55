"""SabotageBench: sabotage, benign twins and honest runs, against TrainWarden, watched curves and TrainCheck.

    python -m benchmarks.sabotage [run | traincheck | show] [--workload NAME …] [--only TECHNIQUE …] [--budget SECONDS]

* run (default): the matrix against TrainWarden and the curve watcher. The sampled matrix stops after nine minutes at
  the latest and says what is left; started again, it goes on. `FULL=1` takes the whole matrix and no budget.
* traincheck: TrainCheck 0.2 on the same attacks, in an environment of its own (benchmarks/sabotage/traincheck.py).
* show: nothing is run; the figures of what is done.

Each writes results/sabotage.json. Rows, runs in the neutral form (docs/sabotage-format.md) and copies of the job are
kept in ~/.cache/trainwarden-sabotage; docs/sabotage-format.md says how long a row counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import write
from benchmarks.sabotage import curves, jobs, matrix, running, scoring, traces, traincheck
from benchmarks.sabotage.ledger import Ledger, code_of, earlier, source_of
from benchmarks.sabotage.matrix import Case, Row
from trainwarden.errors import CannotDecide
from trainwarden.redteam.catalogue import load
from trainwarden.redteam.workloads import WORKLOADS

if TYPE_CHECKING:
    from trainwarden.redteam.interface import Technique

FULL = bool(os.environ.get("FULL"))
BUDGET = float("inf") if FULL else 520.0
USUAL = (*matrix.FURTHER, matrix.SMALL, matrix.FIRST)  # in this order
SHARE = 1 / 8  # of the time at most for each of the further ones, so that the small job has a case of most techniques


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked for and write the results; 0 when every case of it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sabotage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", nargs="?", choices=("run", "traincheck", "show"), default="run")
    parser.add_argument("--workload", action="append", help="of the red team's (default: chat, toy, few of others)")
    parser.add_argument("--only", action="append", default=[], help="a technique's id; may be given again")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which nothing new is begun")
    given = parser.parse_args(argv)

    techniques = [t for t in load() if not given.only or t.id in given.only]
    ledger = Ledger(jobs.cache() / "rows.jsonl")
    usual = ("toy",) if given.part == "traincheck" else WORKLOADS if FULL else USUAL
    names = list(given.workload or usual) if given.part != "show" else []
    done, begun = True, time.monotonic()
    for name in names:
        left = given.budget - (time.monotonic() - begun)
        if given.part == "traincheck":
            done &= traincheck.run(name, techniques, left)
        elif given.workload or FULL:
            among = {n: WORKLOADS[n] for n in dict.fromkeys((*names, matrix.FIRST, matrix.SMALL))}
            cases = (matrix.whole if FULL else matrix.sampled)(techniques, name, among)
            done &= run(name, techniques, cases, ledger, left)
        else:
            most = min(left, given.budget * SHARE) if name in matrix.FURTHER else left
            done &= run(name, techniques, matrix.usual(techniques, name), ledger, most)
    if not ledger.rows:
        raise SystemExit("error: no case is done yet\nhint: python -m benchmarks.sabotage run")
    summary = sum_up(ledger, load())
    print("\n".join(f"{key:>28}  {value}" for key, value in summary.items()))
    print(f"the runs, for any other detector: {jobs.cache() / 'runs'}")
    if not done:
        print("the time is up and cases are left: start it again to go on", file=sys.stderr)
    return 0 if done else 2


def run(name: str, techniques: Sequence[Any], cases: Sequence[Case], ledger: Ledger, budget: float) -> bool:
    """The cases of one workload; False when some are left."""
    from trainwarden.redteam.place import Range

    begun = time.monotonic()
    if budget <= 0 or next(matrix.to_do(cases, ledger.rows, earlier), None) is None:
        return budget > 0
    with Range(jobs.cache() / "range" / name, jobs.job(name)) as place:
        try:
            place.open(lambda text: print(text, file=sys.stderr))
        except CannotDecide as e:
            print(f"{name} is not run: {e}" + (f" ({e.hint})" if e.hint else ""), file=sys.stderr)
            return False
        left = budget - (time.monotonic() - begun)
        tuned = name in matrix.FURTHER or running.tuning(place, runs(name), running.progress, budget=left)
        left = budget - (time.monotonic() - begun)
        to_do = matrix.to_do(cases, ledger.rows, earlier)
        return tuned and running.all_of(place, to_do, techniques, ledger, runs(name), budget=left)


def runs(workload: str) -> Path:
    """Where its runs are in the neutral form: a folder for each state of its code, since the curves depend on it."""
    return jobs.cache() / "runs" / f"{workload}-{code_of(*source_of(workload))}"


def tried(rows: Sequence[Row]) -> set[str]:
    """The techniques of which an attack was carried out."""
    return {r["technique"] for r in rows if r["kind"] == "attack" and scoring.how(r) != "not carried out"}


def sum_up(ledger: Ledger, techniques: Sequence[Technique]) -> dict[str, Any]:
    """Judge what the other defences said of the runs that are done, and write results/sabotage.json."""
    rows: list[dict[str, Any]] = []
    for name in sorted({row["workload"] for row in ledger.rows.values()}):
        try:
            traces.write_verdicts(runs(name) / "curves.jsonl", curves.watch(runs(name)))
        except ValueError as e:
            print(f"{name}: the curves are not judged: {e}", file=sys.stderr)
        own = [row for row in ledger.rows.values() if row["workload"] == name]
        rows += running.with_verdicts(own, runs(name), "curves")
    rows = running.with_verdicts(rows, jobs.cache() / "traincheck" / "runs", "traincheck")
    twins = {row["variant"] for row in rows if row["kind"] == "twin" and row["verdict"] != "not carried out"}
    summary = scoring.summary(rows) | {
        "techniques_without_a_case": [t.id for t in techniques if t.id not in tried(rows)],
        "techniques_whose_twin_was_run": sum(t.twin.name in twins for t in techniques),
        "rows_of_earlier_code": sum(map(earlier, rows)),
        "commits": sorted({row["commit"] for row in rows}),
    }
    write("sabotage", summary, rows)
    return summary


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
