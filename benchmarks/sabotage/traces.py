"""The neutral form of a run, its truth and a detector's verdict: what others need to use the benchmark.

    RUNS/tuning/NAME/run.json, steps.jsonl               honest runs of other seeds, to learn from
         cases/NAME/run.json, steps.jsonl, truth.json    attacked runs, benign twins, honest runs

A detector is a program that reads RUNS without the truths and writes a line of `verdicts.jsonl` for each case. Nothing
in here is of TrainWarden's own; docs/sabotage-format.md describes it, with the JSON schemas of these nouns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

FORMAT = "sabotage-trace/1"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What anybody who watches a run knows of it (`run.json`)."""

    format: str = FORMAT
    run: str  # its name, which verdicts refer to
    workload: str
    seed: int
    world: int
    steps: int  # optimizer steps that the job was to make
    exit_code: int = 0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step as one rank's script logs it (a line of `steps.jsonl`, in the order of writing).

    A step that is made again after a restart is logged again.
    """

    step: int  # optimizer steps of the job that were made before it
    rank: int
    loss: float | None  # of the rank's own batch; None: not a finite number
    grad_norm: float | None  # of the gradient that the optimizer gets, before clipping
    lr: float
    wall_ns: int


class Struck(msgspec.Struct, frozen=True, kw_only=True):
    """One step that was tampered with on one rank."""

    step: int
    rank: int
    stage: str = ""
    tensor: str = ""


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to a run, by the marks of the payload itself (`truth.json`). Detectors must not read it."""

    format: str = FORMAT
    kind: Literal["attack", "twin", "honest"]
    technique: str = ""
    variant: str = ""
    first_step: int = -1  # the first that an alarm may name: the first tampered one, or made after the insider acted
    struck: tuple[Struck, ...] = ()  # the first tampered step of each rank; () = it tampered with no step


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a detector says of a run (a line of `verdicts.jsonl`). `step` and `rank` are −1 where it names none."""

    run: str
    flagged: bool
    step: int = -1
    rank: int = -1
    why: str = ""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it lies on the disk, without its truth."""

    run: Run
    steps: tuple[Step, ...]


def write(folder: Path, run: Run, steps: Iterable[Step], truth: Truth | None = None) -> None:
    """Write a run below `folder` under its name; `run.json` comes last, so that what has one is whole."""
    own = folder / run.run
    own.mkdir(parents=True, exist_ok=True)
    encode = msgspec.json.encode
    (own / "steps.jsonl").write_bytes(b"".join(encode(step) + b"\n" for step in steps))
    if truth is not None:
        (own / "truth.json").write_bytes(encode(truth) + b"\n")
    (own / "run.json").write_bytes(encode(run) + b"\n")


def read(folder: Path) -> list[Trace]:
    """The whole runs of a folder in the order of their names."""
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    return [
        Trace(
            run=msgspec.json.decode((own / "run.json").read_bytes(), type=Run),
            steps=tuple(msgspec.json.Decoder(Step).decode_lines((own / "steps.jsonl").read_bytes())),
        )
        for own in runs
    ]


def read_truths(folder: Path) -> dict[str, Truth]:
    """The truth of each run of a folder, by the run's name."""
    return {
        path.parent.name: msgspec.json.decode(path.read_bytes(), type=Truth)
        for path in sorted(folder.glob("*/truth.json"))
    }


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write a detector's answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(v) + b"\n" for v in verdicts))


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """A detector's answer by the names of runs; nothing when there is no file."""
    if not path.exists():
        return {}
    return {v.run: v for v in msgspec.json.Decoder(Verdict).decode_lines(path.read_bytes())}
