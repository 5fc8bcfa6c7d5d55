"""Something that should have been recorded was not.

Told are the gaps that ranks and supervisor state themselves, holes in a rank's sequence numbers, a rank that ended
in order without a goodbye (its recorder was silenced), a log without an end, and a run without a single step. A
gap accuses nobody; it says which part of the run has no evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainwarden.model import (
    Confidence,
    Detail,
    Entry,
    Finding,
    Gap,
    ProcessExited,
    ProcessStarted,
    RunEnded,
    Severity,
    Stage,
    StepRecord,
)

_NUMBERS = re.compile(r"\d+")


@dataclass
class _Rank:
    started: int
    last_index: int = -1
    seq: int = -1
    step: int = -1


class Gaps:
    """Keeps count of each rank's records."""

    id = "gaps"

    def __init__(self) -> None:
        self._ranks: dict[tuple[int, int], _Rank] = {}
        self._records = 0
        self._ended = False
        self._reasons: set[tuple[int, int, str]] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case ProcessStarted():
                self._ranks[entry.attempt, entry.rank] = _Rank(index)
                return ()
            case StepRecord():
                return self._record(index, entry)
            case Gap():
                return self._gap(index, entry)
            case ProcessExited(rank=rank) if rank >= 0:
                return self._exited(index, entry)
            case RunEnded():
                return self._end(index, entry)
            case _:
                return ()

    def finish(self) -> Iterable[Finding]:
        if self._ended:
            return ()
        seen = "The log has no end: its supervisor was killed or could not write."
        return (_finding(Severity.MEDIUM, seen, "The last thing a supervisor logs is the run's end."),)

    def _record(self, index: int, entry: StepRecord) -> Iterable[Finding]:
        self._records += 1
        rank = self._ranks.setdefault((entry.attempt, entry.rank), _Rank(index))
        missing = entry.seq - rank.seq - 1
        before, last_step = rank.last_index, rank.step
        rank.last_index, rank.seq, rank.step = index, entry.seq, entry.step
        if missing <= 0:
            return ()
        seen = f"{missing} records of rank {entry.rank} are missing before step {entry.step} (last seen: {last_step})."
        return (
            _finding(
                Severity.MEDIUM,
                seen,
                "A rank's records follow each other without holes.",
                step=entry.step,
                attempt=entry.attempt,
                ranks=(entry.rank,),
                evidence=tuple(i for i in (before, index) if i >= 0),
                benign=("the supervisor could not keep up or its disk was full",),
                wall_ns=entry.wall_ns,
            ),
        )

    def _gap(self, index: int, entry: Gap) -> Iterable[Finding]:
        cause = (entry.attempt, entry.rank, _NUMBERS.sub("#", entry.reason)[:200])
        if cause in self._reasons and len(self._reasons) < 10_000:
            return ()
        self._reasons.add(cause)
        who = f"of rank {entry.rank} " if entry.rank >= 0 else ""
        return (
            _finding(
                Severity.LOW,
                f"Something {who}was not recorded: {entry.reason}",
                "Everything that a run does is recorded.",
                step=entry.step,
                attempt=entry.attempt,
                ranks=(entry.rank,) if entry.rank >= 0 else (),
                evidence=(index,),
                benign=("a full disk, a slow host, or something that the recorder does not support",),
            ),
        )

    def _exited(self, index: int, entry: ProcessExited) -> Iterable[Finding]:
        if entry.goodbye or entry.stopping or not entry.known or entry.code != 0:
            return ()
        return (
            _finding(
                Severity.MEDIUM,
                f"Rank {entry.rank} of attempt {entry.attempt} ended in order, but its recorder never said goodbye.",
                "A rank that ends in order says goodbye and how many records it sent.",
                attempt=entry.attempt,
                ranks=(entry.rank,),
                evidence=(index,),
                benign=("the script ends with os._exit, which skips every exit handler",),
                wall_ns=entry.wall_ns,
            ),
        )

    def _end(self, index: int, entry: RunEnded) -> Iterable[Finding]:
        self._ended = True
        if entry.records != self._records:
            seen = f"The run's end counts {entry.records} records, the log holds {self._records}."
            return (_finding(Severity.HIGH, seen, "Both numbers are equal.", evidence=(index,)),)
        if self._records:
            return ()
        return (
            _finding(
                Severity.LOW,
                "The command ended without a single optimizer step: nothing of it was recorded.",
                "A guarded command trains.",
                evidence=(index,),
                benign=("it is no training command, or it failed before its first step",),
                wall_ns=entry.wall_ns,
            ),
        )


def _finding(
    severity: Severity,
    seen: str,
    expected: str,
    *,
    step: int = -1,
    attempt: int = -1,
    ranks: tuple[int, ...] = (),
    evidence: tuple[int, ...] = (),
    benign: tuple[str, ...] = (),
    wall_ns: int = 0,
) -> Finding:
    return Finding(
        detector=Gaps.id,
        severity=severity,
        confidence=Confidence.HIGH,
        seen=seen,
        expected=expected,
        step=step,
        attempt=attempt,
        ranks=ranks,
        evidence=evidence,
        benign=benign,
        wall_ns=wall_ns,
    )
