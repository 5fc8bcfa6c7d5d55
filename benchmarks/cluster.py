"""A simulated cluster of 8,192 GPUs for three months: jobs, natural failures and stragglers, sabotage, and the truth.

Rules
-----
* The records are those that the account reads of real runs (`trainwarden.respond.account.columns`): one lane a job,
  since all of its ranks wait for each other and step alike.
* What is simulated is what is published: 6.34 s a step on 12,288 GPUs (MegaScale, NSDI'24), 2.3 to 6.5 failures in a
  thousand node-days (arXiv 2410.21680), a checkpoint interval of √(2w/(N·r)) (same), stragglers that are steady while
  they last and about 1.06 times slower (OSDI'25 what-if study). Restarts take minutes; step times wander by the day.
* Each rank's step has a delay of its own, exponential. The slowest of N is drawn by its order statistic, F⁻¹(U^(1/N)),
  and not as N numbers: the same distribution.
* Sabotage is the catalogue's, with its numbers: 28 `sleep` (0.25 s in an update of four, on every rank or on one; only
  in big jobs), 34 `kill` (SIGKILL), and as 37 has it: at night, changed from day to day, none on some days.
* A part of it hides: some sleeps are loops that no record names, some kills have no sender.
* The truth is what each act did, in rank-seconds, kept apart from the records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainwarden.respond.account.columns import Cause, Column, Job, Spell, rows_of
from trainwarden.respond.account.natural import DAY, best_interval

START = 1_790_000_000.0  # seconds of the epoch at which the simulation begins
JOBS = (4096, 2048, 1024, 512, 256, 128, 128)  # ranks of each job, 8,192 in all
LIKE_A_KILL = 0.2  # share of natural failures that look like a kill without a sender
_CHUNK = 2_000  # steps that are simulated at once


@dataclass(frozen=True)
class Plot:
    """What the cluster is like and what is done to it."""

    jobs: tuple[int, ...] = JOBS
    days_before: float = 30.0
    days: float = 60.0
    step_seconds: float = 6.34
    jitter: float = 0.003  # mean delay of a rank's own step, as a share
    drift: float = 0.003  # of all jobs from day to day, as a share
    own_drift: float = 0.001  # of one job alone
    failures: float = 4.2  # in a thousand node-days
    stragglers: float = 1.0  # in a thousand node-days
    ranks_per_node: int = 8
    write_seconds: float = 60.0  # of a checkpoint
    sabotage: bool = True
    big: int = 256  # ranks from which on it acts
    sleep_seconds: float = 0.25
    sleep_share: float = 0.25
    kills_a_day: float = 1.5  # of each big job
    hidden_sleeps: float = 0.3  # share of days on which the sleep is a loop that no record names
    hidden_kills: float = 0.3  # share of kills whose sender the system did not tell

    @property
    def since(self) -> float:
        """When the sabotage begins."""
        return START + self.days_before * DAY

    @property
    def until(self) -> float:
        """When the simulation ends."""
        return self.since + self.days * DAY


@dataclass
class Truth:
    """Rank-seconds that sabotage cost."""

    interruption: float = 0.0
    discarded: float = 0.0
    slowdown: float = 0.0
    kills: int = 0
    failures: int = 0  # natural ones, in the same time

    @property
    def lost(self) -> float:
        """All of it."""
        return self.interruption + self.discarded + self.slowdown


@dataclass(frozen=True)
class Cluster:
    """What came of it: `jobs` may have been sabotaged, `small` ones are below its threshold."""

    jobs: tuple[Job, ...]
    small: tuple[Job, ...]
    truth: Truth
    rank_steps: int


@dataclass(frozen=True)
class _World:
    """What all jobs of one cluster share; arrays by day."""

    plot: Plot
    drift: Column
    sleeps: Column  # 0 none, 1 on every rank, 2 on one
    hidden: Column  # the sleep is a loop, and no record names it


@dataclass
class _Growing:
    """One job's records as they come to be."""

    ranks: int
    drift: Column
    slow: list[tuple[float, float, float]]  # stragglers: from, until, factor
    parts: list[dict[str, Column]] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    ends: dict[int, Cause] = field(default_factory=dict)


