"""How long steps would have taken: several honest counterfactuals side by side, and what is beyond them (pure).

Rules
-----
* *before*: the job's own steps before the window. *peers*: the same, moved by what jobs that are known to be honest did
  between then and the window, so that a slower network for all is nobody's doing. *same job*: an honest run of the same
  command. *recorded*: the job's steps without the sleep and idling that its ranks were seen at inside of them.
* Loss is signed: steps faster than the counterfactual count against slower ones, so that honest jitter adds up to
  nothing. The sum is then put where it lies: the level above which the steps hold just so much cuts each step in two.
* The most likely value is that of the first of peers, same job, before, recorded that there is, and nothing where its
  own interval reaches nothing. The range is over all of them. What steps were seen to be longer for a recorded sleep
  is the least in any case.
* Without an honest run to compare with, a delay of all steps alike cannot be seen, and that is said.

Trust: as `plane`. A rank can claim no longer steps than its peers waited for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainwarden.respond.account.columns import Column
from trainwarden.respond.account.lines import Baseline, Range
from trainwarden.respond.account.plane import Kind, Parcels
from trainwarden.respond.account.wandering import FEWEST, reach

BLOCKS = 40  # in which the time of all jobs is cut to see how step times wander
LONGEST_BLOCK = 86_400.0


@dataclass(frozen=True)
class Window:
    """The time that is accounted for, and the blocks of time that step times are averaged over."""

    since: float
    until: float
    origin: float
    block: float
    comparisons: int  # jobs that are looked at: as many chances for chance

    def holds(self, began: Column) -> Column:
        """Which of these times lie in it."""
        inside: Column = (began >= self.since) & (began < self.until)
        return inside


@dataclass(frozen=True)
class Series:
    """Mean step seconds of one job by block of time: `at` their numbers, `count` their steps."""

    at: Column
    mean: Column
    count: Column

    def over(self, chosen: Column) -> Series:
        """These blocks alone."""
        return Series(self.at[chosen], self.mean[chosen], self.count[chosen])

    @property
    def whole(self) -> float:
        """The mean over all steps."""
        return float((self.mean * self.count).sum()) / float(self.count.sum())


def window_over(parcels: Sequence[Parcels], since: float, until: float, comparisons: int) -> Window:
    """The window from `since` to `until` over all jobs; −∞ and ∞ are no bounds."""
    began = [float(p.began.min()) for p in parcels if len(p.began)]
    ended = [float(p.ended.max()) for p in parcels if len(p.ended)]
    first, last = min(began, default=0.0), max(ended, default=0.0)
    block = min(LONGEST_BLOCK, max((last - first) / BLOCKS, 1e-9))
    return Window(since, until, since if math.isfinite(since) else first, block, comparisons)


def plain_steps(p: Parcels) -> Column:
    """The steps that step times are judged by: the first of an attempt warms up."""
    chosen: Column = (p.kind == Kind.STEP) & ~p.first & (p.seconds > 0)
    return chosen


def series(p: Parcels, window: Window) -> Series:
    """Mean step seconds by block, up to the window's end; blocks never straddle its beginning."""
    steps = p.where(plain_steps(p) & (p.began < window.until))
    number = np.floor((steps.began - window.origin) / window.block).astype(np.int64)
    at, place = np.unique(number, return_inverse=True)
    count = np.bincount(place, weights=steps.ranks, minlength=len(at))
    mean = np.bincount(place, weights=steps.seconds * steps.ranks, minlength=len(at)) / np.maximum(count, 1e-12)
    return Series(at, mean, count)


def level_for(seconds: Column, ranks: Column, loss: float) -> float:
    """The level above which these steps hold `loss` rank-seconds; ∞ where that is none."""
    if loss <= 0 or not len(seconds):
        return math.inf
    at = np.argsort(seconds)[::-1]
    d, w = seconds[at], np.cumsum(ranks[at])
    above = np.cumsum(d * ranks[at]) - w * d  # held above the level d[i]
    i = int(np.searchsorted(above, loss, side="right")) - 1
    return max(0.0, float(d[i] - (loss - above[i]) / w[i]))


def before(own: Series, window: Window) -> Range | None:
    """Step seconds before the window."""
    if not math.isfinite(window.since):
        return None
    past, now = _split(own, window)
    if len(past.at) < FEWEST or not len(now.at):
        return None
    return _around(past.whole, reach(past.mean / past.whole, now.mean / now.whole, window.comparisons))


