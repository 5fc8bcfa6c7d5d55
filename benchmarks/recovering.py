"""What an attack every 200 steps costs: with TrainWarden under the policy `recover`, left alone, and an honest run.

The attack edits one weight on every rank between two steps (30/memory of docs/attacks.md): no rank disagrees, no
process dies, and without a defence the job ends in other weights, and nobody knows. Measured are the wall time from the
job's first step to its last, the steps made twice, and the bytes of the final weights.

Effective training time (ETTR) is the share of the wall time in which training goes forward (ByteRobust, arXiv
2509.16293, whose 97 % is the goal). What an attack costs has four parts: seconds that do not depend on the job's steps
(stop, what the replay that follows the run still has to do, restore, start), steps made twice, steps replayed by a
replay that had to be started for it, and the checkpoints that are saved so often because of it. A guarded step is a
little longer than another: that is overhead, which has a goal of its own. `ettr_and_overhead_pct` counts it in: the
time that the steps take in an unguarded run over the wall time. For that the honest run is made beside a guarded one
that nobody attacks, the two taking turns step by step (benchmarks/turns.py); the median of these pairs is
`recovery_job_slower_pct`.

The job is the chat workload's pretraining with as many layers as its weights may have to be read whole at each step (8
MiB, detector `continuity`), and nearly all of its small data in a step, in sequences so long that a step takes about as
long on one processor as one of MegaScale (6.34 s, NSDI'24); `recovery_job_step_ms` is what it took. The clean room is
made before the defended run: made for the first time it takes a minute or so, which is a run's first, not an attack's.

With `FULL=1` it has 200 steps and is struck once, and `ettr_pct` is what was measured. Otherwise it has 21, is struck
once, and `ettr_pct` is derived: the costs of that one attack, put to 200 of its steps. `ettr_basis` says which.
`ettr_at_<seconds>` are derived for jobs of other steps, which is where the limit lies: what is fixed weighs more the
shorter a step is.

A checkpoint is cleared by replaying all that it stands on, which costs as much computing as training does. So training
has one processor here, in all runs, from when its launcher starts, and the replay beside it what is left: with no
processor to spare it falls behind, and the steps that it lacks are waited for.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.payload import Payload, Trigger, notice
from attacks.t30_weight_edit import scale_row
from benchmarks import turns
from trainwarden.actors.approvals import find_seal
from trainwarden.model import Diverged, Entry, Matched, RunEnded, StepRecord
from trainwarden.redteam import guards
from trainwarden.redteam.interface import Act, Moment
from trainwarden.redteam.place import Range
from trainwarden.redteam.running import Ran, carry_out, marks
from trainwarden.redteam.trial import measure as measured
from trainwarden.redteam.workloads import workload
from trainwarden.seal.room import build_room
from trainwarden.store import Store
from trainwarden.supervise.process import processes

FULL = bool(os.environ.get("FULL"))
BETWEEN = 200  # steps from attack to attack
STEPS = BETWEEN if FULL else 21
# A strike costs the step in which it is seen and on average (EVERY − 1) / 2 before it, and BETWEEN / EVERY saves of
# 0.0075 steps each were made because of it: in steps 2.5, 2.25, 2.5, 3.3 for EVERY = 1, 2, 3, 5. The best is about
# sqrt(2 · 0.0075 · BETWEEN) = 1.7 (Young, CACM 1974); at 3 the replay has a step longer to clear the newest one, and a
# strike can be as far from its checkpoint as strikes at any time are on average.
EVERY = 3
STRIKES = (121,) if FULL else (13,)  # 1 step after a checkpoint
ALIGNED = 3  # the step up to which the jobs that take turns come alone
MODEL = ("--width", "128", "--layers", "5", "--heads", "4", "--inner", "512", "--batch-size", "16", "--block", "768")
_CHAT = workload("chat")
JOB = replace(
    _CHAT,
    command=(*_CHAT.command[: _CHAT.command.index("--width")], *MODEL),
    steps=STEPS,
    first=STRIKES[0],
    lead=8,
    every=EVERY,
)
_GUARDED = (sys.executable, "-m", "trainwarden.cli", "run", "--")
CURVE = (0.7, 2, 4, 6.34, 10, 30)  # seconds a step
_POLICY = """\
[policy]
environment_changed = "alert"

[policy.detectors]
continuity = "recover"

[recover]
clear_ahead = true
"""


def measure(place: Range) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The honest run beside a guarded one, the two that are attacked, and what the difference between them comes to."""
    honest, alone = in_turns(place), trained(place, strikes=STRIKES)
    defended = trained(place, strikes=STRIKES, guarded=True)
    rows = [{"kind": "honest", **honest}, {"kind": "alone", **alone}, {"kind": "defended", **defended}]
    return summed(honest, alone, defended), rows


