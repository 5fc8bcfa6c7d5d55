"""Where each rank-second of a job went: one place for every one of them (pure). Rules and trust as `plane`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainwarden.respond.account.columns import Column, Job
from trainwarden.respond.account.plane import NO_BREAK, Kind, Parcels


@dataclass(frozen=True)
class Tally:
    """Rank-seconds of one job; `interruption` and `discarded` by the attempt whose end caused them."""

    held: float
    progress: float  # steps that were kept, and what else was done in order
    interruption: Mapping[int, float]
    discarded: Mapping[int, float]
    slowdown: float
    invalidated: float


def tally(p: Parcels, job: Job, level: float, usual: float) -> Tally:
    """Put every rank-second of these parcels in one place.

    What a step holds above `level` seconds is slowdown; what an attempt's first step holds above `usual` is its start.
    """
    step, seconds = p.kind == Kind.STEP, p.seconds
    base = np.where(step, np.minimum(seconds, np.where(p.first, usual, level)), 0.0)
    beyond = (seconds - base) * p.ranks  # of what is no step: all of it
    base = base * p.ranks
    again = step & (p.after != NO_BREAK)
    bad = step & ~again & (p.step >= _tainted_from(p, job))
    slow = step & ~p.first
    wait = np.where(step, _attempt_before(p), p.after)
    interruption = _by_break(wait, np.where(slow, 0.0, beyond))
    discarded = _by_break(p.after, np.where(again, base, 0.0))
    slowdown, invalidated = float(beyond[slow].sum()), float(base[bad].sum())
    held = float((seconds * p.ranks).sum())
    lost = sum(interruption.values()) + sum(discarded.values()) + slowdown + invalidated
    return Tally(held, held - lost, interruption, discarded, slowdown, invalidated)


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
