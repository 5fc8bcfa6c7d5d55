"""The job that is struck, with a log of its curves, and what its runs leave.

The loop gets one more line, which logs loss, gradient norm and learning rate of every step and rank to
`out/curves.rankN.jsonl`, as a job with a tracker does. That log is all that the curve watcher sees.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.sabotage.traces import Run, Step, Struck, Truth, write

if TYPE_CHECKING:
    from trainwarden.redteam.outcome import Outcome
    from trainwarden.redteam.place import Range
    from trainwarden.redteam.workloads import Workload

_BACKWARD = re.compile(r"^( +)(\w+)\.backward\(\)\n", re.MULTILINE)
_SAYS = 'print(f"step {step} '  # in the script whose loop tells its steps
_LOGGER = '''\
"""A log of the curves, as a tracker keeps one."""

import json
import math
import os
import time

import torch


def log(step, rank, loss, optimizer):
    """Append a step to this rank's log: the loss, and the norm of the gradient that the optimizer will get."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    values = {"loss": float(loss.detach()), "grad_norm": float(torch.nn.utils.get_total_norm(gradients))}
    row = {key: value if math.isfinite(value) else None for key, value in values.items()}
    row |= {"step": step, "rank": rank, "lr": optimizer.param_groups[0]["lr"], "wall_ns": time.time_ns()}
    os.makedirs("out", exist_ok=True)
    with open(f"out/curves.rank{rank}.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
'''


def cache() -> Path:
    """Where the benchmark keeps copies, traces and rows between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainwarden-sabotage"


def job(name: str) -> Workload:
    """A workload of the red team's, made to log its curves by one more line after its backward pass.

    The line uses the names `step`, `rank` and `optimizer` that the workloads' loops have.

    Raises:
        SystemExit: it has no script with one backward pass.
    """
    from trainwarden.redteam.workloads import workload

    plain = workload(name)
    texts = {f.name: f.read_text("utf-8") for f in sorted(plain.source.glob("*.py"))}
    found = [(name, m) for name, text in texts.items() if _SAYS in text for m in _BACKWARD.finditer(text)]
    if len(found) != 1:
        raise SystemExit(f"error: the workload {name} has {len(found)} backward passes, not one")
    (file, match), folder = found[0], Path(plain.below)
    line = f"{match[1]}curvelog.log(step, rank, {match[2]}, optimizer)\n"
    script = str(folder / file)
    return dataclasses.replace(
        plain,
        adds=(*plain.adds, (str(folder / "curvelog.py"), _LOGGER)),
        edits=(
            *plain.edits,
            (script, match[0], match[0] + line),
            (script, "import torch\n", "import curvelog\nimport torch\n"),
        ),
    )


# ------------------------------------------------------------------ what a run leaves


def steps_of(place: Range) -> list[Step]:
    """The log of the curves of the run that was last made here, in the order of time."""
    decoder = msgspec.json.Decoder(Step)
    logs = sorted((place.job / place.workload.out).glob("curves.rank*.jsonl"))
    steps = [step for log in logs for step in decoder.decode_lines(_whole_lines(log.read_bytes()))]
    return sorted(steps, key=lambda s: (s.wall_ns, s.rank))


def _whole_lines(data: bytes) -> bytes:
    """Without a last line that a killed rank did not finish."""
    return data[: data.rfind(b"\n") + 1]


def truth_of(row: Outcome, steps: Sequence[Step]) -> Truth:
    """What an outcome tells of what truly happened, beside the log of the run's steps."""
    struck = tuple(Struck(step=m.step, rank=m.rank, tensor=m.tensor) for m in row.marks if m.step >= 0)
    if struck:
        first = min(s.step for s in struck)
    else:
        after = (s.step for s in steps if s.wall_ns >= row.struck_ns)
        first = next(after, steps[-1].step if steps else 0) if row.kind == "attack" else -1
    return Truth(kind=row.kind, technique=row.technique, variant=row.variant, struck=struck, first_step=first)  # type: ignore[arg-type]


def keep(place: Range, runs: Path, name: str, code: int, truth: Truth | None = None) -> None:
    """Write the run that was last made here in the neutral form."""
    steps, w = steps_of(place), place.workload
    world = len({s.rank for s in steps})
    run = Run(run=name, workload=w.name, seed=place.seed, world=world, steps=w.steps, exit_code=code)
    write(runs, run, steps, truth)