def summed(honest: dict[str, Any], alone: dict[str, Any], defended: dict[str, Any]) -> dict[str, Any]:
    """The figures that the three rows come to."""
    plain, save = step_and_save(honest["took"])
    slower = statistics.median(honest["guarded_over_plain"])
    step, stops = plain * slower, defended["stops"]
    replayed = statistics.mean(s["replayed"] for s in stops) if stops else 0.0
    stop = statistics.mean(s["seconds"] for s in stops) if stops else 0.0
    fixed = max(0.0, stop - (replayed + 1) * step)  # it ends with the first step that is made again
    again = (defended["steps"] - STEPS) / max(1, len(stops))
    saves = BETWEEN / EVERY * save / step
    lost = again + replayed + saves
    wall = defended["wall_s"] or math.inf  # from the end of the first step on
    share = (STEPS - 1) * step / wall if FULL else ettr(step, fixed, lost)
    summary: dict[str, Any] = {
        "ettr_pct": round(100 * share, 1),
        "ettr_basis": basis(step),
        "ettr_and_overhead_pct": round(100 * share / slower, 1),
        **{f"ettr_at_{seconds:g}_s": round(100 * ettr(seconds, fixed, lost), 1) for seconds in CURVE},
        "recoveries": defended["recoveries"],
        "attacks_under_policy": defended["struck"],
        "final_state_equals_honest_run": defended["digest"] == honest["digest"],
        "final_state_without_defence_equals_honest_run": alone["digest"] == honest["digest"],
        "final_loss_honest": honest["loss"],
        "final_loss_without_defence": alone["loss"],
        "final_loss_defended": defended["loss"],
        "final_loss_equals_honest_run": defended["loss"] is not None and defended["loss"] == honest["loss"],
        "seconds_lost_per_attack": round(fixed, 2),
        "steps_made_twice_per_attack": round(again, 1),
        "steps_replayed_per_attack": round(replayed, 1),
        "steps_between_checkpoints": EVERY,
        "steps_saving_per_attack": round(saves, 2),
        "recovery_job_step_ms": round(1e3 * step, 1),
        "recovery_job_slower_pct": round(100 * (slower - 1), 2),
        "recovery_job_slower_pairs": len(honest["guarded_over_plain"]),
    }
    if not defended["recoveries"]:
        unknown = [key for key in summary if key.startswith("ettr_") or key.endswith("_per_attack")]
        summary |= {**dict.fromkeys(unknown), "recovery_note": defended["why"]}
    return summary


def basis(step: float) -> str:
    """On what `ettr_pct` stands, in words."""
    if FULL:
        return f"measured: {STEPS} steps of {step:.1f} s, one attack"
    return f"derived: one attack measured in {STEPS} steps of {step:.1f} s, put to {BETWEEN} such steps"


def ettr(step: float, fixed: float, again: float) -> float:
    """The share of the time in which training goes forward, with one attack every `BETWEEN` steps of `step` seconds."""
    return BETWEEN * step / ((BETWEEN + again) * step + fixed)


def step_and_save(took: dict[int, float]) -> tuple[float, float]:
    """Seconds that a step takes, and those that a checkpoint takes more; `took[n]`: from when n − 1 was told."""
    # What step n saves is saved after it is told.
    plain = statistics.median(seconds for n, seconds in took.items() if (n - 1) % EVERY)
    saved = statistics.median(seconds for n, seconds in took.items() if not (n - 1) % EVERY)
    return plain, max(0.0, saved - plain)


@contextmanager
def on_one_processor(place: Range) -> Iterator[None]:
    """Keep every launcher that starts below the range, and all that it starts, to one processor of several."""
    over, own = threading.Event(), {min(os.sched_getaffinity(0))}

    def watch() -> None:
        done: set[int] = set()
        while not over.wait(0.1):
            roots = [process.pid for process in place.roots]
            new = [p for p in processes() if p not in done and _is_torchrun(p) and guards.descends(p, roots)]
            for pid in new:
                _confine(pid, own)
            done.update(new)

    watcher = threading.Thread(target=watch, daemon=True)
    if len(os.sched_getaffinity(0)) > 1:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        if watcher.ident:
            watcher.join()


def _is_torchrun(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False  # it has ended
    return any(word.endswith(b"/torchrun") for word in words[1:2])


def _confine(pid: int, processors: set[int]) -> None:
    with suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), processors)


