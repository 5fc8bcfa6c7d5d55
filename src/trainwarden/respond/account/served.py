"""What serving was given in the window, by the gate's log, and whether it stands on an altered step (pure).

A name leads to a checkpoint from its promotion, or a rollback to it, until the next. The clearance of the checkpoint
names the runs, attempts and steps that it stands on; a run that the account has not read may be altered.

Trust: the gate's keeper. What serving loaded past the gate is in no log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainwarden.model import CheckpointCleared, GateEntry, Promoted, RolledBack
from trainwarden.respond.account.columns import Job
from trainwarden.respond.account.lines import Range, Served, exactly

_NS = 1e9


def served_in(entries: Sequence[GateEntry], jobs: Sequence[Job], since: float, until: float) -> tuple[Served, ...]:
    """Every checkpoint that a name led to from `since` to `until` (seconds), once for each name."""
    clearances = {e.digest: e for e in entries if isinstance(e, CheckpointCleared)}
    found: dict[tuple[str, str], Served] = {}
    turns = [e for e in entries if isinstance(e, Promoted | RolledBack)]
    for i, turn in enumerate(turns):
        over = next((e.wall_ns / _NS for e in turns[i + 1 :] if e.name == turn.name), math.inf)
        if turn.wall_ns / _NS < until and over > since:
            tainted = _tainted(clearances.get(turn.digest), jobs)
            found[turn.name, turn.digest] = Served(name=turn.name, digest=turn.digest, tainted=tainted)
    return tuple(found.values())


def _tainted(clearance: CheckpointCleared | None, jobs: Sequence[Job]) -> Range:
    """Does it stand on an altered step, as 0 or 1: for certain, most likely, and possibly."""
    if clearance is None or not clearance.runs:
        return Range(0, 0, 1)
    unknown = False
    for seen in clearance.runs:
        job = next((j for j in jobs if seen.run in j.runs), None)
        if job is None:
            unknown = True
            continue
        base = job.offsets.get(seen.run, 0)
        if any(steps > job.tainted.get(int(attempt) + base, steps) for attempt, steps in seen.until.items()):
            return exactly(1)
    return Range(0, 0, float(unknown))
