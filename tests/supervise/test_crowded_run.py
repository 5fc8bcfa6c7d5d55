"""Whole guarded runs on a processor that somebody else takes: it is found while the run goes on, and told who."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from crowded import HOG, JOB
from supervised import FAKE_PATH, HERE, entries_of, of_kind, until

from trainwarden.model import Finding, HostCrowded, StepRecord


def told(folder: Path) -> list[Finding]:
    """What the log of the one run in there has of crowds so far."""
    (log,) = folder.glob("store/runs/*/log")
    return [f for f in of_kind(entries_of(log), Finding) if f.detector == "hogs"]


def test_a_process_that_squats_on_a_ranks_processor_is_named_while_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.py").write_text(JOB)
    shutil.copy(HERE / "fake_rank.py", tmp_path / "job")
    env = {**os.environ, "FAKE_RANK_PATH": FAKE_PATH}
    words = [sys.executable, str(HERE / "crowded.py"), str(tmp_path)]
    run = subprocess.Popen(words, env=env, start_new_session=True)
    hog: subprocess.Popen[bytes] | None = None
    try:
        until(lambda: (tmp_path / "job" / "calm").exists() or run.poll() is not None, "a while without a crowd")
        assert run.poll() is None
        assert told(tmp_path) == []
        hog = subprocess.Popen([sys.executable, "-c", HOG], start_new_session=True)
        until(lambda: bool(told(tmp_path)), "the crowd is told")
        assert run.poll() is None
    finally:
        (tmp_path / "job" / "stop").touch()
        if hog is not None:
            hog.kill()
            hog.wait()
        code = run.wait(60)
    assert code == 0
    (found,) = told(tmp_path)
    assert f"process {hog.pid} (" in found.seen
    assert found.ranks == (0,)
    (log,) = tmp_path.glob("store/runs/*/log")
    entries = entries_of(log)
    (crowd,) = of_kind(entries, HostCrowded)
    assert crowd.waiting_share > crowd.usual_share + 0.15
    assert any(isinstance(e, StepRecord) for e in entries[entries.index(crowd) :]), "it was told while it trained"