def simulate(plot: Plot, seed: int) -> Cluster:
    """Run the cluster once."""
    rng = np.random.default_rng(seed)
    days = math.ceil(plot.days_before + plot.days) + 2
    world = _World(
        plot,
        drift=np.exp(_wander(rng, days, plot.drift)),
        sleeps=rng.choice([0, 1, 2], days, p=[0.1, 0.6, 0.3]),
        hidden=rng.random(days) < plot.hidden_sleeps,
    )
    truth = Truth()
    jobs = [_job(world, number, ranks, rng, truth) for number, ranks in enumerate(plot.jobs)]
    return Cluster(
        jobs=tuple(job for job in jobs if job.ranks >= plot.big),
        small=tuple(job for job in jobs if job.ranks < plot.big),
        truth=truth,
        rank_steps=sum(len(job.rows.step) * job.ranks for job in jobs),
    )


def _wander(rng: np.random.Generator, days: int, size: float) -> Column:
    """A walk from day to day that is drawn back to 0: autocorrelation 0.7, standard deviation `size`."""
    shocks = rng.normal(0, size * math.sqrt(1 - 0.7**2), days)
    found, at = np.empty(days), rng.normal(0, size)
    for i, shock in enumerate(shocks):
        at = found[i] = 0.7 * at + shock
    return found


def _job(world: _World, number: int, ranks: int, rng: np.random.Generator, truth: Truth) -> Job:
    plot, nodes = world.plot, ranks / world.plot.ranks_per_node
    every = best_interval(nodes, plot.failures / 1000, plot.write_seconds)
    days = len(world.drift)
    grown = _Growing(ranks, world.drift * np.exp(_wander(rng, days, plot.own_drift)), _stragglers(rng, plot, nodes))
    strikes = _strikes(rng, plot, ranks, nodes)
    now, step, attempt, sabotaged = START, 0, 0, False
    while True:
        began = now + rng.lognormal(math.log(240), 0.3)  # processes start, load and connect
        at, kill = next(((t, k) for t, k in strikes if t > began), (plot.until, False))
        part, natural = _steps(world, grown, began, at, step, attempt, rng, truth)
        grown.parts.append(part)
        last = float(part["ended"][-1]) if len(part["step"]) else began
        truth.interruption += ranks * (began - now) * sabotaged
        over = at >= plot.until
        ended = last if over else max(last, at) + rng.lognormal(math.log(60), 0.5)  # until its peers notice
        grown.spells.append(Spell(lane=0, attempt=attempt, ranks=float(ranks), started=now, ended=ended))
        grown.ends[attempt] = Cause.ORDER if over else _cause(rng, plot, kill)
        if over:
            break
        saved = began + math.floor((last - began) / every) * every  # when the last checkpoint was begun
        kept = int((part["ended"] <= saved).sum())
        now = ended + rng.lognormal(math.log(300), 0.4)  # until it is scheduled again
        if at >= plot.since:
            truth.kills, truth.failures = truth.kills + kill, truth.failures + (not kill)
        truth.interruption += ranks * (now - last) * kill
        truth.discarded += ranks * float(natural[kept:].sum()) * kill
        step, attempt, sabotaged = step + kept, attempt + 1, kill
    columns = {name: np.concatenate([p[name] for p in grown.parts]) for name in grown.parts[0]}
    return Job(
        runs=(f"job-{number}",),
        command=("train.py", f"--job={number}"),
        ranks=ranks,
        rows=rows_of(**columns),
        spells=tuple(grown.spells),
        ends=grown.ends,
        tainted={},
        unaudited=int(columns["step"].max()) + 1,
    )


def _steps(
    world: _World,
    grown: _Growing,
    began: float,
    until: float,
    step: int,
    attempt: int,
    rng: np.random.Generator,
    truth: Truth,
) -> tuple[dict[str, Column], Column]:
    """The steps of one attempt that end before `until`, and how long each would have taken without sabotage."""
    ended, slept, natural, at = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)], began
    while at < until:
        plain, real, seen = _chunk(world, grown, at, rng)
        ends = at + np.cumsum(real)
        done = int(np.searchsorted(ends, until))
        truth.slowdown += grown.ranks * float((real - plain)[:done].sum())
        ended.append(ends[:done])
        slept.append(seen[:done])
        natural.append(plain[:done])
        if done < _CHUNK:
            break
        at = float(ends[-1])
    end = np.concatenate(ended)
    part = {
        "lane": np.zeros(len(end)),
        "attempt": np.full(len(end), attempt),
        "step": step + np.arange(len(end)),
        "ranks": np.full(len(end), float(grown.ranks)),
        "began": np.concatenate([[began], end[:-1]])[: len(end)],
        "ended": end,
        "slept": np.concatenate(slept),
    }
    return part, np.concatenate(natural)


