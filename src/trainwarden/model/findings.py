"""Suspicions, which accuse nobody and prove nothing by themselves."""

from __future__ import annotations

from enum import StrEnum

from trainwarden.model.base import Noun, Stage


class Severity(StrEnum):
    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Confidence(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Finding(Noun, tag="finding"):
    """A suspicion raised by one detector. It accuses nobody and proves nothing by itself."""

    detector: str
    severity: Severity
    confidence: Confidence
    seen: str  # one plain sentence: what was seen
    expected: str  # one plain sentence: what was expected
    step: int = -1
    attempt: int = -1
    ranks: tuple[int, ...] = ()
    stage: Stage | None = None
    tensor: str = ""
    evidence: tuple[int, ...] = ()  # log indexes
    benign: tuple[str, ...] = ()  # benign explanations not yet excluded
    wall_ns: int = 0
