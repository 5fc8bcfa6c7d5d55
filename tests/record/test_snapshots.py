"""A rank keeps its complement for each step at which another rank saved, whatever the clock of the file system."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainwarden.record.loaders import LoaderTracker
from trainwarden.record.snapshots import Snapshots


def rank(folder: Path) -> Any:
    own = folder / "snapshots" / "a0-r1"
    own.mkdir(parents=True)
    joined = SimpleNamespace(attempt=0, run_dir=str(folder), snapshot_every=0)
    return SimpleNamespace(
        joined=joined,
        world=2,
        rank=1,
        folder=own,
        done=5,
        loaders=LoaderTracker(),
        scalers={},
        layouts=[],
        optimizers={},
    )


def test_a_mark_made_in_the_same_tick_as_the_look_before_it_is_followed(tmp_path: Path) -> None:
    recorder = rank(tmp_path)
    snapshots = Snapshots(recorder)
    marks = tmp_path / "snapshots" / "marks-a0"
    marks.mkdir()
    snapshots.boundary()  # looks, and finds the folder empty
    stamp = marks.stat().st_mtime_ns
    (marks / "5").touch()
    os.utime(marks, ns=(stamp, stamp))
    snapshots.follow_marks()
    assert (recorder.folder / "side-00000005.safetensors").exists()
