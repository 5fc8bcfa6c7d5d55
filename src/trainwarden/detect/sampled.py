"""A drawn (step, rank) unit, replayed while the run goes on, is not what the record says.

Rules
-----
* A verdict (`Diverged`) beside it makes it a finding of high severity. A difference that only a substituted state shows
  is told as low: what a script keeps in variables of its own looks just like it.
* A state that leads elsewhere although an exact replay matches is told once, as low: the state, or the script, is such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import (
    Confidence,
    Detail,
    Entry,
    Finding,
    Severity,
    Stage,
    UnitAudited,
    UnitResult,
)

_VARIABLES = "the script keeps state in variables of its own (a counter, a curriculum) that a substitution cannot give"


class SampledUnits:
    """Tells of every unit that differs."""

    id = "sampled-audit"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, UnitAudited) or entry.at is None:
            return ()
        match entry.result:
            case UnitResult.DIVERGED:
                return (self._diverged(index, entry),)
            case UnitResult.DIFFERS:
                return (self._differs(index, entry),)
            case UnitResult.MATCHED:
                return (self._state(index, entry),)
            case _:
                return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _diverged(self, index: int, entry: UnitAudited) -> Finding:
        at = entry.at
        place = f"step {at.step}, rank {at.rank}: {at.words}" if at else f"step {entry.step}, rank {entry.rank}"
        return _finding(
            index,
            entry,
            Severity.HIGH,
            Confidence.HIGH,
            f"Two clean replays from sealed inputs agree with each other and differ from the record at {place}.",
            "A replay from sealed inputs computes what the rank recorded.",
            ("faulty memory or a faulty processor on the training host",),
        )

    def _differs(self, index: int, entry: UnitAudited) -> Finding:
        at = entry.at
        what = at.words if at else "it"
        why = entry.reasons[-1] if entry.reasons else "none was tried"
        return _finding(
            index,
            entry,
            Severity.LOW,
            Confidence.LOW,
            f"From its kept state, step {entry.step} of rank {entry.rank} comes out otherwise in {what}; "
            f"no exact replay has confirmed it ({why}).",
            "A replay from the kept state computes what the rank recorded.",
            (_VARIABLES, "the job does not replay bit for bit (trainwarden doctor says)"),
        )

    def _state(self, index: int, entry: UnitAudited) -> Finding:
        before = entry.at is not None and entry.at.before
        seen = (
            f"The state kept for the replay of step {entry.step} is not the recorded one."
            if before
            else f"Step {entry.step} of rank {entry.rank} replays exactly, but not from its kept state."
        )
        return _finding(
            index,
            entry,
            Severity.LOW,
            Confidence.MEDIUM if before else Confidence.LOW,
            f"{seen} From now on units are only replayed from the start.",
            "A kept state leads to what was recorded.",
            (_VARIABLES, "the disk lost or altered the state"),
        )


def _finding(
    index: int,
    entry: UnitAudited,
    severity: Severity,
    confidence: Confidence,
    seen: str,
    expected: str,
    benign: tuple[str, ...],
) -> Finding:
    at = entry.at
    return Finding(
        detector=SampledUnits.id,
        severity=severity,
        confidence=confidence,
        seen=seen,
        expected=expected,
        step=at.step if at else entry.step,
        attempt=entry.attempt,
        ranks=(at.rank if at else entry.rank,),
        stage=at.stage if at else None,
        tensor=at.tensor if at else "",
        evidence=tuple(i for i in (entry.draw, index) if i >= 0),
        benign=benign,
        wall_ns=entry.wall_ns,
    )
