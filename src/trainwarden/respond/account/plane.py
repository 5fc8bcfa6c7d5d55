"""A job's time cut into parcels: every rank's every second is in one parcel at most, by construction (pure).

Rules
-----
* On each lane parcels are laid end to end in order of time; where claims of suspect clocks overlap, the later parcel
  begins where the earlier one ends. Only then is anything labelled.
* A parcel has one label. A step is cut once more, at the level of `slowdown.level_for`, into what it would have taken
  and what is beyond: these two parts are disjoint too.
* A step is discarded when a later attempt began at or before it. What an attempt does before its first step, and the
  part of this step that is longer than others, is the restart and not the step.

Trust: times are claims by suspect hosts; the watcher's own times of starts and ends bound them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

import numpy as np

from trainwarden.respond.account.columns import Column, Job, Spell


class Kind(IntEnum):
    """What a parcel is."""

    STEP = 0
    START = 1  # from the start of the processes to the first step
    DOWN = 2  # from the end of one attempt to the start of the next
    TAIL = 3  # from the last step to the end of the processes


NO_BREAK = -1


@dataclass(frozen=True)
class Parcels:
    """Parcels sorted by lane and time. `after`: the attempt whose end is the reason for it, or `NO_BREAK`."""

    lane: Column
    kind: Column
    attempt: Column
    step: Column  # −1 where there is none
    ranks: Column
    began: Column
    ended: Column
    slept: Column
    after: Column  # of a STEP: it is discarded because this attempt ended
    first: Column  # the first step of an attempt

    @property
    def seconds(self) -> Column:
        """Length of each."""
        length: Column = self.ended - self.began
        return length

    def where(self, chosen: Column) -> Parcels:
        """Those that are chosen."""
        return Parcels(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})


def cut(job: Job) -> Parcels:
    """Cut a job's time into parcels."""
    order = sorted(set(job.ends) | {s.attempt for s in job.spells} | {int(a) for a in np.unique(job.rows.attempt)})
    before = {attempt: order[i - 1] if i else NO_BREAK for i, attempt in enumerate(order)}
    rows, others = job.rows, _between(job, before)
    n, m = len(rows.step), len(others)
    columns = {
        "lane": np.concatenate([rows.lane, np.array([o[0].lane for o in others], np.int64)]),
        "kind": np.concatenate([np.full(n, Kind.STEP, np.int8), np.array([o[1] for o in others], np.int8)]),
        "attempt": np.concatenate([rows.attempt, np.array([o[0].attempt for o in others], np.int64)]),
        "step": np.concatenate([rows.step, np.full(m, -1, np.int64)]),
        "ranks": np.concatenate([rows.ranks, np.array([o[0].ranks for o in others], np.float64)]),
        "began": np.concatenate([rows.began, np.array([o[2] for o in others], np.float64)]),
        "ended": np.concatenate([rows.ended, np.array([o[3] for o in others], np.float64)]),
        "slept": np.concatenate([rows.slept, np.zeros(m)]),
        "after": np.concatenate([_discarded(job, order), np.array([o[4] for o in others], np.int64)]),
    }
    return _laid(columns)


def _laid(columns: dict[str, Column]) -> Parcels:
    """Sorted, and cut where they overlap."""
    at = np.lexsort((columns["kind"] == Kind.STEP, columns["ended"], columns["began"], columns["lane"]))
    c = {name: values[at] for name, values in columns.items()}
    if not len(at):
        return Parcels(**c, first=np.zeros(0, bool))
    span = float(max(c["ended"].max(), c["began"].max()) - c["began"].min()) + 1.0
    lanes = np.unique(c["lane"], return_inverse=True)[1]
    apart = lanes * span - c["began"].min()  # every lane after the one before, so that one running maximum serves all
    free = np.maximum.accumulate(np.maximum(c["ended"], c["began"]) + apart)
    floor = np.concatenate([[-np.inf], free[:-1]]) - apart
    c["began"] = np.maximum(c["began"], floor)
    c["ended"] = np.maximum(c["ended"], c["began"])
    _, attempts = np.unique(c["attempt"], return_inverse=True)
    key = lanes * (int(attempts.max()) + 1) + attempts
    steps = np.flatnonzero(c["kind"] == Kind.STEP)
    first: Column = np.zeros(len(at), bool)
    first[steps[np.unique(key[steps], return_index=True)[1]]] = True
    return Parcels(**c, first=first)


def _between(job: Job, before: dict[int, int]) -> list[tuple[Spell, Kind, float, float, int]]:
    """What lies between steps: parcels of starts, tails and the time between attempts."""
    ends = _ends_of_steps(job)
    found: list[tuple[Spell, Kind, float, float, int]] = []
    last: dict[int, float] = {}
    for spell in sorted(job.spells, key=lambda s: (s.lane, s.attempt)):
        first, until = ends.get((spell.lane, spell.attempt), (spell.ended, spell.ended))
        if spell.lane in last:
            found.append((spell, Kind.DOWN, last[spell.lane], spell.started, before[spell.attempt]))
        found.append((spell, Kind.START, spell.started, first, before[spell.attempt]))
        found.append((spell, Kind.TAIL, until, spell.ended, spell.attempt))
        last[spell.lane] = max(until, spell.ended)
    return [f for f in found if f[3] > f[2]]


def _ends_of_steps(job: Job) -> dict[tuple[int, int], tuple[float, float]]:
    """When the first step of each attempt on each lane began and when its last one ended."""
    rows = job.rows
    if not len(rows.step):
        return {}
    at = np.lexsort((rows.began, rows.attempt, rows.lane))
    lane, attempt = rows.lane[at], rows.attempt[at]
    starts = np.flatnonzero(np.r_[True, (lane[1:] != lane[:-1]) | (attempt[1:] != attempt[:-1])])
    began, ended = rows.began[at][starts], np.maximum.reduceat(rows.ended[at], starts)
    keys = zip(lane[starts].tolist(), attempt[starts].tolist(), strict=True)
    return dict(zip(keys, zip(began.tolist(), ended.tolist(), strict=True), strict=True))


def _discarded(job: Job, order: Sequence[int]) -> Column:
    """For each row the attempt whose end made it be done again, `NO_BREAK` where nothing did."""
    rows = job.rows
    after: Column = np.full(len(rows.step), NO_BREAK, np.int64)
    place: Column = np.asarray(np.searchsorted(np.asarray(order), rows.attempt))
    by_attempt: Column = np.asarray(np.argsort(place, kind="stable"))
    cuts: list[int] = np.asarray(np.searchsorted(place[by_attempt], np.arange(len(order) + 1))).tolist()
    groups: list[Column] = [by_attempt[cuts[i] : cuts[i + 1]] for i in range(len(order))]
    bases = [int(rows.step[g].min()) if len(g) else np.iinfo(np.int64).max for g in groups]
    lowest = list(accumulate(reversed(bases), min))[::-1]
    for i, group in enumerate(groups):
        last = int(rows.step[group].max()) if len(group) else -1
        limit = last + 1
        for j in range(i + 1, len(order)):
            if lowest[j] >= limit:
                break
            if bases[j] < limit:
                again = group[(rows.step[group] >= bases[j]) & (rows.step[group] < limit)]
                after[again] = order[j - 1]
                limit = bases[j]
    return after
