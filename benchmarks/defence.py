"""How well a run is defended: what is found of each attack and when, what honest runs raise, what it costs.

    python -m benchmarks.defence [attacks | honest | recovery | overhead | ID of an attack …]

Without a name all parts, in about twelve minutes on two quiet cores; `FULL=1` takes more seeds, audits every attacked
run, and measures the large job with its whole batch. Each part replaces its own figures in results/defence.json, each
attack its own rows.

* attacks: every entry of attacks/in_memory.py and attacks/outside.py against the chat workload's pretraining, made
  small (two ranks, 120 steps). What no detector tells is audited in full, by replay.
* honest: the same job with other seeds, longer, and the honest twins of attacks. Every finding that is more than a note
  is a false alarm.
* recovery: an attack every 200 steps under the policy `recover`, beside the same run left alone and an honest one
  (benchmarks/recovering.py).
* overhead: with everything on, as benchmarks/record.py measures it, and the shares of observers and detectors.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from attacks import in_memory, outside
from benchmarks import record, recovering, shares
from benchmarks.machine import RESULTS, merge
from benchmarks.struck import STEPS, Range, audited, findings, from_outside, guarded, inside
from trainwarden.commands.demo import default_folder
from trainwarden.demo import Demo

FULL = bool(os.environ.get("FULL"))
SEEDS = (0, 1, 2) if FULL else (0,)
HONEST_STEPS = 3_000 if FULL else 1_200
HONEST_SEEDS = range(1, 9) if FULL else range(1, 4)
CHAT_STEPS = 76
LARGE_MICRO_BATCHES = record.LARGE_MICRO_BATCHES if FULL else 2


def main(names: Sequence[str] = ()) -> None:
    """Measure the named parts or attacks, all parts without a name."""
    from rich.console import Console

    demo = Demo(default_folder(), Console(stderr=True))
    demo.set_up()
    demo.seal_once()
    place = Range(demo)
    place.set_up()
    single = [name for name in names if name not in PARTS]
    unknown = [name for name in single if name not in in_memory.ATTACKS and name not in outside.ATTACKS]
    if unknown:
        raise SystemExit(f"error: no such part or attack: {', '.join(unknown)}\nhint: one of {', '.join(PARTS)}")
    for part in names or PARTS:
        if part in PARTS:
            summary, rows = PARTS[part](place)
            print(merge("defence", part, summary, rows), flush=True)
    if single:
        summary, rows = attacks(place, single)
        print(merge("defence", "attacks", summary, rows))


# ------------------------------------------------------------------ attacks


def attacks(place: Range, wanted: Sequence[str] = ()) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Carry out attacks one by one; rows of those not wanted now are kept from before."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if wanted:
        rows = {(r["attack"], r["seed"]): r for r in earlier("attacks")}
    for name in wanted or [*in_memory.ATTACKS, *outside.ATTACKS]:
        for seed in SEEDS:
            rows[name, seed] = {**one(place, name, seed), "seed": seed}
            say_row(rows[name, seed])
    return summed(list(rows.values())), list(rows.values())


def one(place: Range, name: str, seed: int) -> dict[str, Any]:
    """One attack on one seed, audited where it was not found live."""
    if name in in_memory.ATTACKS:
        row = inside(place, in_memory.ATTACKS[name], seed)
    else:
        row = from_outside(place, outside.ATTACKS[name], seed)
    told = {f["detector"] for f in row["live"]}
    row["silent"] = [d for d in row["evidence"] if not d.startswith("audit: ") and d not in told]
    if row["struck"] and (FULL or not row["live"]):
        row["audit"] = audited(place, row["run"])
    return row


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures over all attacks that were carried out."""
    struck = [r for r in rows if r["struck"]]
    live = [r for r in struck if r["live"]]
    by_audit = [r for r in struck if not r["live"] and r.get("audit", {}).get("verdict") == "diverged"]
    return {
        "attacks": len(struck),
        "found_live": len(live),
        "found_audit": len(by_audit),
        "missed": len(struck) - len(live) - len(by_audit),
        "median_steps_to_detect": median([r["live"][0]["steps"] for r in live]),
        "median_seconds_to_detect": median([r["live"][0]["seconds"] for r in live]),
    }


def say_row(row: dict[str, Any]) -> None:
    """A line on the terminal for an attack that is done."""
    if not row["struck"]:
        found = "was not carried out"
    elif row["live"]:
        first = row["live"][0]
        found = f"{first['detector']} after {first['steps']} steps, {first['seconds']:.2f} s"
    else:
        found = f"audit: {row['audit']['verdict']}"
    silent = f"  (silent: {', '.join(row['silent'])})" if row["silent"] else ""
    print(f"{row['attack']:>20}  {found}{silent}", file=sys.stderr, flush=True)


def earlier(part: str) -> list[dict[str, Any]]:
    """Rows of a part from the results file."""
    import json

    path = RESULTS / "defence.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    return [{k: v for k, v in r.items() if k != "part"} for r in runs if r["part"] == part]


def median(values: Sequence[float]) -> float | None:
    """The median to two decimals, None of nothing."""
    return round(statistics.median(values), 2) if values else None


# ------------------------------------------------------------------ honest runs


