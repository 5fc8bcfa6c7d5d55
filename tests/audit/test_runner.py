"""A replay that gets nowhere is ended, and says why."""

from __future__ import annotations

import subprocess
import sys
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
