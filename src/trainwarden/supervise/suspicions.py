"""What a connection by itself gives cause to suspect: findings of `recorder`, which no detector raises.

They are of what was said on a socket, before anything of it is an entry of the log: the ledger gives them the newest
entries of their rank as evidence.
"""

from __future__ import annotations

import time

from trainwarden.model import Confidence, Finding, Severity
from trainwarden.supervise.rank import Rank


def stranger(error: str) -> Finding:
    """A process that does not belong to the run spoke on the socket."""
    return Finding(
        detector="recorder",
        severity=Severity.HIGH,
        confidence=Confidence.MEDIUM,
        seen=f"A process outside of this run tried to speak to its recorder: {error}.",
        expected="Only processes started by the guarded command send records.",
        benign=("a tool of the same user that opens every socket it finds",),
        wall_ns=time.time_ns(),
    )


def twin(rank: Rank, other: int) -> Finding:
    """The rank joined while process `other` still is that rank."""
    return _of(
        rank,
        f"Process {rank.pid} joined as rank {rank.rank} while process {other} has that rank and still runs.",
        "Each rank of a run is one process at a time.",
        "the command trains several models at once, or trains in a subprocess of a training process",
        confidence=Confidence.MEDIUM,
        step=-1,
    )


def silenced(rank: Rank) -> Finding:
    """The rank said goodbye as no recorder does."""
    return _of(
        rank,
        f"Rank {rank.rank} said goodbye without a last look at the code in its memory: its recorder was switched "
        f"off after {rank.records} records. What this process did since then is not recorded.",
        "A recorder tells of the code in its process once more before its goodbye.",
    )


def unrecorded(rank: Rank, updates: int) -> Finding:
    """The rank's optimizer counts `updates` after its last record."""
    return _of(
        rank,
        f"Rank {rank.rank} made {updates} updates after its last record, as its optimizer counts them: its "
        f"recorder was switched off after {rank.records} records, and on again before the end.",
        "Every update of a recorded optimizer is recorded.",
        "the script loads a later state into the optimizer after its last update",
    )


def _of(
    rank: Rank,
    seen: str,
    expected: str,
    *benign: str,
    confidence: Confidence = Confidence.HIGH,
    step: int | None = None,
) -> Finding:
    return Finding(
        detector="recorder",
        severity=Severity.MEDIUM,
        confidence=confidence,
        seen=seen,
        expected=expected,
        step=rank.reached if step is None else step,
        attempt=rank.attempt,
        ranks=(rank.rank,),
        benign=benign,
        wall_ns=time.time_ns(),
    )
