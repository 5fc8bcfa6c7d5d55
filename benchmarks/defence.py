"""How well a run is defended: what is found of each attack and when, what honest runs raise, what it costs.

    python -m benchmarks.defence [attacks | honest | recovery | overhead | ID/VARIANT of an attack …]

Without a name all parts, in about twenty minutes on two quiet cores; `FULL=1` takes each seed, audits every attacked
run, and measures the large job with its whole batch. Each part replaces its own figures in results/defence.json, each
attack its own rows.

* attacks: `ATTACKS`, variants of the catalogue (docs/attacks.md), against the chat workload's pretraining, made small
  (two ranks, 120 steps), on its seeds in turn. What no detector tells is audited in full, by replay.
* honest: the same job with other seeds, longer, and the honest twins of attacks. Every finding that is more than a note
  is a false alarm.
* recovery: an attack every 200 steps under the policy `recover`, beside the same run left alone and an honest one
  (benchmarks/recovering.py).
* overhead: with everything on, as benchmarks/record.py measures it, and the shares of observers and detectors.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import record, recovering, shares
from benchmarks.machine import RESULTS, merge
from trainwarden.commands import demo as demo_verb
from trainwarden.commands import redteam as redteam_verb
from trainwarden.demo import Demo
from trainwarden.redteam import catalogue, judging
from trainwarden.redteam.interface import Twin, When
from trainwarden.redteam.outcome import Found, Outcome
from trainwarden.redteam.place import Range
from trainwarden.redteam.running import Ran, audited, carry_out, marks
from trainwarden.redteam.trial import attack
from trainwarden.redteam.workloads import Workload, workload

FULL = bool(os.environ.get("FULL"))
SEEDS = (0, 1, 2)
HONEST_STEPS = 3_000 if FULL else 1_200
HONEST_SEEDS = range(1, 9) if FULL else range(1, 4)
CHAT_STEPS = 76
LARGE_MICRO_BATCHES = record.LARGE_MICRO_BATCHES if FULL else 2
TECHNIQUES = catalogue.load()
ATTACKS = (
    *("22/one-tensor", "23/every-8", "24/half", "27/zeroed-rank", "27/wrong-divisor", "18/lr", "24/scale-in-update"),
    *("19/every-10", "20/moments", "21/memory", "28/random", "09/once", "10/rank-1", "12/memory", "13/memory"),
    *("26/memory", "30/memory", "31/memory", "37/liar", "08/matmul", "35/clock", "33/tracker", "34/kill"),
    *("30/checkpoint", "32/delete", "32/plant", "32/truncate", "01/ddp", "34/hog"),
)
TWINS = ("28", "01", "32", "34")


def main(names: Sequence[str] = ()) -> None:
    """Measure the named parts or attacks, all parts without a name."""
    single = [name for name in names if name not in PARTS]
    unknown = [name for name in single if name not in ATTACKS]
    if unknown:
        known = ", ".join((*PARTS, *ATTACKS))
        raise SystemExit(f"error: no such part or attack: {', '.join(unknown)}\nhint: one of {known}")
    for part in names or PARTS:
        if part in PARTS:
            summary, rows = PARTS[part]()
            print(merge("defence", part, summary, rows), flush=True)
    if single:
        summary, rows = attacks(single)
        print(merge("defence", "attacks", summary, rows))


def in_range(job: Workload, seed: int = 0) -> Range:
    """The range of the chat workload, which `trainwarden redteam run` uses too."""
    return Range(redteam_verb.default_folder() / "chat", job, seed=seed)


def set_up_demo() -> Demo:
    """The demo's environment and data."""
    from rich.console import Console

    demo = Demo(demo_verb.default_folder(), Console(stderr=True))
    demo.set_up()
    demo.seal_once()
    return demo


# ------------------------------------------------------------------ attacks


def attacks(wanted: Sequence[str] = ()) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Carry out attacks one by one; rows of those not wanted now are kept from before."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if wanted:
        rows = {(r["attack"], r["seed"]): r for r in earlier("attacks") if r["attack"] not in wanted}
    for name in wanted or ATTACKS:
        for seed in seeds(name):
            rows[name, seed] = one(name, seed)
            say_row(rows[name, seed])
    return summed(list(rows.values())), list(rows.values())


def seeds(name: str) -> tuple[int, ...]:
    """The seeds of the job that an attack is carried out on: one of `SEEDS` in turn, or with `FULL=1` each."""
    return SEEDS if FULL else (SEEDS[ATTACKS.index(name) % len(SEEDS)],)


def one(name: str, seed: int) -> dict[str, Any]:
    """One attack on one seed, audited where it was not found live."""
    technique, variant = catalogue.find(TECHNIQUES, name)
    if variant is None:
        raise SystemExit(f"error: {name} names no variant")
    job = workload("chat-long" if "long" in variant.needs else "chat")
    with in_range(job, seed) as place:
        place.open()
        done = attack(place, technique, variant, audit=False, say=lambda what, step: None)
        row = row_of(name, technique.slug, done)
        if row["struck"] and (FULL or not row["live"]):
            row["audit"] = audit(place, done)
    return row


