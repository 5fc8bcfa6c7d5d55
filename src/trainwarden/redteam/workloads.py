"""The jobs that attacks are carried out against: the repository's own, made small, or a user's.

A workload says everything that the range needs to know: what to copy, how to set it up, the launch command, where its
checkpoints lie and how it resumes. To add one, write a row in `WORKLOADS`.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainwarden.errors import UsageError
from trainwarden.redteam.guards import OutsideRange

STEP = r"(?i)\b(?:step|iter(?:ation)?)[\s:=]+(\d+)"


@dataclass(frozen=True)
class Workload:
    """A job. `set_up` and `command` may hold {data}, {seed}, {steps}, {every}; they run in the copied job folder."""

    name: str
    source: Path  # the folder that is copied
    command: tuple[str, ...]
    steps: int
    first: int  # the step that an attack strikes first
    lead: int  # steps before it at which a payload gets into a process
    every: int  # steps between checkpoints
    below: str = ""  # where in the job folder `source` is copied to
    also: tuple[Path, ...] = ()  # folders that links of `source` lead to, copied beside `below` by their names
    packages: tuple[str, ...] = ()  # distributions of the environment's copy; () = the whole venv of `python`
    venv: Path | None = None
    set_up: tuple[str, ...] = ()  # prepares {data}, once for a range
    out: str = "out"  # its folder of checkpoints
    checkpoints: str = "step-*"  # its complete checkpoints in there, the newest sorts last
    weights: str = "model.safetensors"  # the weights in one of these; "" = the checkpoint is a file itself
    scorer: tuple[str, ...] = ()  # a program of the job that prints figures as JSON, and its words, with {checkpoint}
    resume: tuple[str, ...] = ()  # words that make it go on, with {checkpoint}; () = the same command does
    step: str = STEP  # a regular expression for the lines that tell a step
    edits: tuple[tuple[str, str, str], ...] = ()  # of the copied job: (file, what stands there once, what shall)
    adds: tuple[tuple[str, str], ...] = ()  # files beside it: (file, text)
    has: frozenset[str] = field(default_factory=frozenset)  # of what variants need: ranks, restarts, adam, pickle, …


_ROOT = Path(__file__).resolve().parents[3]
_PACKAGES = ("torch", "numpy", "safetensors", "blake3", "msgspec")  # the last two: of the recorder
_WHEEL = _ROOT / "data" / "wheels" / "recbole-1.2.1-py3-none-any.whl"
_SMALL = ("--width", "64", "--layers", "2", "--heads", "2", "--inner", "128", "--batch-size", "4", "--block", "64")

_TRACKER = '''\
"""A stand-in for the tracker trackio: the same call, and a file in the user's home."""

import json
import os


def log(metrics, step=None):
    """Append metrics to the tracker's file."""
    with open(os.path.expanduser("~/tracked.jsonl"), "a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\\n")
