"""The ends of processes that are not our children are seen, also when their parent is quicker than we are."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest

from trainwarden.supervise.process import Exit, _reaped, _zombie

LAUNCHER = """
import os, signal, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(rank.pid, flush=True)
sys.stdin.readline()
rank.send_signal(int(sys.argv[1]))
if sys.argv[2] == "reaps":
    rank.wait()
else:
    os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
print("done", flush=True)
sys.stdin.readline()
"""


def ended(number: signal.Signals, parent: str) -> tuple[int, int]:
    """Process id and pidfd of somebody else's child that was ended by a signal; its parent reaped it, or did not."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(int(number)), parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    assert launcher.stdin is not None
    pid = int(launcher.stdout.readline())
    fd = os.pidfd_open(pid)
    launcher.stdin.write("\n")
    launcher.stdin.flush()
    assert launcher.stdout.readline() == "done\n"
    LAUNCHERS.append(launcher)
    return pid, fd


LAUNCHERS: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_launcher_stays() -> object:
    yield
    while LAUNCHERS:
        launcher = LAUNCHERS.pop()
        launcher.communicate("\n")


def test_a_zombie_that_is_not_ours_tells_its_signal() -> None:
    pid, fd = ended(signal.SIGKILL, "waits")
    assert _zombie(pid) == Exit(-9, known=True)
    assert _reaped(fd) == Exit(-1, known=False), "it is not reaped yet"
    os.close(fd)


@pytest.mark.skipif(
    tuple(int(n) for n in platform.release().split(".")[:2]) < (6, 15), reason="needs Linux 6.15 (PIDFD_GET_INFO)"
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_that_its_launcher_reaped_first_still_tells_its_signal(number: signal.Signals) -> None:
    pid, fd = ended(number, "reaps")
    assert _zombie(pid) == Exit(-1, known=False)
    assert _reaped(fd) == Exit(-number, known=True)
    os.close(fd)
