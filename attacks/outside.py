"""Sabotage of a training job from outside of its processes: files on shared storage, signals, load.

A table, `ATTACKS`, like that of attacks/in_memory.py. Each acts on the job's own folder of checkpoints, on a copied
environment, or on processes below the one that it is given, and on nothing else; it returns what clean-up needs.
Precondition: write access to the checkpoints (K), to the environment (E), or an account on the host (N).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attacks._shared.reinstall import FILE as TARGET
from attacks.t01_library_patch import kill_worker


@dataclass(frozen=True)
class Place:
    """What an insider on the host sees of the job."""

    out: Path  # its folder of checkpoints
    environment: Path  # a copy of the shared one
    below: int  # only processes below this one are touched
    command: str  # what a worker's command line holds


@dataclass(frozen=True)
class Attack:
    """One way to sabotage a job from outside. `undo` is for clean-up after the run."""

    id: str
    technique: str
    act: Callable[[Place], None]
    evidence: tuple[str, ...]
    benign_twin: str
    undo: Callable[[Place], None] = lambda place: None
    goes_on: bool = True  # whether the job is expected to end well all the same


def newest(out: Path) -> Path:
    """The newest complete checkpoint."""
    return max(p for p in out.glob("step-*") if (p / "state.json").exists())


def kill(place: Place) -> None:
    """SIGKILL for one rank; its launcher starts all of them again."""
    kill_worker(place.below, 1, place.command)


def edit_checkpoint(place: Place) -> None:
    """A few bytes of the newest checkpoint's weights, then a kill, so that it is loaded."""
    file = newest(place.out) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # the sign or exponent of the last weight's last byte: harmless to the parser
    file.write_bytes(bytes(data))
    kill(place)


def delete_checkpoint(place: Place) -> None:
    """The newest checkpoint is gone, then a kill: an older one is loaded."""
    shutil.rmtree(newest(place.out))
    kill(place)


def plant_checkpoint(place: Place) -> None:
    """A checkpoint that nobody saved, newer than all, then a kill."""
    old = newest(place.out)
    step = int(old.name.removeprefix("step-"))
    planted = old.with_name(f"step-{step + 1:06d}")
    shutil.copytree(old, planted)
    file = planted / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    state = json.loads((planted / "state.json").read_text(encoding="utf-8"))
    (planted / "state.json").write_text(json.dumps(state | {"step": step + 1}), encoding="utf-8")
    kill(place)


def truncate_checkpoint(place: Place) -> None:
    """The newest checkpoint's weights lose their second half, then a kill: it cannot be loaded."""
    file = newest(place.out) / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    kill(place)


def edit_library(place: Place) -> None:
    """A comment at the end of a file of the copied PyTorch: what it says does not matter, that it changed does."""
    (file,) = place.environment.glob(f"lib/python3*/site-packages/{TARGET}")
    shutil.copy2(file, place.out.parent / "original.py")
    with open(file, "a", encoding="utf-8") as stream:
        stream.write("# changed\n")


def restore_library(place: Place) -> None:
    """Put the library's file back, times included."""
    (file,) = place.environment.glob(f"lib/python3*/site-packages/{TARGET}")
    shutil.copy2(place.out.parent / "original.py", file)


def hog(place: Place) -> None:
    """Two processes that do nothing but use the processors, for ten seconds."""
    code = "import time\nend = time.monotonic() + 10\nwhile time.monotonic() < end: pass\n"
    for _ in range(os.cpu_count() or 1):
        subprocess.Popen([sys.executable, "-c", code])


ATTACKS = {
    a.id: a
    for a in (
        Attack("kill", "34", kill, ("kills",), "memory ran out"),
        Attack("checkpoint-edit", "30", edit_checkpoint, ("checkpoints",), "one path for all checkpoints"),
        Attack("checkpoint-delete", "32", delete_checkpoint, ("checkpoints",), "only the newest are kept"),
        Attack("checkpoint-plant", "32", plant_checkpoint, ("loaded",), "going on from another run"),
        Attack("checkpoint-truncate", "32", truncate_checkpoint, ("checkpoints",), "a full disk", goes_on=False),
        Attack("library-edit", "01", edit_library, ("environment",), "an upgrade", restore_library),
        Attack("hog", "34", hog, ("hogs",), "another job of the same user"),
    )
}
