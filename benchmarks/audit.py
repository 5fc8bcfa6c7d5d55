"""How long an audit takes against the steps it replays, and an explanation: read from a run of the demo."""

from __future__ import annotations

from rich.console import Console

from benchmarks.machine import write
from trainwarden.commands.demo import default_folder
from trainwarden.demo import Demo, tell
from trainwarden.model import Diverged, Explanation, Matched, ProcessStarted, StepRecord


def main() -> None:
    demo = Demo(default_folder(), Console(stderr=True))
    result = tell(demo)
    attacked = demo.case(result["run"])
    recovered = demo.case(result["recovered_run"])
    explained = next(e for e in attacked.entries if isinstance(e, Explanation))
    verdicts = [v for v in recovered.entries if isinstance(v, Matched | Diverged)]
    replayed = max(v.seconds for v in verdicts)  # one replay goes through all of them
    starts = [e.wall_ns for e in recovered.entries if isinstance(e, ProcessStarted)]
    ends = [e.wall_ns for e in recovered.entries if isinstance(e, StepRecord)]
    original = (max(ends) - min(starts)) / 1e9
    summary = {
        "audit_ratio": round(replayed / original, 3),
        "explain_s": round(explained.seconds, 1),
        "demo_s": result["seconds"],
        "replayed_s": round(replayed, 1),
        "original_s": round(original, 1),
    }
    print(write("audit", summary, [result]))


if __name__ == "__main__":
    main()
