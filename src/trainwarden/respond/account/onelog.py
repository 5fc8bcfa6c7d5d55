"""One run's log as part of a job: rows, spells, ends, what is tainted and what nobody replayed (pure).

Rules
-----
* Several optimizers' records of one step are one row. A rank whose end nobody saw ended with its last record.
* Sleep counts where it was called through code that the seal does not hold, or at a place that was found suspicious: a
  pause that a script makes at every step is its own.
* A step on which replays disagree taints nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Container, Iterator, Sequence

from trainwarden.detect.frames import caller
from trainwarden.detect.sleep import INSIDE, Sleeps
from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    Diverged,
    Entry,
    Finding,
    Idled,
    Inconclusive,
    Matched,
    ProcessExited,
    ProcessStarted,
    Recovered,
    Segment,
    Severity,
    Sleep,
    StackFrame,
    Standing,
    StepRecord,
)
from trainwarden.respond.account.columns import Cause, Job, Rows, Spell, rows_of
from trainwarden.standing import collect, judge, matched_steps

_SECOND = 1e9
_KERNEL = "OOM killer"
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # crashes send none of these
_Step = tuple[int, int]  # attempt, step


def read_log(entries: Sequence[Entry], base: int, *, last: bool) -> Job:
    """One run; its attempts are numbered from `base` on. `last`: nothing recovers it."""
    rows = _rows(entries, base)
    spells = tuple(_spells(entries, rows, base))
    ends = _ends(entries, base)
    if not last and ends and any(isinstance(e, Recovered) for e in entries):
        diverged = any(isinstance(e, Diverged) for e in entries)
        newest = max(ends)
        ends[newest] = Cause.VERDICT if diverged else ends[newest]
    verdicts = [e for e in entries if isinstance(e, Matched | Diverged | Inconclusive)]
    tainted = {attempt + base: step for attempt, step in _diverged(entries).items()}
    return Job(
        runs=(),
        command=(),
        ranks=max([e.world for e in entries if isinstance(e, ProcessStarted | StepRecord)], default=1),
        rows=rows,
        spells=spells,
        ends=ends,
        tainted=tainted,
        replays=sum(v.seconds for v in verdicts),
        unaudited=_unaudited(entries),
        saved=tuple((e.attempt + base, e.step, e.digest) for e in entries if isinstance(e, CheckpointSaved)),
        loaded=tuple((e.attempt + base, e.digest) for e in entries if isinstance(e, CheckpointLoaded)),
    )


def _rows(entries: Sequence[Entry], base: int) -> Rows:
    """One row a rank and step: several optimizers' records of one step are one."""
    slept = _slept(entries)
    found: dict[tuple[int, int, int], list[float]] = {}
    for e in entries:
        if isinstance(e, StepRecord):
            began, ended = (e.wall_ns - e.duration_ns) / _SECOND, e.wall_ns / _SECOND
            row = found.setdefault((e.rank, e.attempt, e.step), [began, ended])
            row[0], row[1] = min(row[0], began), max(row[1], ended)
    keys = sorted(found)
    return rows_of(
        lane=[rank for rank, _, _ in keys],
        attempt=[attempt + base for _, attempt, _ in keys],
        step=[step for _, _, step in keys],
        ranks=[1.0] * len(keys),
        began=[found[k][0] for k in keys],
        ended=[found[k][1] for k in keys],
        slept=[slept.get((attempt, step), 0.0) for _, attempt, step in keys],
    )


def _slept(entries: Sequence[Entry]) -> dict[_Step, float]:
    """What the slowest rank slept or idled inside each step by its own record, where foreign code may have done it."""
    suspected = _suspected(entries)
    found: dict[_Step, float] = {}
    for e in entries:
        if isinstance(e, Idled):
            asleep = sum(s.slept_ns for s in e.sleeps if s.part in INSIDE and _is_foreign(e, s, suspected))
            idle = max(0, e.idle_ns - e.usual_idle_ns) if e.part in INSIDE and e.unsealed else 0
            at = (e.attempt, e.step)
            found[at] = max(found.get(at, 0.0), (asleep + idle) / _SECOND)
    return found


