"""Ends of attempts: which are attributed to interference, and which would have happened anyway (pure).

Rules
-----
* An end that a named process or a verdict accounts for is attributed whole.
* Of the others those beyond the expected natural ones are, as a share of each: no single failure is called sabotage.
  Whether there is any excess is judged over all jobs together; how it lies on them, job by job.
* Expected is what honest time shows, per node-day: honest jobs, and what lies before the window. Without enough of it
  published rates are shown, and nothing is attributed: a script's own error and a colleague's `kill` look alike, and
  half of the unclear failures of big jobs were ordinary user code (ByteRobust, SOSP'25). The range then reaches to all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainwarden.config import DamageConfig
from trainwarden.respond.account.columns import UNBOUND, Cause, Job
from trainwarden.respond.account.lines import Breaks, Range, exactly, total
from trainwarden.respond.account.natural import DAY, excess, expected, is_enough
from trainwarden.respond.account.plane import Parcels
from trainwarden.respond.account.slowdown import Window

_BOUND = {
    Cause.SENDER: "the system told which process sent the signal",
    Cause.VERDICT: "a replay from sealed inputs differed",
}


@dataclass(frozen=True)
class Ends:
    """One job's ends that were not in order, by attempt: in the window, and in honest time before it."""

    inside: Mapping[int, Cause]
    before: Sequence[Cause]
    node_days: float  # in the window
    node_days_before: float


def ends_of(job: Job, p: Parcels, window: Window, config: DamageConfig, *, honest: bool = False) -> Ends:
    """The ends of a job; all of an honest one lies in honest time."""
    since = math.inf if honest else window.since
    ended: dict[int, float] = {}
    for spell in job.spells:
        ended[spell.attempt] = max(ended.get(spell.attempt, -math.inf), spell.ended)
    broken = {a: cause for a, cause in job.ends.items() if cause is not Cause.ORDER and a in ended}
    days = p.seconds * p.ranks / DAY / config.ranks_per_node
    return Ends(
        inside={a: cause for a, cause in broken.items() if since <= ended[a] < window.until},
        before=[cause for a, cause in broken.items() if ended[a] < since],
        node_days=float(days[(p.began >= since) & (p.began < window.until)].sum()),
        node_days_before=float(days[p.began < since].sum()),
    )


def attribute(
    jobs: Sequence[Ends], honest: Sequence[Ends], config: DamageConfig
) -> tuple[tuple[Breaks, ...], list[dict[Cause, Range]]]:
    """What is known of the breaks by cause, and for each job which share of a break of a cause is attributed."""
    told: list[Breaks] = []
    shares: list[dict[Cause, Range]] = [{} for _ in jobs]
    for cause in Cause:
        counts = [sum(c is cause for c in e.inside.values()) for e in jobs]
        if cause is Cause.ORDER or not sum(counts):
            continue
        row, found = _bound(cause, counts) if cause not in UNBOUND else _unbound(cause, counts, jobs, honest, config)
        told.append(row)
        for share, mine in zip(found, shares, strict=True):
            mine[cause] = share
    return tuple(told), shares


def _bound(cause: Cause, counts: Sequence[int]) -> tuple[Breaks, list[Range]]:
    all_of_them = exactly(sum(counts))
    row = Breaks(cause=cause, count=sum(counts), expected=Range(), attributed=all_of_them, how=_BOUND[cause])
    return row, [exactly(1.0)] * len(counts)


def _unbound(
    cause: Cause, counts: Sequence[int], jobs: Sequence[Ends], honest: Sequence[Ends], config: DamageConfig
) -> tuple[Breaks, list[Range]]:
    seen = sum(c is cause for e in (*jobs, *honest) for c in e.before)
    days = sum(e.node_days_before for e in (*jobs, *honest))
    published = config.failures_per_1000_node_days
    natural = [expected(e.node_days, seen, days, published) for e in jobs]
    beyond = excess(sum(counts), total(natural))
    if not is_enough(sum(e.node_days for e in jobs), days):
        beyond = Range(0.0, 0.0, beyond.high)
    row = Breaks(
        cause=cause, count=sum(counts), expected=total(natural), attributed=beyond, how=_basis(seen, days, published)
    )
    return row, [_share(n, usual, beyond, sum(counts)) for n, usual in zip(counts, natural, strict=True)]


def _share(count: int, natural: Range, beyond: Range, counted: int) -> Range:
    """The share of each of one job's breaks; over all jobs `beyond` of `counted` are attributed."""
    mid = max(0.0, count - natural.mid) / count if count and beyond.mid else 0.0
    return Range(min(mid, beyond.low / counted), mid, min(1.0, max(mid, beyond.high / counted)))


def _basis(seen: int, days: float, published: tuple[float, float]) -> str:
    rates = f"published rates for failures of any kind are {published[0]:g} to {published[1]:g} in a thousand node-days"
    if days <= 0:
        return f"no honest time to compare with; {rates}"
    return f"{seen} in {days:,.2f} honest node-days, {1000 * seen / days:.3g} in a thousand; {rates}"
