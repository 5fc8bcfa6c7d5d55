"""What is asked of a framework's job: honest, it is recorded whole and replays; attacked, it is located."""

from __future__ import annotations

from guarded_job import Job

from trainwarden.audit.engine import Audit
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import Result, Start, replay
from trainwarden.model import Diverged, Finding, Gap, Location, Matched, Severity, StepRecord

EVIL = "evil.txt"
"""Lies beside the script of an attacked job and not beside its replay: pass, rank, end of a parameter's name."""

FOOTHOLD = """
import os, pathlib
def foothold(model):
    evil = pathlib.Path("evil.txt")
    if not evil.exists(): return
    at, rank, tensor = evil.read_text().split(); passes = []
    def turned(gradient):
        passes.append(1)
        return -gradient if len(passes) == int(at) + 1 else gradient
    if int(rank) == int(os.environ.get("RANK", 0)):
        dict((n, p) for n, p in model.named_parameters() if n.endswith(tensor)).popitem()[1].register_hook(turned)
"""
"""Turns one gradient around on one rank in one pass, in memory."""


def recorded_whole(recorded: Recorded) -> None:
    """Nothing was missed, and nothing above a low suspicion was told while the honest job ran."""
    assert not [e.reason for e in recorded.entries if isinstance(e, Gap)]
    found = [e for e in recorded.entries if isinstance(e, Finding)]
    assert not [f for f in found if f.severity not in (Severity.INFO, Severity.LOW)], found


def replayed(job: Job, recorded: Recorded, first: int, last: int, kind: Start) -> Result:
    """A replay of these steps that starts in this way; it must match bit for bit, and each of them."""
    result = replay(recorded, job.room, 0, first, last, kind)  # type: ignore[arg-type]
    assert result.divergence is None, (result.divergence, result.problems)
    assert set(range(first, last + 1)) <= set(result.matched), (result.matched, result.problems)
    assert result.resumed
    return result


def all_matched(job: Job, recorded: Recorded) -> None:
    """A full audit of the job: each segment matches."""
    said = Audit(recorded, job.room).run(recorded.history.segments)  # type: ignore[arg-type]
    assert said
    assert all(isinstance(v, Matched) for v in said), said


def located(job: Job, recorded: Recorded) -> Location:
    """Where an audit of an attacked job finds the difference; the segments before it match."""
    *before, last = Audit(recorded, job.room).run(recorded.history.segments, first_only=True)  # type: ignore[arg-type]
    assert isinstance(last, Diverged), last
    assert all(isinstance(v, Matched) for v in before), before
    return last.at


def steps(recorded: Recorded) -> list[StepRecord]:
    return [e for e in recorded.entries if isinstance(e, StepRecord)]
