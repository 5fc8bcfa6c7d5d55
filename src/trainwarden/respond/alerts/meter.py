"""Counts what a run does and what is found in it, for those who watch many runs by numbers.

Rules
-----
* Counting costs a few additions an entry, and nothing is kept of an entry.
* The team's numbers have no labels that tell which detector raised a finding: severity alone (see `words`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from trainwarden.model import Diverged, Entry, Finding, Gap, Matched, StepRecord
from trainwarden.respond.alerts.words import Audience
from trainwarden.supervise.responding import Told


@dataclass(frozen=True)
class Metric:
    """One number. `name` without the unit's suffix of a counter (`_total`)."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: Mapping[str, str]
    value: float


class Meter:
    """The numbers of one run; written by the log's writer and the responder, read by any thread."""

    def __init__(self) -> None:
        self._run = ""
        self._records = self._gaps = self._matched = self._diverged = 0
        self._last_step, self._last_ns = -1, 0
        self._findings: Counter[tuple[str, str]] = Counter()
        self._alerts: Counter[tuple[str, str]] = Counter()
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def open(self, run: str) -> None:
        """The run that is counted."""
        self._run = run

    def seen(self, _: int, entry: Entry) -> None:
        """Count one entry of the log."""
        match entry:
            case StepRecord():
                self._records += 1
                self._last_step, self._last_ns = max(self._last_step, entry.step), max(self._last_ns, entry.wall_ns)
            case Finding():
                with self._lock:
                    self._findings[entry.detector, entry.severity.value] += 1
            case Gap():
                self._gaps += 1
            case Matched():
                self._matched += entry.coverage.records
            case Diverged():
                self._diverged += 1
            case _:
                pass

    def told(self, told: Told) -> None:
        """Count an alert once for each action that it led to."""
        if not told.update:
            with self._lock:
                self._alerts[told.alert.severity.value, told.action.value] += 1

    def metrics(self, audience: Audience) -> Iterator[Metric]:
        """Every number, as far as `audience` may see it."""
        with self._lock:
            findings, alerts = dict(self._findings), dict(self._alerts)
        run = {"run": self._run}
        by: Counter[tuple[tuple[str, str], ...]] = Counter()
        for (detector, severity), count in findings.items():
            shown = (("detector", detector),) if audience == "security" else ()
            by[(*shown, ("severity", severity))] += count
        for labels, count in by.items():
            yield Metric("trainwarden_findings", "counter", "Findings.", run | dict(labels), count)
        for (severity, action), count in alerts.items():
            labels_of = run | {"severity": severity, "action": action}
            yield Metric("trainwarden_alerts", "counter", "Alerts: findings of one cause.", labels_of, count)
        yield Metric(
            "trainwarden_step_records", "counter", "Step records in the log, of all ranks.", run, self._records
        )
        yield Metric("trainwarden_gaps", "counter", "Gaps: what was not recorded.", run, self._gaps)
        yield Metric("trainwarden_last_step", "gauge", "Highest step in the log, -1 for none.", run, self._last_step)
        seconds = self._last_ns / 1e9
        yield Metric("trainwarden_last_step_seconds", "gauge", "When it ended, Unix time; 0 for none.", run, seconds)
        share = self._matched / self._records if self._records else 0.0
        text = "Share of step records that replays have reproduced so far."
        yield Metric("trainwarden_audit_coverage", "gauge", text, run, min(1.0, share))
