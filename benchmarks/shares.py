"""What each observer costs in a rank, and each detector in the watcher.

Observers: a recorder that reads the thread's CPU clock around every call of one (`TRAINWARDEN_RECORDER` puts it in the
live one's place, in the benchmark only). Detectors: the log of that run, fed again to each detector alone, with the
same clock around it. Given in microseconds a step; a share is of one step of one rank.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainwarden.demo import Demo


def measure(demo: Demo, command: Sequence[str]) -> dict[str, dict[str, float]]:
    """Run a command with the clock on; microseconds a step by observer and by detector."""
    shutil.rmtree(demo.job / "bench", ignore_errors=True)
    library = demo.job / "lib"  # not this repository itself: a folder on PYTHONPATH is sealed whole
    library.mkdir(exist_ok=True)
    (library / "shares.py").write_text(Path(__file__).read_text(encoding="utf-8"))
    short = [*command]
    short[short.index("--steps") + 1] = "24"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shares"
        env = demo.variables | {
            "TRAINWARDEN_RECORDER": "shares:timed",
            "PYTHONPATH": str(library),
            "BENCH_OUT": str(out),
        }
        cli = [sys.executable, "-m", "trainwarden.cli", "run", "--on-environment-change", "alert", "--"]
        subprocess.run([*cli, *short], cwd=demo.job, env=env, check=True, stdout=sys.stderr)
        ranks = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("shares.rank*"))]
    names = sorted({name for r in ranks for name in r["spent"]})
    spent = {n: statistics.mean(r["spent"].get(n, 0) / r["steps"] for r in ranks) / 1e3 for n in names}
    return {"observers": {n: round(us, 1) for n, us in spent.items()}, "detectors": of_detectors(demo)}


def of_detectors(demo: Demo) -> dict[str, float]:
    """Microseconds that each detector takes for a step record and what comes with it, over the last run's log."""
    from trainwarden.detect import all_detectors
    from trainwarden.model import StepRecord

    entries = demo.case("last").entries
    records = sum(isinstance(e, StepRecord) for e in entries)
    found = {}
    for detector in all_detectors():
        begin = time.thread_time_ns()
        for index, entry in enumerate(entries):
            list(detector.observe(index, entry, None))
        spent = time.thread_time_ns() - begin
        found[detector.id] = round(spent / max(1, records) / 1e3, 1)
    return found


def timed() -> Any:
    """A recorder that measures what its observers take, and writes it when the process ends."""
    from trainwarden.record.observers import Observer
    from trainwarden.record.recorder import Recorder

    spent: dict[str, int] = {}

    class Timed(Recorder):
        def look_on(self, look: Callable[[Observer], None]) -> None:
            everyone = self.observers
            for observer in tuple(everyone):
                self.observers = [observer]
                begin = time.thread_time_ns()
                super().look_on(look)
                spent[observer.name] = spent.get(observer.name, 0) + time.thread_time_ns() - begin
                if not self.observers:
                    everyone.remove(observer)
            self.observers = everyone

        def write(self) -> None:
            with open(f"{os.environ['BENCH_OUT']}.rank{self.rank}", "w", encoding="utf-8") as file:
                json.dump({"spent": spent, "steps": max(1, self.seq)}, file)

    recorder = Timed()
    atexit.register(recorder.write)
    return recorder