def _suspected(entries: Sequence[Entry]) -> set[StackFrame | None]:
    """The places whose sleep was found suspicious; a pause that a script makes at every step is its own."""
    found: set[StackFrame | None] = set()
    for e in entries:
        if isinstance(e, Finding) and e.detector == Sleeps.id and e.severity in (Severity.MEDIUM, Severity.HIGH):
            told = [entries[i] for i in e.evidence if 0 <= i < len(entries)]
            found |= {caller(s.frames) for t in told if isinstance(t, Idled) for s in t.sleeps if s.part in INSIDE}
    return found


def _is_foreign(entry: Idled, sleep: Sleep, suspected: Container[StackFrame | None]) -> bool:
    return bool({f.file for f in sleep.frames} & set(entry.unsealed)) or caller(sleep.frames) in suspected


def _spells(entries: Sequence[Entry], rows: Rows, base: int) -> Iterator[Spell]:
    """Each rank's attempts; one whose end nobody saw ended with its last record."""
    started: dict[tuple[int, int], float] = {}
    ended: dict[tuple[int, int], float] = {}
    for e in entries:
        if isinstance(e, ProcessStarted):
            started.setdefault((e.rank, e.attempt), e.wall_ns / _SECOND)
        elif isinstance(e, ProcessExited) and e.rank >= 0 and e.wall_ns:
            ended[e.rank, e.attempt] = e.wall_ns / _SECOND
    reached: dict[tuple[int, int], tuple[float, float]] = {}
    columns = (rows.lane.tolist(), rows.attempt.tolist(), rows.began.tolist(), rows.ended.tolist())
    for rank, attempt, first, last in zip(*columns, strict=True):
        a, b = reached.get((rank, attempt - base), (first, last))
        reached[rank, attempt - base] = (min(a, first), max(b, last))
    for rank, attempt in sorted({*started, *reached}):
        first, last = reached.get((rank, attempt), (0.0, 0.0))
        begin = started.get((rank, attempt)) or first
        yield Spell(
            lane=rank, attempt=attempt + base, ranks=1.0, started=begin,
            ended=max(ended.get((rank, attempt), last), last, begin),
        )  # fmt: skip


def _ends(entries: Sequence[Entry], base: int) -> dict[int, Cause]:
    """How each attempt ended, by the first of its ranks that did not end in order.

    A launcher ends the other ranks by SIGTERM when one has failed: such an end counts where there is no other.
    """
    own = {e.pid for e in entries if isinstance(e, ProcessStarted | ProcessExited)}
    found = {e.attempt + base: Cause.ORDER for e in entries if isinstance(e, ProcessStarted | StepRecord)}
    failed: dict[int, list[ProcessExited]] = {}
    for e in entries:
        if isinstance(e, ProcessExited) and e.rank >= 0 and _cause(e, own) is not Cause.ORDER:
            failed.setdefault(e.attempt + base, []).append(e)
    for attempt, exits in failed.items():
        first = next((e for e in exits if e.code != -signal.SIGTERM), exits[0])
        found[attempt] = _cause(first, own)
    return found


def _cause(e: ProcessExited, own: set[int]) -> Cause:
    """What one rank's end says; a signal from root may come from the scheduler, and names nobody."""
    if e.stopping or (e.goodbye and not e.known) or (e.known and e.code == 0):
        return Cause.ORDER
    if e.goodbye or not e.known or e.code >= 0 or _KERNEL in e.told_by:
        return Cause.OTHER
    if e.sender is not None and e.sender.uid != 0 and e.sender.pid not in own:
        return Cause.SENDER
    return Cause.SIGNAL if -e.code in _SENT else Cause.OTHER


def _diverged(entries: Sequence[Entry]) -> dict[int, int]:
    """The first altered step of each attempt on which no replay disagrees."""
    seen, found = collect(entries), dict[int, int]()
    for e in entries:
        if isinstance(e, Diverged) and e.segment.attempt in seen:
            at = Segment(attempt=e.segment.attempt, first=e.at.step, last=e.at.step)
            doubt = judge(at, seen[at.attempt])
            if doubt is not None and doubt.standing is Standing.TAINTED:
                found[at.attempt] = min(found.get(at.attempt, at.first), at.first)
    return found


def _unaudited(entries: Sequence[Entry]) -> int:
    looked = set(matched_steps(entries))
    looked |= {(e.segment.attempt, e.at.step) for e in entries if isinstance(e, Diverged)}
    return len({(e.attempt, e.step) for e in entries if isinstance(e, StepRecord)} - looked)
