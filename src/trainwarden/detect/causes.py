"""Findings of one cause are one alert (pure).

A finding joins an alert when what it says overlaps with what the alert holds already:

* *step*: same attempt, a step and a stage or tensor, and a step at most one from where the alert began. A change
  at one stage shows at the stages after it, in other tensors, and at the start of the next step.
* *going on*: the same detector, attempt, stage and sentence but for its numbers, within `GOES_ON` steps of the last.
* *place*: it names a file that the alert names too.
* *burst*: the same detector within `BURST_NS`, about other files or ranks: ten files by one writer, two ranks killed.
* *end*: the same attempt and rank within `BURST_NS`, of detectors that watch processes.

Rules
-----
* Two causes taken for one are worse than one told twice, but neither loses anything: the log has each finding.
* The alert's sentence is that of the finding at the earliest stage, the most severe among these.
* Bounded: the newest `OPEN` alerts take findings in, and of each the first `KEPT` indexes and names are kept.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainwarden.model import STAGES, Alert, Confidence, Finding, Severity

OPEN = 64
KEPT = 64
GOES_ON = 8
BURST_NS = 10_000_000_000
_BENIGN = 8
_FILE = re.compile(r"(?<![\w/])/[^\s,;:()'\"]*[^\s,;:()'\".]")
_WRITER = ", by process "
_NUMBERS = re.compile(r"\d+")
_PROCESSES = {"kills", "gaps", "stalls", "recorder"}
_SEVERITIES = tuple(Severity)
_CONFIDENCES = tuple(Confidence)


@dataclass
class _Cause:
    number: int
    findings: list[Finding] = field(default_factory=list)  # the first KEPT
    indexes: list[int] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    sentences: dict[tuple[object, ...], int] = field(default_factory=dict)  # → the last step of it
    detectors: list[str] = field(default_factory=list)
    ranks: set[int] = field(default_factory=set)
    benign: list[str] = field(default_factory=list)
    count: int = 0
    severity: Severity = Severity.INFO
    confidence: Confidence = Confidence.LOW
    first_step: int = -1
    last_step: int = -1
    last_ns: int = 0

    def add(self, index: int, finding: Finding) -> None:
        self.count += 1
        if len(self.findings) < KEPT:
            self.findings.append(finding)
            self.indexes.append(index)
        _keep(self.files, _files(finding))
        _keep(self.ranks, finding.ranks)
        if len(self.sentences) < KEPT or _sentence(finding) in self.sentences:
            self.sentences[_sentence(finding)] = max(finding.step, self.sentences.get(_sentence(finding), -1))
        self.detectors += [finding.detector] if finding.detector not in self.detectors else []
        self.benign += [b for b in finding.benign if b not in self.benign]
        del self.benign[_BENIGN:]
        self.severity = max(self.severity, finding.severity, key=_SEVERITIES.index)
        self.confidence = max(self.confidence, finding.confidence, key=_CONFIDENCES.index)
        if finding.step >= 0:
            self.first_step = finding.step if self.first_step < 0 else min(self.first_step, finding.step)
            self.last_step = max(self.last_step, finding.step)
        self.last_ns = max(self.last_ns, finding.wall_ns)

    def takes(self, finding: Finding) -> bool:
        """Is this the cause of `finding` too?"""
        if not self.files.isdisjoint(_files(finding)):
            return True
        if (last := self.sentences.get(_sentence(finding))) is not None and finding.step - last <= GOES_ON:
            return finding.step >= 0 or self._at_once(finding)
        return self._same_step(finding) or self._same_burst(finding) or self._same_end(finding)

    def _same_step(self, finding: Finding) -> bool:
        if finding.step < 0 or not _is_of_state(finding):
            return False
        begun = next((f for f in self.findings if f.step >= 0 and _is_of_state(f)), None)
        return begun is not None and begun.attempt == finding.attempt and abs(finding.step - self.first_step) <= 1

    def _same_burst(self, finding: Finding) -> bool:
        placed = bool(_files(finding)) if finding.step < 0 else False
        return finding.detector in self.detectors and placed and bool(self.files) and self._at_once(finding)

    def _same_end(self, finding: Finding) -> bool:
        same = _PROCESSES & set(self.detectors) and finding.detector in _PROCESSES
        if not same or self.findings[0].attempt != finding.attempt or not self._at_once(finding):
            return False
        return finding.detector in self.detectors or not self.ranks.isdisjoint(finding.ranks)

    def _at_once(self, finding: Finding) -> bool:
        return abs(finding.wall_ns - self.last_ns) <= BURST_NS

    def alert(self) -> Alert:
        return Alert(
            id=f"a{self.number}",
            severity=self.severity,
            confidence=self.confidence,
            title=self._title(),
            first=self.findings[0],
            findings=tuple(self.indexes),
            count=self.count,
            detectors=tuple(self.detectors),
            ranks=tuple(sorted(self.ranks)),
            first_step=self.first_step,
            last_step=self.last_step,
            benign=tuple(self.benign),
        )

    def _title(self) -> str:
        lead = min(self.findings, key=lambda f: (_stage(f), -_SEVERITIES.index(f.severity)))
        others = [d for d in self.detectors if d != lead.detector]
        seen = lead.seen.rstrip()
        if others:
            return f"{seen} Seen also by {', '.join(others)}."
        return f"{seen} And {self.count - 1} more of this kind." if self.count > 1 else seen


class Causes:
    """Sorts the findings of one run, in the order of its log, into alerts."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, _Cause] = OrderedDict()  # the one that grew last is the last
        self._begun = 0

    def add(self, index: int, finding: Finding) -> Alert:
        """The alert that the finding at log `index` belongs to, as it is now."""
        cause = next((c for c in reversed(self._open.values()) if c.takes(finding)), None)
        if cause is None:
            self._begun += 1
            cause = self._open[self._begun] = _Cause(self._begun)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(cause.number)
        cause.add(index, finding)
        return cause.alert()


def alerts_of(findings: Iterable[tuple[int, Finding]]) -> list[Alert]:
    """The alerts of a whole log, in the order in which they began; findings of severity info make none."""
    causes, found = Causes(), dict[str, Alert]()
    for index, finding in findings:
        if finding.severity is not Severity.INFO:
            alert = causes.add(index, finding)
            found[alert.id] = alert
    return list(found.values())


def _files(finding: Finding) -> set[str]:
    """The files that it is about: what stands after the writer is the writer's own program."""
    return set(_FILE.findall(finding.seen.partition(_WRITER)[0]))


def _sentence(finding: Finding) -> tuple[object, ...]:
    return (finding.detector, finding.attempt, finding.stage, _NUMBERS.sub("#", finding.seen)[:400])


def _is_of_state(finding: Finding) -> bool:
    return finding.stage is not None or bool(finding.tensor)


def _stage(finding: Finding) -> int:
    return STAGES.index(finding.stage) if finding.stage is not None else len(STAGES)


def _keep(kept: set[object] | set[str] | set[int], new: Iterable[object]) -> None:
    for item in new:
        if len(kept) < KEPT:
            kept.add(item)  # type: ignore[arg-type]
