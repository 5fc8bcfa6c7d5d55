"""A clock was set, runs away, or is not the one that a rank's records show.

Times in a log order nothing (the log itself does), but evidence from other sources is joined by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import ClockShifted, Confidence, Detail, Entry, Finding, Severity, Stage

_BENIGN = {
    "host": ("time synchronisation set a clock that was wrong", "a virtual machine was moved or resumed"),
    "slept": ("the host was suspended, or a virtual machine paused",),
    "rank": ("the job fakes its clock on purpose", "the watcher was far behind"),
}
_SMALL = 2_000_000_000  # ns that time synchronisation sets a clock by without anybody noticing


class Clocks:
    """Tells of every shift that the watcher saw."""

    id = "clock"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        return (_finding(index, entry),) if isinstance(entry, ClockShifted) else ()

    def finish(self) -> Iterable[Finding]:
        return ()


def _finding(index: int, entry: ClockShifted) -> Finding:
    seconds = abs(entry.by_ns) / 1e9
    way = "forward" if entry.by_ns > 0 else "back"
    if entry.kind == "rank":
        claims = "ahead of" if entry.by_ns > 0 else "behind"
        seen = f"Rank {entry.rank} claims times that are {seconds:.3g} s {claims} the clock of the host it runs on."
    elif entry.kind == "slept":
        seen = f"The host stood still for {seconds:.3g} s."
    else:
        seen = f"The host's wall clock was set {way} by {seconds:.3g} s within {entry.over_ns / 1e9:.3g} s."
    if entry.kind == "rank":
        severity = Severity.MEDIUM
    else:
        severity = Severity.INFO if entry.kind == "slept" or seconds * 1e9 < _SMALL else Severity.LOW
    return Finding(
        detector=Clocks.id,
        severity=severity,
        confidence=Confidence.MEDIUM if entry.kind == "rank" else Confidence.HIGH,
        seen=seen,
        expected="Wall clocks go on evenly during a run, and a rank's is that of its host.",
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,) if entry.rank >= 0 else (),
        evidence=(index,),
        benign=_BENIGN.get(entry.kind, ()),
        wall_ns=entry.wall_ns,
    )
