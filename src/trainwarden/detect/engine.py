"""Feeds every entry to every detector, and tells repetitions of one finding once.

Rules
-----
* A finding is passed on the first time. The same one again (same detector, attempt, ranks, stage, tensor, and
  sentence but for the step) is counted, and the count is told when the log ends.
* A detector that fails is switched off, and that is a finding: an attacker who can crash a detector does not
  get silence for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainwarden.detect.interface import Detector
from trainwarden.model import Confidence, Detail, Entry, Finding, Severity, Stage

MAX_GROUPS = 1_000
_KEPT_EVIDENCE = 16
_STEP = re.compile(r"\bsteps? \d+( to \d+)?")

_Cause = tuple[object, ...]


@dataclass
class _Group:
    first: Finding
    repeats: int = 0
    last_step: int = -1
    evidence: tuple[int, ...] = ()


class Engine:
    """Runs detectors over the entries of one log."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._detectors = list(detectors)
        self._groups: dict[_Cause, _Group] = {}
        self._dropped = 0

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> list[Finding]:
        """Findings that this entry raises, without repetitions."""
        if isinstance(entry, Finding):
            return []
        return [f for d in list(self._detectors) for f in self._ask(d, index, entry, detail) if self._is_new(f)]

    def finish(self) -> list[Finding]:
        """What detectors say when the log has ended, and how often earlier findings were repeated."""
        last = [f for d in self._detectors for f in d.finish() if self._is_new(f)]
        return last + list(self._repetitions())

    def _ask(
        self, detector: Detector, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None
    ) -> Iterable[Finding]:
        try:
            return list(detector.observe(index, entry, detail))
        except Exception as e:  # noqa: BLE001  recorder boundary: hostile entries may not end the recording
            self._detectors.remove(detector)
            return [_failed(detector, index, e)]

    def _is_new(self, finding: Finding) -> bool:
        cause: _Cause = (
            finding.detector,
            finding.attempt,
            finding.ranks,
            finding.stage,
            finding.tensor,
            _STEP.sub("step", finding.seen),
        )
        group = self._groups.get(cause)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                self._dropped += 1
                return False
            self._groups[cause] = _Group(finding)
            return True
        group.repeats += 1
        group.last_step = max(group.last_step, finding.step)
        group.evidence = (group.evidence + finding.evidence)[-_KEPT_EVIDENCE:]
        return False

    def _repetitions(self) -> Iterator[Finding]:
        for group in self._groups.values():
            if group.repeats:
                yield _repeated(group)
        if self._dropped:
            yield Finding(
                detector="engine",
                severity=Severity.MEDIUM,
                confidence=Confidence.HIGH,
                seen=f"{self._dropped} further findings of other causes were not told.",
                expected=f"A run raises findings of fewer than {MAX_GROUPS} causes.",
            )


def _repeated(group: _Group) -> Finding:
    first = group.first
    times = "once more" if group.repeats == 1 else f"{group.repeats} more times"
    until = f", last at step {group.last_step}" if group.last_step >= 0 else ""
    return Finding(
        detector=first.detector,
        severity=first.severity,
        confidence=first.confidence,
        seen=f"The same was seen {times}{until}: {first.seen}",
        expected=first.expected,
        step=group.last_step,
        attempt=first.attempt,
        ranks=first.ranks,
        stage=first.stage,
        tensor=first.tensor,
        evidence=group.evidence,
        benign=first.benign,
    )


def _failed(detector: Detector, index: int, error: Exception) -> Finding:
    return Finding(
        detector=detector.id,
        severity=Severity.HIGH,
        confidence=Confidence.LOW,
        seen=f"The detector failed at entry {index} and is switched off: {type(error).__name__}: {error}",
        expected="A detector takes in any entry.",
        evidence=(index,),
        benign=("a defect of TrainWarden",),
    )
