"""A replay that gets nowhere is ended, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainwarden import wire
from trainwarden.audit import runner
from trainwarden.audit.runner import MOST_GAPS


def test_a_replay_that_only_tells_of_gaps_is_ended() -> None:
    stage = runner._Stage(lambda seen: None, lambda saving: None)
    handler: Any = runner._Handler(stage, {}, bytes(32), None, 0)  # type: ignore[arg-type]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    processes: Any = [(None, process)]
    try:
        for _ in range(MOST_GAPS + 1):
            handler.message(wire.Missed(step=0, reason="loader: StopIteration"))
        runner._follow(processes, stage, lambda: False)
        assert process.poll() is None
        assert stage.problems[-1] == f"the replay was ended after {MOST_GAPS} gaps"
        assert len(stage.problems) == MOST_GAPS + 1
    finally:
        runner.end(processes)


def test_a_replays_temporary_folder_is_its_own_and_holds_what_the_jobs_own_one_had(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "data.bin").write_bytes(b"data")
    rank: Any = SimpleNamespace(plan=SimpleNamespace(capture=str(tmp_path / "capture" / "rank-0")))
    space: Any = SimpleNamespace(scratch=tmp_path / "space")
    (tmp_path / "s").mkdir()
    env = {"TMPDIR": str(tmp_path / "staged"), "MLFLOW_TRACKING_URI": "https://tracker", "WANDB_MODE": "online"}
    told = runner._apart(rank, env, space, str(tmp_path / "s" / "socket"))
    assert Path(told["TMPDIR"], "data.bin").read_bytes() == b"data"
    assert Path(told["TMPDIR"]).parent == tmp_path / "s"
    assert told[runner.ELSEWHERE_ENV].split(os.pathsep) == [str(tmp_path / f) for f in ("space", "s", "capture")]
    assert told["MLFLOW_TRACKING_URI"].startswith(f"file://{space.scratch}")
    assert told["WANDB_MODE"] == "offline"
    shared = runner._apart(rank, {"TMPDIR": "/tmp"}, space, str(tmp_path / "s" / "socket"))
    assert "MLFLOW_TRACKING_URI" not in shared
