"""The account: parcels, counterfactuals and natural failures of several jobs put together (pure).

Rules
-----
* Every GPU-second that was held in the window is progress, natural loss, or in one of four lines: these sum to what was
  held. Replays and knock-on preemption lie outside of it.
* A loss whose own interval reaches nothing is counted as nothing; its highest value stays in the range.
* Delay is told apart and is never in the total: its seconds are those of the lines, seen from the calendar.

Trust: nothing here is a verdict about anybody. `plane`, `slowdown` and `breaks` say what each part trusts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainwarden.config import DamageConfig
from trainwarden.respond.account.breaks import attribute, ends_of
from trainwarden.respond.account.columns import Cause, Job
from trainwarden.respond.account.lines import (
    COMPUTE,
    HOUR,
    Account,
    Amount,
    Breaks,
    JobAccount,
    Line,
    Priced,
    Range,
    exactly,
    total,
)
from trainwarden.respond.account.natural import expected_ettr
from trainwarden.respond.account.plane import Parcels, cut
from trainwarden.respond.account.slowdown import Series, Window, baselines, level_for, plain_steps, series, window_over
from trainwarden.respond.account.tally import Tally, tally, usual_step

_HELD = (Line.INTERRUPTION, Line.DISCARDED, Line.SLOWDOWN, Line.INVALIDATED)
_NOT_KNOWN = {
    Line.PREEMPTION: "what other jobs lost because this one held machines longer: `[damage] preempted_gpu_hours`",
    Line.STAFF: "what people spent on it: `[damage] staff_hours`",
}


@dataclass(frozen=True)
class _Honest:
    """What is compared with."""

    jobs: Sequence[Job]
    series: Sequence[Series]

    def like(self, job: Job) -> list[Series]:
        """Those of the same command and size."""
        pairs = zip(self.jobs, self.series, strict=True)
        return [s for other, s in pairs if (other.command, other.ranks) == (job.command, job.ranks)]


def account(
    jobs: Sequence[Job],
    config: DamageConfig,
    *,
    honest: Sequence[Job] = (),
    since: float = -math.inf,
    until: float = math.inf,
) -> Account:
    """What the `jobs` lost from `since` to `until` (seconds), compared with `honest` ones and their own time before."""
    parcels, peers = [cut(job) for job in jobs], [cut(job) for job in honest]
    window = window_over([*parcels, *peers], since, until, len(jobs))
    ends = [ends_of(job, p, window, config) for job, p in zip(jobs, parcels, strict=True)]
    compared = [ends_of(job, p, window, config, honest=True) for job, p in zip(honest, peers, strict=True)]
    breaks, shares = attribute(ends, compared, config)
    known = _Honest(honest, [series(p, window) for p in peers])
    accounts = []
    for job, p, end, share in zip(jobs, parcels, ends, shares, strict=True):
        each = {attempt: share[cause] for attempt, cause in end.inside.items()}
        accounts.append(_job(job, p, known, window, each, config))
    return _whole(accounts, breaks, [run for job in honest for run in job.runs], window, config)


def _job(
    job: Job, p: Parcels, honest: _Honest, window: Window, shares: dict[int, Range], config: DamageConfig
) -> JobAccount:
    held = p.where(window.holds(p.began))
    steps = held.where(plain_steps(held))
    scale = config.gpus_per_rank / HOUR
    told, slow = baselines(steps, series(p, window), honest.series, honest.like(job), window, scale)
    level = level_for(steps.seconds, steps.ranks, slow.mid)
    found = tally(held, job, level, usual_step(steps))
    lines = _lines(found, job, slow, shares)
    natural = _natural(found, job, lines)
    lost = total(list(lines.values()))
    spent = natural.mid + sum(lines[line].mid for line in _HELD)
    return JobAccount(
        runs=job.runs,
        command=job.command,
        ranks=job.ranks,
        gpus=job.ranks * config.gpus_per_rank,
        steps=len(set(held.step.tolist()) - {-1}),
        held=found.held * scale,
        natural=natural * scale,
        lines={line: amount * scale for line, amount in lines.items()},
        lost=lost * scale,
        delay=total([lines[line] for line in _HELD]) * (1 / HOUR / max(job.ranks, 1)),
        baselines=told,
        unaudited=job.unaudited,
        diverged=bool(job.tainted),
        ettr=max(0.0, 1 - spent / found.held) if found.held else 0.0,
    )


def _lines(found: Tally, job: Job, slow: Range, shares: dict[int, Range]) -> dict[Line, Range]:
    """The lines of one job, in rank-seconds."""
    return {
        Line.INTERRUPTION: total([shares[a] * s for a, s in found.interruption.items() if a in shares]),
        Line.DISCARDED: total([shares[a] * s for a, s in found.discarded.items() if a in shares]),
        Line.SLOWDOWN: Range(min(slow.low, found.slowdown), found.slowdown, max(slow.high, found.slowdown)),
        Line.INVALIDATED: exactly(found.invalidated),
        Line.REPLAY: _replays(job, bool(job.tainted) or any(s.low > 0 for s in shares.values())),
    }


def _replays(job: Job, needed: bool) -> Range:
    """Replays of all ranks, where there was a reason for them; at least a processor was busy, at most one a rank."""
    spent = job.replays if needed else 0.0
    return Range(spent, spent * job.ranks, spent * job.ranks)


def _natural(found: Tally, job: Job, lines: dict[Line, Range]) -> Range:
    """What is left of interruptions and discarded steps, apart from starts after an end in order."""
    in_order = {a for a, cause in job.ends.items() if cause is Cause.ORDER}
    waste = sum(s for a, s in found.interruption.items() if a not in in_order) + sum(found.discarded.values())
    ours = lines[Line.INTERRUPTION] + lines[Line.DISCARDED]
    return Range(max(0.0, waste - ours.high), max(0.0, waste - ours.mid), max(0.0, waste - ours.low))


def _whole(
    jobs: list[JobAccount], breaks: tuple[Breaks, ...], honest: list[str], window: Window, config: DamageConfig
) -> Account:
    amounts = tuple(_amount(line, jobs, config) for line in Line)
    by_line = {a.line: a.hours for a in amounts}
    lost = total([by_line[line] for line in COMPUTE])
    held = sum(j.held for j in jobs)
    natural = total([j.natural for j in jobs])
    useful = held - natural.mid - sum(by_line[line].mid for line in _HELD)
    priced = tuple(Priced(name=name, per_gpu_hour=price, cost=lost * price) for name, price in config.prices.items())
    staff = by_line[Line.STAFF] * config.staff_price
    rates = sorted(p.per_gpu_hour for p in priced)
    cost = Range(lost.low * rates[0], lost.mid * rates[len(rates) // 2], lost.high * rates[-1]) + staff
    return Account(
        since_ns=_ns(window.since),
        until_ns=_ns(window.until),
        jobs=tuple(jobs),
        honest=tuple(honest),
        gpus=sum(j.gpus for j in jobs),
        held=held,
        useful=useful,
        natural=natural,
        expected_ettr=_expected(jobs, config),
        ettr=useful / held if held else 0.0,
        amounts=amounts,
        lost=lost,
        priced=priced,
        staff_cost=staff,
        cost=cost,
        delay=max((j.delay for j in jobs), key=lambda r: r.mid, default=Range()),
        breaks=breaks,
        currency=config.currency,
        unknown=tuple(f"{a.line}: {a.unknown}" for a in amounts if a.unknown),
    )


def _amount(line: Line, jobs: Sequence[JobAccount], config: DamageConfig) -> Amount:
    given = {Line.PREEMPTION: config.preempted_gpu_hours, Line.STAFF: config.staff_hours}
    if line in given:
        known = given[line] >= 0
        return Amount(
            line=line,
            hours=exactly(given[line]) if known else Range(),
            how="as given in the settings" if known else "not in any record",
            unknown="" if known else _NOT_KNOWN[line],
        )
    hours = total([j.lines.get(line, Range()) for j in jobs])
    return Amount(line=line, hours=hours, how=_how(line, jobs), unknown=_unknown(line, jobs))


def _how(line: Line, jobs: Sequence[JobAccount]) -> str:
    match line:
        case Line.SLOWDOWN:
            names = list(dict.fromkeys(b.name for j in jobs for b in j.baselines))
            return f"steps beyond what they would have taken; compared with: {', '.join(names) or 'nothing'}"
        case Line.INTERRUPTION:
            return "from the last step before an attributed end to the first step after it"
        case Line.DISCARDED:
            return "steps that were made again after such an end"
        case Line.INVALIDATED:
            return "steps that stand on one that a replay showed to be altered, and were not made again"
        case _:
            return "replays of runs that were interfered with"


def _unknown(line: Line, jobs: Sequence[JobAccount]) -> str:
    """What the range of a line does not hold."""
    if line is Line.INVALIDATED and (unaudited := sum(j.unaudited for j in jobs)):
        return f"{unaudited:,} steps were not replayed, and nothing is known of them"
    if line is Line.SLOWDOWN and any(b.chosen and b.name == "recorded" for j in jobs for b in j.baselines):
        return "a delay of every step alike, which takes an honest run or time to compare with"
    return ""


def _expected(jobs: Sequence[JobAccount], config: DamageConfig) -> Range:
    """What published failure rates alone would have left of the largest job's time."""
    nodes = max((j.ranks for j in jobs), default=0) / config.ranks_per_node
    low, high = (
        expected_ettr(nodes, rate / 1000, config.restart_seconds, config.checkpoint_seconds)
        for rate in reversed(config.failures_per_1000_node_days)
    )
    return Range(low, (low + high) / 2, high)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9) if math.isfinite(seconds) else 0
