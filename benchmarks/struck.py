"""One guarded run of the chat job while somebody strikes it, and what was told of it when.

Times are wall times of this process: a finding counts from when `trainwarden run` says it on its terminal, an attack
from when the payload marks its first tampered step. Steps are counted from that step to the one that the job had
reached, as the log has it, when the finding was logged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from attacks import in_memory, outside
from benchmarks.machine import ROOT
from trainwarden.demo import Demo
from trainwarden.model import Entry, Finding, Severity, StepRecord

SMALL = ("--width", "64", "--layers", "2", "--heads", "2", "--inner", "128", "--batch-size", "4", "--block", "64")
STEPS, FIRST, CHECKPOINT_EVERY = 120, 60, 24
LONGER = {"hog": 400}  # steps of a job that is struck by what needs time to do harm
LEAD = 15  # steps before the first tampered one at which the payload gets in
_TOLD = re.compile(r"trainwarden: (\w+) · ([\w-]+): (.*)")
_STEP = re.compile(r"step (\d+) loss ")


class Range:
    """The place where jobs are struck: the demo's environment and store, a job folder with a sleeper in it."""

    def __init__(self, demo: Demo) -> None:
        self.demo, self.job = demo, demo.folder / "defence"
        self.data = demo.folder / "defence-data"
        self.strike = demo.folder / "defence-strike.json"
        self.marker = demo.folder / "defence-marker"

    def set_up(self) -> None:
        """Prepare data, small enough for an epoch to end within a run, and the job's scripts."""
        if not (self.data / "complete").exists():
            source = ROOT / "workloads" / "chat" / "data.py"
            words = ["--out", str(self.data), "--kind", "pretrain", "--limit", "100"]
            self.demo.call([sys.executable, str(source), *words])
            (self.data / "complete").touch()

    def fresh(self) -> None:
        """A job folder as if nobody had ever trained or struck there."""
        shutil.rmtree(self.job, ignore_errors=True)
        chat = self.job / "chat"
        shutil.copytree(ROOT / "workloads" / "chat", chat, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "benchmarks" / "sleeper.py", chat)
        (chat / "trackio.py").write_text(_TRACKER)
        loop = (chat / "loop.py").read_text()
        (chat / "loop.py").write_text(tracked(loop))
        self.clean()

    def clean(self) -> None:
        """Remove the insider's files."""
        self.strike.unlink(missing_ok=True)
        for path in self.marker.parent.glob(self.marker.name + ".*"):
            path.unlink()

    def command(
        self,
        *,
        steps: int = STEPS,
        seed: int = 0,
        script: str = "pretrain",
        ranks: int = 2,
        model: Sequence[str] = SMALL,
        every: int = CHECKPOINT_EVERY,
    ) -> list[str]:
        """The launch command of the small job; `every` steps it saves a checkpoint."""
        own = [*model, "--data", str(self.data)] if script == "pretrain" else ["--data", str(self.demo.data)]
        return [
            *("torchrun", "--nproc-per-node", str(ranks), "--max-restarts", "2", "chat/sleeper.py", script),
            *("--out", "out", "--steps", str(steps), "--seed", str(seed), "--checkpoint-every", str(every), *own),
        ]

    def put(self, attack: str, first: int, marker: str) -> None:
        """Put a strike in the ranks' way, whole at once."""
        config = {"attack": attack, "first": first, "marker": marker}
        partial = self.strike.with_suffix(".partial")
        partial.write_text(json.dumps(config | {"source": str(ROOT / "attacks" / "in_memory.py")}))
        os.replace(partial, self.strike)

    def struck_at(self) -> tuple[int, float] | None:
        """The first tampered step and when it was tampered with, None when the payload never acted."""
        marks = [
            line.split() for path in self.marker.parent.glob(self.marker.name + ".*") for line in path.open() if line
        ]
        return min(((int(step), int(ns) / 1e9) for _, step, ns in marks), default=None)


@dataclass
class Ran:
    """What a guarded run said and did."""

    runs: list[str] = field(default_factory=list)  # one, and one more for every recovery
    code: int = 0
    begun: float = 0.0
    ended: float = 0.0
    told: list[tuple[float, str, str, str]] = field(default_factory=list)  # when, severity, detector, sentence
    steps: list[tuple[float, int]] = field(default_factory=list)  # when the job printed which step
    entries: Sequence[Entry] = ()


def guarded(
    place: Range,
    command: Sequence[str],
    *,
    at_step: Callable[[int, int], None] = lambda step, pid: None,
    options: Sequence[str] = ("--on-environment-change", "alert"),
    env: dict[str, str] | None = None,
) -> Ran:
    """Run a command under `trainwarden run`; `at_step` is called with every step printed and the watcher's pid."""
    ran = Ran(begun=time.time())
    variables = {**place.demo.variables, "BENCH_STRIKE": str(place.strike), **(env or {})}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainwarden.cli", "run", *options, "--", *command],
        cwd=place.job, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def heard(stream: IO[str]) -> None:
        for line in stream:
            _hear(ran, line)

    errors = threading.Thread(target=heard, args=(process.stderr,))
    errors.start()
    for line in process.stdout or ():
        if found := _STEP.match(line):
            ran.steps.append((time.time(), int(found[1])))
            at_step(int(found[1]), process.pid)
    errors.join()
    ran.code = process.wait()
    ran.ended = time.time()
    if ran.runs:
        ran.entries = place.demo.case(ran.runs[0]).entries
    return ran


