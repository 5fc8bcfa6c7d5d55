"""The ends of processes that are not our children are seen, also when their parent is quicker than we are."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time

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


GUARD = """
import os, signal, sys
from trainwarden.supervise.process import Child, block_signals
mask = block_signals()
child = Child([sys.executable, "-c", sys.argv[1]], os.environ, mask)
print("waits", flush=True)
code = child.wait()
child.reap()
print("ended", code, child.stopping, flush=True)
"""
TOLD = """
import os, signal, time
signal.signal(signal.SIGCONT, lambda *_: os._exit(7))
print("runs", flush=True)
time.sleep(600)
"""


def test_a_guard_that_is_stopped_for_long_goes_on_with_its_command() -> None:
    with subprocess.Popen([sys.executable, "-c", GUARD, TOLD], stdout=subprocess.PIPE, text=True) as guard:
        assert guard.stdout is not None
        assert {guard.stdout.readline(), guard.stdout.readline()} == {"runs\n", "waits\n"}
        guard.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # longer than the second for which it used to wait at a time
        guard.send_signal(signal.SIGCONT)
        assert guard.stdout.readline() == "ended 7 0\n", "the command heard of it, and nothing else was passed on"


def test_a_command_that_does_not_end_when_asked_to_is_killed() -> None:
    deaf = "import time; time.sleep(600)"
    before = "import trainwarden.supervise.process as process; process.STOP_SECONDS = 0.2; "
    before += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # handed down
    asks = GUARD.replace("mask =", before + "mask =", 1).replace("code =", "child.stop()\ncode =")
    done = subprocess.run([sys.executable, "-c", asks, deaf], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == f"ended -9 {int(signal.SIGTERM)}"


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
