"""A guarded run in a process of its own, so that the test's processes are foreign to it: `python crowded.py FOLDER`.

The watch on crowds looks five times a second, and not once, so that a test takes seconds. Environment and clean room
are left out; rank, log and detectors are what they are.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from trainwarden.config import AuditConfig, Config
from trainwarden.detect import Engine, all_detectors
from trainwarden.keys import SigningKey
from trainwarden.seal import seal
from trainwarden.seal.command import parse_command
from trainwarden.store import Store
from trainwarden.supervise.monitors import crowds
from trainwarden.supervise.supervisor import supervise

PLACED = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
try:  # what else this machine does is then no crowd; Linux shares time between sessions first (sched(7), autogroup)
    os.nice(-20)
    open("/proc/self/autogroup", "w").write("-20")
except OSError:
    pass
"""
JOB = (
    PLACED
    + """
import fake_rank, time
rank = fake_rank.Rank()
rank.start("")
rank.join("0/1")
while not os.path.exists("stop"):
    end = time.monotonic() + 0.02
    while time.monotonic() < end:
        pass
    rank.steps("1")
    if rank.step == 200:
        open("calm", "w").close()
rank.bye("")
"""
)
HOG = (
    PLACED
    + """
while True:
    pass
"""
)


def main(folder: Path) -> int:
    """Run the job in `folder/job` with its store in `folder/store`."""
    crowds.FIRST, crowds.WINDOW, crowds.Crowds.every = 8, 8, 0.2
    seal.scan_environment = lambda *_: {}  # type: ignore[assignment]
    store = Store.open(folder / "store", create=True)
    command = parse_command((sys.executable, "job.py"), str(folder / "job"), dict(os.environ))
    os.chdir(folder / "job")
    config = Config(audit=AuditConfig(budget="0"))
    key = SigningKey(secrets.token_bytes(32))
    return supervise(command, store, config, key, watcher=lambda _: Engine(all_detectors())).exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
