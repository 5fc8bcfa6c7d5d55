"""How well the ranking workload ranks: trained with several seeds, measured by its own eval.py, written to its README.

`python -m benchmarks.ranking` needs the wheel that `make setup` downloads. Each run is the workload's own command with
its defaults, two ranks under torchrun; the baselines do not depend on a seed and are fitted once. The seconds are
those of all processors together, start included: what else the machine does tells less on them than on the clock.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, write

WORKLOAD = ROOT / "workloads" / "ranking"
SEEDS = range(4)
SCORES = ("auc", "auc_within", "logloss")
BASELINES = {
    "fields": "logistic regression on all fields, person and film included",
    "fields_and_history": "the same, and what is worked out of the history by hand",
}


def main() -> None:
    """Prepare the data, train and measure every seed, write results/ranking.json."""
    with tempfile.TemporaryDirectory(prefix="tw-ranking-") as name:
        folder = Path(name)
        call("data.py", "--out", folder / "data")
        runs = [one_seed(folder, seed) for seed in SEEDS]
        baselines = json.loads(call("baseline.py", "--data", folder / "data"))
    print(write("ranking", summary(runs, baselines), [*runs, {"baselines": baselines}]))


def one_seed(folder: Path, seed: int) -> dict[str, Any]:
    """Train with `seed` and measure it."""
    out, began = folder / f"seed-{seed}", processor_seconds()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    call("train.py", "--data", folder / "data", "--out", out, "--seed", seed, before=torchrun)
    took = processor_seconds() - began
    (checkpoint,) = out.glob("step-*")
    words = ("--data", folder / "data", "--checkpoint", checkpoint, "--no-baselines")
    measured = json.loads(call("eval.py", *words))
    print(f"seed {seed}: {measured}, {took:.0f} s of processor", flush=True)
    return measured | {"cpu_s": round(took, 1)}


def summary(runs: Sequence[Mapping[str, Any]], baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Means over the seeds on the test part, their lowest and highest, and the baselines' figures."""
    told: dict[str, Any] = {"seeds": len(runs), "steps": runs[0]["step"]}
    for score in SCORES:
        reached = [run["test"][score] for run in runs]
        told |= {score: round(statistics.mean(reached), 4)}
        told |= {f"{score}_lowest": min(reached), f"{score}_highest": max(reached)}
    told |= {f"{name}_{score}": baselines[name]["test"][score] for name in BASELINES for score in SCORES}
    return told | {"cpu_s": round(statistics.median(run["cpu_s"] for run in runs), 1)}


def block(result: Mapping[str, Any] | None) -> str:
    """The table of workloads/ranking/README.md."""
    if result is None:
        return "Not measured yet."
    told = result["summary"]
    spread = [f"{told[s]:.4f} ({told[f'{s}_lowest']:.4f} to {told[f'{s}_highest']:.4f})" for s in SCORES]
    cells = {f"the ranker, mean of {told['seeds']} seeds (lowest to highest)": spread}
    cells |= {meaning: [f"{told[f'{name}_{s}']:.4f}" for s in SCORES] for name, meaning in BASELINES.items()}
    rows = [f"| {meaning} | {' | '.join(figures)} |" for meaning, figures in cells.items()]
    head = ["| test part | AUC | AUC within a person | log loss |", "|---|---|---|---|"]
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    seconds = (
        f"A run took {told['cpu_s']:.0f} s of processor time in all ({told['steps']} steps, two ranks, start included)"
    )
    return "\n".join([*head, *rows]) + f"\n\n{seconds} on {where}; commit `{result['commit']}`, {result['date']}."


def call(script: str, *words: object, before: Sequence[str] = ()) -> str:
    """Run a script of the workload and return what it printed.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, *before, str(WORKLOAD / script), *map(str, words)]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {script} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def processor_seconds() -> float:
    """What processes that this one started, and that are over, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