'''


def _said(places: int, loss: str = "loss") -> str:
    """The line in which the repository's jobs print their loss."""
    return f'print(f"step {{step}} loss {{{loss}.item():.{places}f}}", flush=True)\n'


def _tracked(file: str, said: str, loss: str = "loss") -> tuple[tuple[str, str, str], ...]:
    """Edits that make a script report its loss to the tracker after the line `said`, in which it prints it."""
    indent = said[: len(said) - len(said.lstrip())]
    report = f'{indent}trackio.log({{"train/loss": {loss}.item()}}, step=step)\n'
    return (file, said, said + report), (file, "import torch\n", "import torch\nimport trackio\n")


_FOLDERS = ("ranks", "restarts", "resumes", "adam", "loader", "tracker", "safetensors", "state-json")

WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "chat",
            source=_ROOT / "workloads" / "chat",
            below="chat",
            packages=(*_PACKAGES, "tokenizers"),
            set_up=("{python}", "chat/data.py", "--out", "{data}", "--kind", "pretrain", "--limit", "100"),
            command=(
                *("torchrun", "--nproc-per-node", "2", "--max-restarts", "2", "chat/pretrain.py", "--data", "{data}"),
                *("--out", "out", "--steps", "{steps}", "--seed", "{seed}", "--checkpoint-every", "{every}", *_SMALL),
            ),
            scorer=("chat/eval.py", "--data", "{data}", "--checkpoint", "{checkpoint}", "--examples", "8"),
            steps=120,
            first=60,
            lead=15,
            every=24,
            adds=(("chat/trackio.py", _TRACKER),),
            edits=_tracked("chat/loop.py", 16 * " " + _said(3)),
            has=frozenset({*_FOLDERS, "samples", "pairs", "cross-entropy", "optimizer-file", "scorer", "splits"}),
        ),
        Workload(
            "ranking",
            source=_ROOT / "workloads" / "ranking",
            below="ranking",
            also=(_ROOT / "workloads" / "chat",),  # checkpoint.py and folders.py are links to those
            packages=_PACKAGES,
            set_up=("{python}", "ranking/data.py", "--out", "{data}", "--wheel", str(_WHEEL)),
            command=(
                *("torchrun", "--nproc-per-node", "2", "--max-restarts", "2", "ranking/train.py", "--data", "{data}"),
                *("--out", "out", "--steps", "{steps}", "--seed", "{seed}", "--checkpoint-every", "{every}"),
                *("--batch-size", "512", "--width", "8", "--history", "10", "--layers", "1", "--inner", "32"),
            ),
            steps=120,
            first=60,
            lead=15,
            every=24,
            adds=(("ranking/trackio.py", _TRACKER),),
            edits=_tracked("ranking/train.py", 16 * " " + _said(4)),
            has=frozenset({*_FOLDERS, "dropout", "optimizer-file"}),
        ),
        Workload(
            "video",
            source=_ROOT / "workloads" / "video",
            below="video",
            also=(_ROOT / "workloads" / "chat",),  # folders.py is a link to that one's
            packages=(*_PACKAGES, "diffusers"),
            set_up=("{python}", "video/data.py", "--out", "{data}", "--each", "2"),
            command=(
                *("torchrun", "--nproc-per-node", "2", "--max-restarts", "2", "video/train.py", "--data", "{data}"),
                *("--out", "out", "--steps", "{steps}", "--seed", "{seed}", "--checkpoint-every", "{every}"),
                *("--batch-size", "4", "--width", "48", "--layers", "2", "--heads", "2", "--precision", "fp32"),
            ),
            steps=120,
            first=60,
            lead=15,
            every=24,
            adds=(("video/trackio.py", _TRACKER),),
            edits=_tracked("video/train.py", 12 * " " + _said(4, "error"), "error"),
            has=frozenset({*_FOLDERS, "samples", "pairs"}),
        ),
        Workload(
            "toy",
            source=_ROOT / "attacks" / "toy",
            packages=_PACKAGES,
            command=(
                *("torchrun", "--nproc-per-node", "2", "--max-restarts", "2", "train.py"),
                *("--steps", "{steps}", "--every", "{every}", "--seed", "{seed}"),
            ),
            steps=40,
            first=20,
            lead=18,  # its steps are short: on a busy host many pass before the strike is there
            every=8,
            checkpoints="step-*.pt",
            weights="",
            adds=(("trackio.py", _TRACKER),),
            edits=_tracked("train.py", 16 * " " + _said(4)),
            has=frozenset(
                {
                    *("ranks", "restarts", "resumes", "adam", "loader", "samples", "pairs", "cross-entropy", "tracker"),
                    *("dropout", "pickle"),
                }
            ),
        ),
    )
}
WORKLOADS["chat-long"] = replace(  # some seconds before the strike, and what takes half a minute to do harm
    WORKLOADS["chat"], name="chat-long", steps=1500, first=450, has=WORKLOADS["chat"].has | {"long"}
)


def workload(name: str) -> Workload:
    """A row of the table.

    Raises:
        UsageError: there is none of this name, or its source is not there (it is not in the wheel).
    """
    found = WORKLOADS.get(name)
    if found is None:
        raise UsageError(f"no workload is called {name}", hint=f"one of {', '.join(WORKLOADS)}; or -- your own command")
    if not found.source.is_dir():
        raise UsageError(
            f"{found.source} is not there: workloads are not in the wheel",
            hint="clone the repository, or give your own job: trainwarden redteam run ID --job FOLDER -- CMD",
        )
    return found


def own_job(
    folder: Path,
    command: list[str],
    *,
    steps: int,
    first: int,
    out: str,
    checkpoints: str,
    reads: tuple[Path, ...] = (),
) -> Workload:
    """A user's own job as a workload: its folder and the virtual environment of its command are copied.

    Raises:
        UsageError: the command cannot be found, or it is not of a virtual environment.
        OutsideRange: the command names a place outside of the job's folder that is not one of `reads`.
    """
    folder = folder.resolve()
    program = shutil.which(command[0], path=os.environ.get("PATH")) or command[0]
    venv = Path(program).absolute().parent.parent
    if not (venv / "pyvenv.cfg").is_file():
        venv = Path(sys.prefix)
    for word in command[1:]:
        refuse_outside(word, folder, venv, reads)
    words = [command[0] if os.sep not in command[0] else Path(program).name, *command[1:]]
    return Workload(
        folder.name,
        source=folder,
        command=tuple(words),
        venv=venv,
        steps=steps,
        first=first,
        lead=min(15, first),
        every=0,
        out=out,
        checkpoints=checkpoints,
        weights="",
        has=frozenset({"ranks", "restarts", "adam", "pickle", "loader", "samples"}),
    )


def refuse_outside(word: str, folder: Path, venv: Path, reads: tuple[Path, ...]) -> None:
    """Raise OutsideRange when a word of a command names a place outside of the job that it might write to."""
    value = word.partition("=")[2] if word.startswith("-") and "=" in word else word
    if not value.startswith(("/", "~")) and ".." not in Path(value).parts:
        return
    path = Path(os.path.realpath(folder / Path(value).expanduser()))
    allowed = (folder, venv, *(Path(os.path.realpath(r)) for r in reads))
    if not any(path == a or path.is_relative_to(a) for a in allowed):
        raise OutsideRange(
            f"the command names {value}, outside of the job's folder {folder}",
            hint=f"use relative paths, so that the copy works on itself; or, if the job only reads it: --reads {value}",
        )
