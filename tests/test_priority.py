"""A process gives way to training: in its nice value, and with its session where it leads one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainwarden.priority import give_way

_WAITS = [sys.executable, "-c", "import threading; t = threading.Thread(target=input); t.start(); print(); t.join()"]
_GROUPED = Path("/proc/self/autogroup").exists()


def lowered(*, session: bool) -> tuple[set[int], str, str]:
    """The nice values of its threads, and its session's weight before and after."""
    process = subprocess.Popen(_WAITS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=session)
    group = Path(f"/proc/{process.pid}/autogroup")
    assert process.stdout is not None
    process.stdout.readline()  # both threads are there
    before = group.read_text() if _GROUPED else ""
    try:
        give_way(process.pid, 15)
        values = {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{process.pid}/task")}
        return values, before, group.read_text() if _GROUPED else ""
    finally:
        process.communicate(b"\n")


@pytest.mark.parametrize("session", [True, False])
def test_every_thread_of_a_process_gives_way(session: bool) -> None:
    values, _, _ = lowered(session=session)
    assert values == {15}


@pytest.mark.skipif(not _GROUPED, reason="this kernel does not weigh sessions")
def test_the_session_that_a_process_leads_gives_way_with_it() -> None:
    _, _, after = lowered(session=True)
    assert after.endswith("nice 15\n")


@pytest.mark.skipif(not _GROUPED, reason="this kernel does not weigh sessions")
def test_a_session_that_somebody_else_leads_keeps_its_weight() -> None:
    _, before, after = lowered(session=False)
    assert before == after


def test_a_process_that_is_gone_is_let_be() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    give_way(process.pid, 15)
    assert process.returncode == 0
