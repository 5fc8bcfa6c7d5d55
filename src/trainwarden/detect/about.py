"""A finding about one step of one rank, with its place taken from the entry that shows it."""

from __future__ import annotations

from typing import Protocol

from trainwarden.model import Confidence, Finding, Severity, Stage


class Placed(Protocol):
    """An entry that names attempt, rank and step."""

    @property
    def attempt(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def step(self) -> int: ...


def about(
    detector: str,
    stage: Stage,
    evidence: tuple[int, ...],
    entry: Placed,
    severity: Severity,
    confidence: Confidence,
    seen: str,
    expected: str,
    benign: tuple[str, ...],
    *,
    ranks: tuple[int, ...] = (),
    tensor: str = "",
) -> Finding:
    """A finding at the place of `entry`; `ranks` where it is about others than the entry's own."""
    return Finding(
        detector=detector,
        severity=severity,
        confidence=confidence,
        seen=seen,
        expected=expected,
        step=entry.step,
        attempt=entry.attempt,
        ranks=ranks or (entry.rank,),
        stage=stage,
        tensor=tensor,
        evidence=evidence,
        benign=benign,
        wall_ns=getattr(entry, "wall_ns", 0),
    )
