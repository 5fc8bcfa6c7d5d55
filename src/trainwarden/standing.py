"""What verdicts say of a segment: does it clear, and if not, why (pure).

Rules and trust are those of `trainwarden.lineage`, which puts segments together into checkpoints.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    Diverged,
    Entry,
    Gap,
    Inconclusive,
    Matched,
    ProcessStarted,
    Segment,
    Stage,
    Standing,
    StepRecord,
    Verdict,
)

_SHOWN_REASONS = 3
_WORST_FIRST = (Standing.TAINTED, Standing.UNDECIDED, Standing.UNAUDITED)


class Doubt(msgspec.Struct, frozen=True):
    """A reason not to clear a checkpoint, and what it makes of it."""

    standing: Standing
    reason: str


class Seen(msgspec.Struct):
    """What one attempt left in the log, collected in one pass."""

    world: int = 0
    steps: list[int] = []  # of all records, sorted
    by_rank: dict[int, list[int]] = {}  # sorted, each once
    saved: set[int] = set()
    loads: list[tuple[int, CheckpointLoaded]] = []
    first_step_at: int | None = None  # log index
    gaps: list[Gap] = []
    verdicts: list[Verdict] = []


def collect(entries: Sequence[Entry]) -> dict[int, Seen]:
    """What each attempt left in the log."""
    seen: dict[int, Seen] = {}
    ranks: dict[tuple[int, int], set[int]] = {}
    for index, entry in enumerate(entries):
        match entry:
            case StepRecord():
                s = seen.setdefault(entry.attempt, Seen())
                s.steps.append(entry.step)
                s.world = max(s.world, entry.world)
                ranks.setdefault((entry.attempt, entry.rank), set()).add(entry.step)
                if s.first_step_at is None:
                    s.first_step_at = index
            case ProcessStarted():
                s = seen.setdefault(entry.attempt, Seen())
                s.world = max(s.world, entry.world)
                ranks.setdefault((entry.attempt, entry.rank), set())
            case CheckpointSaved():
                seen.setdefault(entry.attempt, Seen()).saved.add(entry.step)
            case CheckpointLoaded():
                seen.setdefault(entry.attempt, Seen()).loads.append((index, entry))
            case Gap():
                seen.setdefault(entry.attempt, Seen()).gaps.append(entry)
            case Matched() | Diverged() | Inconclusive():
                seen.setdefault(entry.segment.attempt, Seen()).verdicts.append(entry)
            case _:
                pass
    for (number, rank), steps in ranks.items():
        seen[number].by_rank[rank] = sorted(steps)
    for s in seen.values():
        s.steps.sort()
    return seen


def judge(segment: Segment, seen: Seen) -> Doubt | None:
    """Why this segment does not clear, None when it does."""
    complete = [v for v in seen.verdicts if isinstance(v, Matched) and is_complete(v, seen)]
    if doubt := _diverged(segment, seen, complete):
        return doubt
    if gap := _gap(segment, seen):
        return Doubt(Standing.UNDECIDED, gap)
    if _tiled(segment, complete):
        return None
    where = f"{_steps(segment)} of attempt {segment.attempt}"
    standing, reason = Standing.UNAUDITED, f"{where} not replayed"
    for verdict in seen.verdicts:
        if not _overlap(verdict.segment, segment):
            continue
        if isinstance(verdict, Inconclusive):
            why = verdict.reasons[0] if verdict.reasons else "no reason given"
            return Doubt(Standing.UNDECIDED, f"the replay of {where} was inconclusive: {why}")
        if isinstance(verdict, Matched) and Stage.WEIGHTS in verdict.coverage.unseen:
            return Doubt(Standing.UNDECIDED, f"the replay of {where} did not compare the weights")
        reason = f"{where} replayed only in part"
    return Doubt(standing, reason)


def is_open(segment: Segment, seen: Seen) -> bool:
    """May a replay still clear this segment? Not where one diverged, and not where records are missing.

    A replay without an answer closes nothing: the next one may have what that one lacked.
    """
    complete = [v for v in seen.verdicts if isinstance(v, Matched) and is_complete(v, seen)]
    return _diverged(segment, seen, complete) is None and not _gap(segment, seen)


def _diverged(segment: Segment, seen: Seen, complete: Sequence[Matched]) -> Doubt | None:
    conflict = None
    for verdict in seen.verdicts:
        if not isinstance(verdict, Diverged) or not _overlap(_bad_steps(verdict), segment):
            continue
        bad, at = _bad_steps(verdict), verdict.at
        where = f"attempt {segment.attempt}, step {at.step}, rank {at.rank}: {at.subject}"
        if not any(_overlap(bad, match.segment) for match in complete):
            return Doubt(Standing.TAINTED, f"diverged at {where}")
        conflict = Doubt(Standing.UNDECIDED, f"one replay diverged at {where} and another matched: conflict")
    return conflict


def _bad_steps(verdict: Diverged) -> Segment:
    """The step where it diverged, or the whole segment when that lies outside it."""
    whole, step = verdict.segment, verdict.at.step
    if whole.first <= step <= whole.last:
        return Segment(attempt=whole.attempt, first=step, last=step)
    return whole


def is_complete(verdict: Matched, seen: Seen) -> bool:
    """Did this replay compare every record that the log has of its steps, weights included?"""
    first, last = verdict.segment.first, verdict.segment.last
    records = bisect_right(seen.steps, last) - bisect_left(seen.steps, first)
    return 0 < records <= verdict.coverage.records and Stage.WEIGHTS not in verdict.coverage.unseen


def _gap(segment: Segment, seen: Seen) -> str:
    """What is missing from the records of this segment, "" when nothing is."""
    where = f"of attempt {segment.attempt}"
    for gap in seen.gaps:
        if gap.step < 0 or segment.first <= gap.step <= segment.last:
            return f"gap at step {gap.step} {where}, rank {gap.rank}: {gap.reason}"
    if len(seen.by_rank) < seen.world:
        return f"only {len(seen.by_rank)} of {seen.world} ranks {where} were recorded"
    for rank, steps in sorted(seen.by_rank.items()):
        missing = _first_missing(steps, segment.first, segment.last)
        if missing is not None:
            return f"step {missing} of rank {rank} {where} is not in the log"
    return ""


def _first_missing(steps: Sequence[int], first: int, last: int) -> int | None:
    """The first of `first … last` that is not in `steps` (sorted, each once)."""
    at = bisect_left(steps, first)
    end = at + last - first
    if end < len(steps) and steps[at] == first and steps[end] == last:
        return None
    expected = first
    for step in steps[at:]:
        if step != expected:
            break
        expected += 1
    return expected


def _tiled(segment: Segment, matches: Iterable[Matched]) -> bool:
    """Do the matched segments together cover every step of this one?"""
    reached = segment.first
    for match in sorted(matches, key=lambda m: m.segment.first):
        if match.segment.first <= reached:
            reached = max(reached, match.segment.last + 1)
    return reached > segment.last


def _overlap(a: Segment, b: Segment) -> bool:
    return a.attempt == b.attempt and a.first <= b.last and b.first <= a.last


def _steps(segment: Segment) -> str:
    return f"steps {segment.first}–{segment.last}" if segment.last > segment.first else f"step {segment.first}"


def worst(doubts: Sequence[Doubt]) -> tuple[Standing, str] | None:
    """The worst standing among the doubts with its reasons, None when there is no doubt."""
    for standing in _WORST_FIRST:
        reasons = [d.reason for d in doubts if d.standing is standing]
        if reasons:
            more = len(reasons) - _SHOWN_REASONS
            return standing, "; ".join(reasons[:_SHOWN_REASONS]) + (f"; and {more} more" if more > 0 else "")
    return None


def matched_steps(entries: Sequence[Entry]) -> frozenset[tuple[int, int]]:
    """The (attempt, step) pairs whose every record some replay reproduced and no replay contradicted.

    The steps before the first difference of a `Diverged` were reproduced too.
    """
    good: set[tuple[int, int]] = set()
    bad: set[tuple[int, int]] = set()
    for number, seen in collect(entries).items():
        for verdict in seen.verdicts:
            first, last = verdict.segment.first, verdict.segment.last
            if isinstance(verdict, Diverged):
                wrong = _bad_steps(verdict)
                bad.update((number, step) for step in _between(seen.steps, wrong.first, wrong.last))
                last = wrong.first - 1
            elif not isinstance(verdict, Matched) or not is_complete(verdict, seen):
                continue
            good.update((number, step) for step in _between(seen.steps, first, last))
    return frozenset(good - bad)


def _between(steps: Sequence[int], first: int, last: int) -> Sequence[int]:
    return steps[bisect_left(steps, first) : bisect_right(steps, last)]