def _hear(ran: Ran, line: str) -> None:
    if " as run " in line:
        ran.runs.append(line.partition(" as run ")[2].split()[0])
    if found := _TOLD.match(line):
        ran.told.append((time.time(), found[1], found[2], found[3].strip()))
    if "Error" in line:
        print(line, end="", file=sys.stderr)  # of the job or of the payload: a benchmark that fails must say why


def findings(ran: Ran) -> list[dict[str, Any]]:
    """Every finding that is more than a note: when it was told, and the step that the job had reached by then."""
    out = []
    told = list(ran.told)
    reached = -1
    for entry in ran.entries:
        if isinstance(entry, StepRecord):
            reached = max(reached, entry.step)
        elif isinstance(entry, Finding) and entry.severity is not Severity.INFO:
            match = next((t for t in told if t[2] == entry.detector and t[3] == _printed(entry.seen)), None)
            if match is not None:
                told.remove(match)
            row = {"detector": entry.detector, "severity": entry.severity.value, "seen": entry.seen}
            out.append({**row, "reached": reached, "when": match[0] if match else ran.ended})
    return out


def _printed(sentence: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in sentence).strip()


def inside(place: Range, attack: in_memory.Attack, seed: int) -> dict[str, Any]:
    """Strike from inside the ranks, at a step given beforehand."""
    place.fresh()
    put: list[float] = []

    def at_step(step: int, pid: int) -> None:
        if step == FIRST - LEAD:
            put.append(time.time())
            place.put(attack.id, FIRST, str(place.marker))

    ran = guarded(place, place.command(seed=seed), at_step=at_step)
    struck = place.struck_at()
    place.clean()
    return outcome(attack.id, attack.technique, attack.evidence, ran, struck, put)


def from_outside(place: Range, attack: outside.Attack, seed: int) -> dict[str, Any]:
    """Strike the job's files and processes once it has come to a step."""
    place.fresh()
    struck: list[tuple[int, float]] = []
    scene = outside.Place(place.job / "out", place.demo.env, 0, "sleeper.py")

    def at_step(step: int, pid: int) -> None:
        if step == FIRST and not struck:
            struck.append((step, time.time()))
            attack.act(outside.Place(scene.out, scene.environment, pid, scene.command))

    try:
        steps = LONGER.get(attack.id, STEPS)
        ran = guarded(place, place.command(seed=seed, steps=steps), at_step=at_step)
    finally:
        attack.undo(scene)
    began = [when for _, when in struck]
    return outcome(attack.id, attack.technique, attack.evidence, ran, struck[0] if struck else None, began)


def outcome(
    name: str,
    technique: str,
    evidence: Sequence[str],
    ran: Ran,
    struck: tuple[int, float] | None,
    began: Sequence[float],
) -> dict[str, Any]:
    """What was found of one attack, live: every detector's first finding since it began.

    `struck` is its first tampered step, `began` when its payload got in: what is found in between counts as at once.
    """
    row: dict[str, Any] = {"attack": name, "technique": technique, "evidence": list(evidence), "code": ran.code}
    row |= {"run": ran.runs[0] if ran.runs else "", "struck": struck is not None, "live": [], "before": []}
    if struck is None:
        return row
    step, when = struck
    first: dict[str, dict[str, Any]] = {}
    for f in findings(ran):
        if f["when"] < began[0]:
            row["before"].append(f)
            continue
        told = {key: f[key] for key in ("detector", "severity", "seen")}
        late = {"steps": max(0, f["reached"] - step), "seconds": round(max(0.0, f["when"] - when), 3)}
        first.setdefault(f["detector"], told | late)
    return row | {"step": step, "live": sorted(first.values(), key=lambda f: f["seconds"])}


def audited(place: Range, run: str) -> dict[str, Any]:
    """A full audit of a run, up to the first difference: where it is."""
    words = [sys.executable, "-m", "trainwarden.cli", "audit", run, "--first", "--json"]
    begin = time.monotonic()
    ended = subprocess.run(words, cwd=place.job, env=place.demo.variables, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 1, 2):
        return {"verdict": "failed", "why": ended.stderr[-300:]}
    verdicts = json.loads(ended.stdout.splitlines()[-1])["verdicts"]
    seconds = round(time.monotonic() - begin, 1)
    for verdict in verdicts:
        if verdict["type"] == "diverged":
            at = verdict["at"]
            return {"verdict": "diverged", "seconds": seconds, **{k: at.get(k) for k in ("step", "rank", "stage")}}
    worst = "inconclusive" if any(v["type"] == "inconclusive" for v in verdicts) else "matched"
    return {"verdict": worst, "seconds": seconds}


def tracked(loop: str) -> str:
    """The chat workload's loop with one more line: it reports its loss to a tracker.

    Raises:
        SystemExit: the workload's loop has changed, and the line has no place.
    """
    said = '                print(f"step {step} loss {loss.item():.3f}", flush=True)\n'
    if loop.count(said) != 1:
        raise SystemExit("error: workloads/chat/loop.py no longer prints its loss where the benchmark expects it")
    report = '                trackio.log({"train/loss": loss.item()}, step=step)\n'
    return loop.replace(said, said + report).replace("import torch\n", "import torch\nimport trackio\n", 1)


_TRACKER = '''\
"""A stand-in for a tracker (https://pypi.org/project/trackio/): the same call, and a file beside the checkpoints."""

import json


def log(metrics, step=None):
    """Append metrics to the tracker's file."""
    with open("out/tracked.jsonl", "a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\\n")
'''
