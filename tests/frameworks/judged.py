"""Of the jobs of `Trainer`, accelerate, Lightning and PEFT: how one is attacked, and a replay that starts in one way."""

from __future__ import annotations

from guarded_job import Job

from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import Result, Start, replay

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


def replayed(job: Job, recorded: Recorded, first: int, last: int, kind: Start) -> Result:
    """A replay of these steps that starts in this way; it must match bit for bit, and each of them."""
    result = replay(recorded, job.room, 0, first, last, kind)  # type: ignore[arg-type]
    assert result.divergence is None, (result.divergence, result.problems)
    assert set(range(first, last + 1)) <= set(result.matched), (result.matched, result.problems)
    assert result.resumed
    return result