def _chunk(world: _World, grown: _Growing, at: float, rng: np.random.Generator) -> tuple[Column, Column, Column]:
    """The next steps from `at` on: seconds without and with sabotage, and what of the sleep a record names."""
    plot, n = world.plot, grown.ranks
    when = at + np.arange(_CHUNK) * plot.step_seconds
    day = np.minimum(((when - START) // DAY).astype(int), len(world.drift) - 1)
    usual = plot.step_seconds * grown.drift[day] * _factor(grown.slow, when)
    acts = plot.sabotage & (n >= plot.big) & (when >= plot.since)
    mode = np.where(acts, world.sleeps[day], 0)
    asleep = np.select(
        [mode == 1, mode == 2], [rng.binomial(n, plot.sleep_share, _CHUNK), rng.random(_CHUNK) < plot.sleep_share]
    )
    awake_slowest = usual * plot.jitter * _slowest(rng, n - asleep)
    asleep_slowest = usual * plot.jitter * _slowest(rng, asleep)
    plain = usual + np.maximum(awake_slowest, asleep_slowest)
    slept = np.where(asleep > 0, plot.sleep_seconds, 0.0)
    real = usual + np.maximum(awake_slowest, np.where(asleep > 0, asleep_slowest + slept, 0.0))
    return plain, real, np.where(world.hidden[day], 0.0, slept)


def _slowest(rng: np.random.Generator, n: Column) -> Column:
    """The largest of n exponential variables of mean 1, 0 where n is 0."""
    drawn = rng.random(len(n)) ** (1 / np.maximum(n, 1))
    return np.where(n > 0, -np.log1p(-drawn), 0.0)


def _factor(slow: Sequence[tuple[float, float, float]], when: Column) -> Column:
    found = np.ones(len(when))
    for since, until, factor in slow:
        if since < when[-1] and until > when[0]:
            found = np.where((when >= since) & (when < until), np.maximum(found, factor), found)
    return found


def _stragglers(rng: np.random.Generator, plot: Plot, nodes: float) -> list[tuple[float, float, float]]:
    """Slow nodes until they are taken out: from, until, factor."""
    times = _times(rng, START, plot.until, nodes * plot.stragglers / 1000 / DAY)
    return [(t, t + rng.lognormal(math.log(7200), 0.6), 1 + rng.exponential(0.06)) for t in times.tolist()]


def _strikes(rng: np.random.Generator, plot: Plot, ranks: int, nodes: float) -> list[tuple[float, bool]]:
    """Every failure and kill of a job: when, and whether it is a kill. Kills fall between 20:00 and 08:00."""
    failures = _times(rng, START, plot.until, nodes * plot.failures / 1000 / DAY)
    kills = np.zeros(0)
    if plot.sabotage and ranks >= plot.big:
        kills = _times(rng, plot.since, plot.until, plot.kills_a_day / DAY)
        night = plot.since + np.floor((kills - plot.since) / DAY) * DAY + DAY * 5 / 6
        kills = night + (kills - plot.since) % DAY / 2
    return sorted([(t, False) for t in failures.tolist()] + [(t, True) for t in kills.tolist() if t < plot.until])


def _times(rng: np.random.Generator, since: float, until: float, rate: float) -> Column:
    """Times of a Poisson process of `rate` a second."""
    times: Column = np.sort(rng.uniform(since, until, rng.poisson(rate * (until - since))))
    return times


def _cause(rng: np.random.Generator, plot: Plot, kill: bool) -> Cause:
    if kill:
        return Cause.SIGNAL if rng.random() < plot.hidden_kills else Cause.SENDER
    return Cause.SIGNAL if rng.random() < LIKE_A_KILL else Cause.OTHER
