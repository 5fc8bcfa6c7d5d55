"""Where each rank-second of a job went: one place for every one of them (pure). Rules and trust as `plane`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from trainwarden.respond.account.columns import Column, Job
from trainwarden.respond.account.plane import NO_BREAK, Kind, Parcels


class Place(IntEnum):
    """Where a part of a parcel goes."""

    PROGRESS = 0  # steps that were kept, and what else was done in order
    INTERRUPTION = 1
    DISCARDED = 2
    SLOWDOWN = 3
    INVALIDATED = 4


@dataclass(frozen=True)
class Parts:
    """Each parcel in two parts, which together are all of it; each part has one place."""

    base: Column  # rank-seconds
    base_place: Column
    beyond: Column  # rank-seconds
    beyond_place: Column
    wait: Column  # the attempt whose end is the reason for an interruption


@dataclass(frozen=True)
class Tally:
    """Rank-seconds of one job; `interruption` and `discarded` by the attempt whose end caused them."""

    held: float
    progress: float
    interruption: Mapping[int, float]
    discarded: Mapping[int, float]
    slowdown: float
    invalidated: float


def divide(p: Parcels, job: Job, level: float, usual: float) -> Parts:
    """Cut every parcel in two and put each part in one place.

    What a step holds above `level` seconds is slowdown; what an attempt's first step holds above `usual` is its start.
    """
    step, seconds = p.kind == Kind.STEP, p.seconds
    base = np.where(step, np.minimum(seconds, np.where(p.first, usual, level)), 0.0)
    again = step & (p.after != NO_BREAK)
    bad = p.step >= _tainted_from(p, job)
    slow = step & ~p.first
    wait = np.where(step, _attempt_before(p), p.after)
    return Parts(
        base=base * p.ranks,
        base_place=np.select([again, step & bad], [Place.DISCARDED, Place.INVALIDATED], Place.PROGRESS),
        beyond=(seconds - base) * p.ranks,
        beyond_place=np.select([slow, wait != NO_BREAK], [Place.SLOWDOWN, Place.INTERRUPTION], Place.PROGRESS),
        wait=wait,
    )


def tally(p: Parcels, job: Job, level: float, usual: float) -> Tally:
    """Sum up where every rank-second of these parcels goes, as `divide` has it."""
    parts = divide(p, job, level, usual)

    def of(place: Place) -> float:
        found = parts.base[parts.base_place == place].sum() + parts.beyond[parts.beyond_place == place].sum()
        return float(found)

    return Tally(
        held=float((p.seconds * p.ranks).sum()),
        progress=of(Place.PROGRESS),
        interruption=_by_break(parts.wait, np.where(parts.beyond_place == Place.INTERRUPTION, parts.beyond, 0.0)),
        discarded=_by_break(p.after, np.where(parts.base_place == Place.DISCARDED, parts.base, 0.0)),
        slowdown=of(Place.SLOWDOWN),
        invalidated=of(Place.INVALIDATED),
    )


def usual_step(steps: Parcels) -> float:
    """The median of these steps' seconds; ∞ where there is none."""
    return float(np.median(steps.seconds)) if len(steps.step) else np.inf


def _attempt_before(p: Parcels) -> Column:
    """Of each parcel the attempt before its own, `NO_BREAK` for the first one."""
    order = np.unique(p.attempt)
    earlier = np.concatenate([[NO_BREAK], order[:-1]]) if len(order) else order
    found: Column = earlier[np.searchsorted(order, p.attempt)] if len(order) else p.attempt
    return found


def _tainted_from(p: Parcels, job: Job) -> Column:
    limit = np.full(len(p.step), np.iinfo(np.int64).max)
    for attempt, step in job.tainted.items():
        limit[p.attempt == attempt] = step
    return limit


def _by_break(cause: Column, seconds: Column) -> dict[int, float]:
    chosen = (cause != NO_BREAK) & (seconds > 0)
    at, place = np.unique(cause[chosen], return_inverse=True)
    return dict(zip(at.tolist(), np.bincount(place, weights=seconds[chosen]).tolist(), strict=True))