def by_peers(own: Series, peers: Sequence[Series], window: Window) -> Range | None:
    """Step seconds before the window, times what `peers` became slower by since then."""
    if not math.isfinite(window.since) or not peers:
        return None
    shared = functools.reduce(np.intersect1d, [p.at for p in peers], own.at)
    mine = own.over(np.isin(own.at, shared))
    theirs = np.mean([np.log(p.mean[np.isin(p.at, shared)]) for p in peers], axis=0)
    past, ratio = _is_past(mine, window), np.log(mine.mean) - theirs
    if past.sum() < FEWEST or not (~past).any():
        return None
    usual = float(np.average(ratio[past], weights=mine.count[past]))
    now = float(np.average(np.exp(theirs[~past] + usual), weights=mine.count[~past]))
    return _around(now, reach(np.exp(ratio[past] - usual), np.exp(ratio[~past] - usual), window.comparisons))


def same_job(own: Series, honest: Sequence[Series], window: Window) -> Range | None:
    """Step seconds of honest runs of the same command."""
    found, now = [s for s in honest if len(s.at)], _split(own, window)[1]
    if not found or not len(now.at):
        return None
    mean = sum(s.whole * s.count.sum() for s in found) / sum(s.count.sum() for s in found)
    spread = np.concatenate([s.mean / mean for s in found])
    return _around(float(mean), reach(spread, now.mean / now.whole, window.comparisons))


def loss_at(steps: Parcels, seconds: float) -> float:
    """Rank-seconds of these steps beyond `seconds` each, faster ones counted against slower ones."""
    return max(0.0, float(((steps.seconds - seconds) * steps.ranks).sum()))


def recorded(steps: Parcels) -> Range:
    """Rank-seconds of sleep and idling inside of steps: at least where steps were longer than undisturbed ones.

    What one rank sleeps after its part of the reduction its peers wait for in their next step.
    """
    quiet = steps.seconds[steps.slept <= 0]
    beyond = np.maximum(0.0, steps.seconds - np.median(quiet)) if len(quiet) else np.zeros(len(steps.slept))
    here = np.minimum(steps.slept, beyond)
    same = (steps.lane[1:] == steps.lane[:-1]) & (steps.attempt[1:] == steps.attempt[:-1])
    after = np.where(same, np.minimum((steps.slept - here)[:-1], (beyond - here)[1:]), 0.0)
    low = float((here * steps.ranks).sum() + (after * steps.ranks[1:]).sum())
    mid = min(float((steps.slept * steps.ranks).sum()), float((steps.seconds * steps.ranks).sum()))
    return Range(low, mid, max(mid, float((beyond * steps.ranks).sum())))


def baselines(
    steps: Parcels, own: Series, peers: Sequence[Series], same: Sequence[Series], window: Window, scale: float
) -> tuple[tuple[Baseline, ...], Range]:
    """Every counterfactual of a job's steps in the window, and rank-seconds of slowdown over all of them.

    `scale` makes GPU-hours of rank-seconds.
    """
    found = {
        "peers": by_peers(own, peers, window),
        "same job": same_job(own, same, window),
        "before": before(own, window),
    }
    losses = {name: _losses(steps, seconds) for name, seconds in found.items() if seconds is not None}
    seen = recorded(steps)
    if not losses:
        mid = seen.mid if seen.low > 0 else 0.0
        told = Baseline(name="recorded", seconds=_typical(steps, seen), hours=seen * scale, chosen=True)
        return (told,), Range(seen.low if mid else 0.0, mid, seen.high)
    chosen = next(iter(losses))
    mid = max(losses[chosen].mid if losses[chosen].low > 0 else 0.0, seen.low)
    told_all = [
        Baseline(name=name, seconds=seconds, hours=losses[name] * scale, chosen=name == chosen)
        for name, seconds in found.items()
        if seconds is not None
    ]
    if seen.mid > 0:
        told_all.append(Baseline(name="recorded", seconds=_typical(steps, seen), hours=seen * scale))
    low = max(min(r.low for r in losses.values()), seen.low)
    high = max(r.high for r in losses.values())
    return tuple(told_all), Range(min(low, mid), mid, max(high, mid))


def _losses(steps: Parcels, seconds: Range) -> Range:
    return Range(loss_at(steps, seconds.high), loss_at(steps, seconds.mid), loss_at(steps, seconds.low))


def _typical(steps: Parcels, seen: Range) -> Range:
    """Mean seconds of a step without what was recorded as lost."""
    weight = float(steps.ranks.sum()) or 1.0
    mean = float((steps.seconds * steps.ranks).sum()) / weight
    return Range(mean - seen.high / weight, mean - seen.mid / weight, mean - seen.low / weight)


def _is_past(own: Series, window: Window) -> Column:
    past: Column = own.at < 0 if math.isfinite(window.since) else np.zeros(len(own.at), bool)
    return past


def _split(own: Series, window: Window) -> tuple[Series, Series]:
    """Blocks before the window, and within it."""
    past = _is_past(own, window)
    return own.over(past), own.over(~past)


def _around(mean: float, reach: float) -> Range:
    return Range(max(0.0, mean * (1 - reach)), mean, mean * (1 + reach))