def row_of(name: str, technique: str, done: Outcome) -> dict[str, Any]:
    """A row of the results: what detectors told while the run went on, each for the first time."""
    live = [of_finding(f) for f in done.found if f.when == When.LIVE]
    expected = [e.by if e.when == When.LIVE else f"{e.when}: {e.stage or e.by}" for e in done.expected]
    told = {f["detector"] for f in live}
    return {
        "attack": name,
        "technique": technique,
        "seed": done.seed,
        "evidence": expected,
        "code": done.effect.exit_code,
        "run": done.runs[0] if done.runs else "",
        "struck": done.verdict != "not carried out",
        "worked": done.worked,
        "live": sorted(live, key=lambda f: f["seconds"]),
        "before": [of_finding(f) for f in done.false],
        "silent": [e.by for e in done.expected if e.when == When.LIVE and e.by not in told],
        "note": done.note,
    }


def of_finding(found: Found) -> dict[str, Any]:
    """A finding as the results have it."""
    told = {"detector": found.by, "severity": found.severity, "seen": found.sentence}
    return told | {"steps": found.steps or 0, "seconds": found.seconds or 0.0}


def audit(place: Range, done: Outcome) -> dict[str, Any]:
    """A full audit of the attacked runs, up to the first difference: where it is."""
    again = Ran(runs=[*done.runs])
    begin = time.monotonic()
    audited(place, again)
    row: dict[str, Any] = {"seconds": round(time.monotonic() - begin, 1)}
    for found in judging.replayed(again.all_entries, judging.Truth(marks(place))):
        return {"verdict": "diverged", **row, "step": found.step, "rank": found.ranks[0], "stage": found.stage}
    worst = next((k for k in ("failed", "inconclusive") if k in again.audit.values()), "matched")
    return {"verdict": worst, **row}


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
    print(f"{row['attack']:>18}  {found}{silent}", file=sys.stderr, flush=True)


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


def honest() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Honest runs and benign twins; what they raise."""
    long = replace(workload("chat"), steps=HONEST_STEPS)
    rows = [honest_run(f"seed {seed}", long, seed=seed) for seed in HONEST_SEEDS]
    for name in TWINS:
        technique, _ = catalogue.find(TECHNIQUES, name)
        rows.append(honest_run(technique.twin.name, workload("chat"), technique.twin))
    rows.append(honest_run("post-training", post_training(set_up_demo())))
    steps = sum(r["steps"] for r in rows)
    told = [f for r in rows for f in r["findings"]]
    by_detector: dict[str, int] = {}
    for f in told:
        by_detector[f["detector"]] = by_detector.get(f["detector"], 0) + 1
    graver = [f for f in told if f["severity"] in judging.GRAVER]
    summary = {
        "honest_steps": steps,
        "false_alarms_per_10k_steps": round(1e4 * len(told) / steps, 2),
        "graver_false_alarms_per_10k_steps": round(1e4 * len(graver) / steps, 2),
        "false_alarms_of": ", ".join(f"{k} {v}" for k, v in sorted(by_detector.items())) or "none",
    }
    return summary, rows


def honest_run(name: str, job: Workload, twin: Twin | None = None, *, seed: int = 0) -> dict[str, Any]:
    """One honest run, and every finding of it that is more than a note."""
    benign = twin or Twin(name, "nothing")
    with in_range(job, seed) as place:
        place.open()
        ran = carry_out(place, benign.acts, options=benign.options, again=benign.again)
        found = [of_finding(f) for _, f in judging.findings(ran, judging.Truth())]
    print(f"{name:>28}  {ran.printed} steps, {len(found)} findings", file=sys.stderr, flush=True)
    return {"twin": name, "run": ran.runs[0] if ran.runs else "", "code": ran.code, "steps": ran.printed} | {
        "findings": [{k: f[k] for k in ("detector", "severity", "seen")} for f in found]
    }


def post_training(demo: Demo) -> Workload:
    """LoRA with dropout on a pretrained model, most of which is frozen."""
    chat = workload("chat")
    words = ("--out", "out", "--steps", "{steps}", "--seed", "{seed}", "--checkpoint-every", "{every}")
    launcher = chat.command[: chat.command.index("chat/pretrain.py")]
    command = (*launcher, "chat/posttrain.py", "--data", str(demo.data), *words)
    return replace(chat, command=command, steps=16, first=8, lead=8)


# ------------------------------------------------------------------ recovery and costs


def recovery() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Attacked runs under the policy `recover`."""
    with in_range(recovering.JOB) as place:
        place.open()
        return recovering.measure(place)


def overhead() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What guarding costs with everything on, and of what that consists."""
    demo = set_up_demo()
    command = [*demo.training("bench"), "--block", str(record.CHAT_TOKENS)]
    command[command.index("--steps") + 1] = str(CHAT_STEPS)
    command[command.index("--checkpoint-every") + 1] = "0"
    chat = [record.alternate(demo, command, block=record.CHAT_BLOCK) for _ in range(2 if FULL else 1)]
    parts = shares.measure(demo, command)
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


PARTS: dict[str, Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]] = {
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