def in_turns(place: Range) -> dict[str, Any]:
    """The honest job, and in turn with it the same one guarded, in a copy of the job's folder."""
    place.fresh()
    _policy(place)
    make_room(place)
    beside = Path(shutil.copytree(place.job, place.here / "beside"))
    home = place.here / "beside-home"
    home.mkdir()
    command = place.words(JOB.command)
    with on_one_processor(place):
        plain = _side(place, "plain", command, place.job, place.home)
        guarded = _side(place, "guarded", [*_GUARDED, *command], beside, home)
        turns.take_turns((guarded, plain), ALIGNED, STEPS)
        code = plain.process.wait()
    took = {n: seconds for n, seconds in plain.took.items() if n > ALIGNED}
    pairs = turns.ratios(guarded, plain, ALIGNED + 1, STEPS)
    return {**_ended(place, Ran(code=code)), "code": code, "struck": 0, "took": took, "guarded_over_plain": pairs}


def _side(place: Range, name: str, words: Sequence[str], folder: Path, home: Path) -> turns.Side:
    variables = {**place.variables, "HOME": str(home)}

    def start() -> subprocess.Popen[str]:
        with (place.here / f"{name}.said").open("w", encoding="utf-8") as said:
            options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": said, "text": True}
            return place.start(words, cwd=folder, env=variables, **options)

    return turns.Side(start, JOB.step)


def trained(place: Range, strikes: Sequence[int], *, guarded: bool = False) -> dict[str, Any]:
    """The job by itself, or under the policy `recover`."""
    times: list[float] = []
    own = [Act(Moment.PREPARE, _policy), Act(Moment.START, make_room)] if guarded else []
    with on_one_processor(place):
        ran = carry_out(
            place, [*struck_once(strikes), *own], guarded=guarded, tell=lambda step: times.append(time.time())
        )
    made = {"steps": len(times), "wall_s": round(times[-1] - times[0], 2) if times else 0.0}
    row = {**_ended(place, ran), **made, "code": ran.code, "struck": len({m.step for m in marks(place)})}
    return row | (_recovered(ran) if guarded else {})


def _policy(place: Range) -> None:
    place.write(place.job / "trainwarden.toml", _POLICY)


def struck_once(strikes: Sequence[int]) -> list[Act]:
    """Acts that strike once before each of some steps, whatever is recovered and made again.

    What told the payload to strike stays where it is: a replay reads it too, and judges no step whose input is gone.
    """
    acts: list[Act] = []
    for step in strikes:
        delay = step - JOB.first
        acts += foothold(Payload(scale_row, lasts=1, delay=delay, trigger=Trigger(noticed_every=0)))
        acts.append(Act(Moment.STEP, notice, step=delay))  # carried out: it lies low from now on
    return acts


def make_room(place: Range) -> None:
    """Have the clean room of the job as it lies there, as every run after the first one has it."""
    digest = place.warden("seal", "--", *place.words(place.workload.command)).stdout.split()[0]
    store = Store.open(place.store)
    try:
        build_room(store, find_seal(store, digest))
    finally:
        store.close()


def _recovered(ran: Ran) -> dict[str, Any]:
    why = "" if ran.runs else "the run could not start: this version knows no policy by detector"
    stops = stops_between([ran.entries[run] for run in ran.runs])
    return {"recoveries": max(0, len(ran.runs) - 1), "why": why, "runs": ran.runs, "stops": stops}


def stops_between(runs: Sequence[Sequence[Entry]]) -> list[dict[str, float]]:
    """Between each run and the one that recovers it: seconds from step to step, and the steps replayed meanwhile."""
    found = []
    for before, after in itertools.pairwise(runs):
        last = max((e.wall_ns for e in before if isinstance(e, StepRecord)), default=0)
        first = min((e.wall_ns for e in after if isinstance(e, StepRecord)), default=0)
        if not last or not first:
            continue
        end = next((i for i, e in enumerate(before) if isinstance(e, RunEnded)), len(before))
        replays = [e.segment for e in before[end:] if isinstance(e, Matched | Diverged)]
        replayed = sum(segment.last - segment.first + 1 for segment in replays)
        found.append({"seconds": round((first - last) / 1e9, 2), "replayed": float(replayed)})
    return found


def _ended(place: Range, ran: Ran) -> dict[str, Any]:
    reported = place.tracked  # by the job alone: what replays report stays in their workspaces
    lines = reported.read_text(encoding="utf-8").splitlines() if reported.exists() else []
    last = json.loads(lines[-1]) if lines else {"step": 0}
    loss = last["train/loss"] if last["step"] == STEPS else None
    digest = measured(place, ran).weights if last_step(place) == STEPS else ""
    return {"digest": digest, "loss": loss}


def last_step(place: Range) -> int:
    """The step of the newest checkpoint."""
    return int(place.newest.name.removeprefix("step-")) if place.checkpoints else -1