def honest(place: Range) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Honest runs and benign twins; what they raise."""
    rows = [honest_run(place, f"seed {seed}", steps=HONEST_STEPS, seed=seed) for seed in HONEST_SEEDS]
    rows += [twin(place) for twin in TWINS]
    steps = sum(r["steps"] for r in rows)
    told = [f for r in rows for f in r["findings"]]
    by_detector: dict[str, int] = {}
    for f in told:
        by_detector[f["detector"]] = by_detector.get(f["detector"], 0) + 1
    graver = [f for f in told if f["severity"] != "low"]
    summary = {
        "honest_steps": steps,
        "false_alarms_per_10k_steps": round(1e4 * len(told) / steps, 2),
        "graver_false_alarms_per_10k_steps": round(1e4 * len(graver) / steps, 2),
        "false_alarms_of": ", ".join(f"{k} {v}" for k, v in sorted(by_detector.items())) or "none",
    }
    return summary, rows


def honest_run(
    place: Range,
    name: str,
    *,
    steps: int = STEPS,
    seed: int = 0,
    script: str = "pretrain",
    at_step: Callable[[int, int], None] = lambda step, pid: None,
    fresh: bool = True,
) -> dict[str, Any]:
    """One honest run, and every finding of it that is more than a note."""
    if fresh:
        place.fresh()
    ran = guarded(place, place.command(steps=steps, seed=seed, script=script), at_step=at_step)
    row = {
        "twin": name,
        "run": ran.runs[0] if ran.runs else "",
        "code": ran.code,
        "steps": len(ran.steps),
        "findings": findings(ran),
    }
    print(f"{name:>20}  {len(ran.steps)} steps, {len(row['findings'])} findings", file=sys.stderr, flush=True)
    return row


def busy_host(place: Range) -> dict[str, Any]:
    """Twin of `sleep`: another program uses the processors for a while."""
    busy: list[subprocess.Popen[bytes]] = []
    code = "import time\nend = time.monotonic() + 4\nwhile time.monotonic() < end: pass\n"

    def at_step(step: int, pid: int) -> None:
        if step == 60:
            busy.append(subprocess.Popen(["nice", "-n", "5", sys.executable, "-c", code]))

    row = honest_run(place, "busy host", steps=300, at_step=at_step)
    for process in busy:
        process.wait()
    return row


def reinstalled(place: Range) -> dict[str, Any]:
    """Twin of `library-edit`: a file of the environment is written again with equal bytes."""
    (file,) = place.demo.env.glob(f"lib/python3*/site-packages/{outside.TARGET}")

    def at_step(step: int, pid: int) -> None:
        if step == 60:
            status = file.stat()
            fresh = file.with_suffix(".tmp")
            fresh.write_bytes(file.read_bytes())
            fresh.chmod(status.st_mode)
            os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.replace(fresh, file)

    return honest_run(place, "reinstalled package", at_step=at_step)


def rotated(place: Range) -> dict[str, Any]:
    """Twin of `checkpoint-delete`: only the newest checkpoint is kept."""
    import shutil

    def at_step(step: int, pid: int) -> None:
        if step in (60, 85, 110):
            for old in sorted((place.job / "out").glob("step-*"))[:-1]:
                shutil.rmtree(old)

    return honest_run(place, "rotated checkpoints", at_step=at_step)


def went_on(place: Range) -> dict[str, Any]:
    """Twin of `checkpoint-plant`: the same command again, with more steps, from the last run's checkpoint."""
    half = honest_run(place, "first half", steps=60)
    whole = honest_run(place, "went on", fresh=False)
    return whole | {"steps": half["steps"] + whole["steps"], "findings": [*half["findings"], *whole["findings"]]}


def with_dropout(place: Range) -> dict[str, Any]:
    """Twin of `reseed`: LoRA with dropout on a pretrained model, most of which is frozen."""
    return honest_run(place, "post-training", steps=16, script="posttrain")


TWINS = (busy_host, reinstalled, rotated, went_on, with_dropout)


# ------------------------------------------------------------------ recovery and costs


def recovery(place: Range) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Attacked runs under the policy `recover`."""
    return recovering.measure(place, chat_step_s=_measured("record", "chat_step_ms", 400.0) / 1e3)


def overhead(place: Range) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What guarding costs with everything on, and of what that consists."""
    demo = place.demo
    command = [*demo.training("bench"), "--block", str(record.CHAT_TOKENS)]
    command[command.index("--steps") + 1] = str(CHAT_STEPS)
    command[command.index("--checkpoint-every") + 1] = "0"
    chat = [record.alternate(demo, command, block=record.CHAT_BLOCK) for _ in range(2 if FULL else 1)]
    parts = shares.measure(place, command)
    large = record.large(demo, micro_batches=LARGE_MICRO_BATCHES)[1]
    spent = statistics.median(s for r in large for s in r["recording_s"])
    step = (
        statistics.median(r["plain_ms"] for r in large) / 1e3 if FULL else _measured("record", "large_step_ms", 0) / 1e3
    )
    summary = {
        "chat_overhead_pct": record.median(chat, "overheads_pct"),
        "chat_direct_pct": record.median(chat, "direct_pct"),
        "chat_step_ms": round(statistics.median(r["plain_ms"] for r in chat), 1),
        "large_overhead_pct": round(100 * spent / step, 2) if step else None,
        "large_recording_s": round(spent, 3),
        "observers_us": round(sum(parts["observers"].values()), 1),
        "detectors_us": round(sum(parts["detectors"].values()), 1),
    }
    return summary, [*chat, *large, {"kind": "shares", **parts}]


def _measured(name: str, key: str, otherwise: float) -> float:
    """A figure of another results file."""
    import json

    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8"))["summary"] if path.exists() else {}
    return float(found.get(key, otherwise))


PARTS: dict[str, Callable[[Range], tuple[dict[str, Any], list[dict[str, Any]]]]] = {
    "attacks": attacks,
    "honest": honest,
    "recovery": recovery,
    "overhead": overhead,
}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begin = time.monotonic()
    main(sys.argv[1:])
    print(f"{time.monotonic() - begin:.0f} s", file=sys.stderr)
