"""A simulated cluster of 8,192 GPUs for three months: jobs, natural failures and stragglers, sabotage, and the truth.

Rules
-----
* The records are those that the account reads of real runs (`trainwarden.respond.account.columns`): one lane a job, since
  all of its ranks wait for each other and step alike; a rank's own records of a small job are made by `as_entries`.
* What is simulated is what is published: 6.34 s a step on 12,288 GPUs (MegaScale, NSDI'24), 2.3 to 6.5 failures in a
  thousand node-days (arXiv 2410.21680), a checkpoint interval of √(2w/(N·r)) (same), stragglers that are steady while they
  last and about 1.06 times slower (OSDI'25 what-if study), restarts of minutes.
* The slowest of N ranks is drawn by its order statistic, F⁻¹(U^(1/N)), and not as N numbers: the same distribution.
* Sabotage is that of the catalogue, with its numbers: 28 `sleep` (0.25 s in an update of four, on every rank, later on one;
  only above 256 ranks), 34 `kill` (SIGKILL), when and how 37 has it: off hours, changed after each meeting, none at times.
* A part of it hides: some sleeps are loops that no record names, some kills have no sender.
* The truth is what each act did, in rank-seconds, kept apart from the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from trainwarden.respond.account.columns import Cause, Column, Job, Spell, rows_of
from trainwarden.respond.account.natural import DAY, best_interval

START = 1_790_000_000.0  # seconds of the epoch at which the simulation begins
HOUR = 3600.0
BIG = 256  # ranks from which on the sabotage acts
JOBS = (4096, 2048, 1024, 512, 256, 128, 128)  # ranks of each job, 8,192 in all
_BEFORE = {Cause.SIGNAL: 0.2}  # share of natural failures that look like a kill without a sender


@dataclass(frozen=True)
class Plot:
    """What the cluster is like and what is done to it."""

    jobs: tuple[int, ...] = JOBS
    days_before: float = 30.0
    days: float = 60.0
    step_seconds: float = 6.34
    jitter: float = 0.01  # of a rank's own step, as a share
    drift: float = 0.003  # of all jobs from day to day, as a share
    own_drift: float = 0.001  # of one job alone
    failures: float = 4.2  # in a thousand node-days
    stragglers: float = 5.0  # in a thousand node-days
    ranks_per_node: int = 8
    write_seconds: float = 60.0  # of a checkpoint
    sabotage: bool = True
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


@dataclass
class _Growing:
    """One job's records as they come to be."""

    parts: list[dict[str, Column]] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    ends: dict[int, Cause] = field(default_factory=dict)
    rank_steps: int = 0


def simulate(plot: Plot, seed: int) -> Cluster:
    """Run the cluster once."""
    rng = np.random.default_rng(seed)
    days = int(plot.days_before + plot.days) + 2
    drift = np.exp(_wander(rng, days, plot.drift))
    modes = _modes(rng, days, plot)
    truth, done = Truth(), list[tuple[Job, int]]()
    for number, ranks in enumerate(plot.jobs):
        own = drift * np.exp(_wander(rng, days, plot.own_drift))
        done.append(_job(plot, number, ranks, own, modes, rng, truth))
    jobs = [(job, job.ranks >= BIG) for job, _ in done]
    return Cluster(
        jobs=tuple(job for job, big in jobs if big),
        small=tuple(job for job, big in jobs if not big),
        truth=truth,
        rank_steps=sum(steps for _, steps in done),
    )


def _wander(rng: np.random.Generator, days: int, size: float) -> Column:
    """A walk from day to day that is drawn back to nothing: autocorrelation 0.7, standard deviation `size`."""
    shocks = rng.normal(0, size * math.sqrt(1 - 0.7**2), days)
    found = np.empty(days)
    at = rng.normal(0, size)
    for i, shock in enumerate(shocks):
        at = 0.7 * at + shock
        found[i] = at
    return found


def _modes(rng: np.random.Generator, days: int, plot: Plot) -> Column:
    """What the sleep is on each day: 0 none, 1 on every rank, 2 on one rank; negative where it is hidden."""
    kind = rng.choice([0, 1, 2], days, p=[0.2, 0.5, 0.3])
    hidden = rng.random(days) < plot.hidden_sleeps
    return np.where(hidden, -kind, kind)


def _job(
    plot: Plot, number: int, ranks: int, drift: Column, modes: Column, rng: np.random.Generator, truth: Truth
) -> tuple[Job, int]:
    nodes = ranks / plot.ranks_per_node
    every = best_interval(nodes, plot.failures / 1000, plot.write_seconds)
    natural = _times(rng, plot, START, plot.until, nodes * plot.failures / 1000 / DAY)
    kills = _kills(rng, plot, ranks) if plot.sabotage else np.zeros(0)
    failures = sorted([(t, False) for t in natural] + [(t, True) for t in kills])
    slow = _stragglers(rng, plot, nodes)
    grown, now, step, attempt = _Growing(), START, 0, 0
    while now < plot.until:
        killed_at, sabotaged = next(((t, s) for t, s in failures if t > now + 2 * HOUR / 6), (plot.until, False))
        began = now + rng.lognormal(math.log(240), 0.3)  # processes start, load and warm up
        part, slept = _steps(plot, ranks, began, min(killed_at, plot.until), step, attempt, drift, modes, slow, rng)
        truth.slowdown += slept
        grown.parts.append(part)
        count = len(part["step"])
        grown.rank_steps += count * ranks
        last = float(part["ended"][-1]) if count else began
        over = killed_at >= plot.until
        died = last if over else max(last, killed_at) + rng.lognormal(math.log(60), 0.5)  # until its peers notice
        grown.spells.append(Spell(lane=0, attempt=attempt, ranks=float(ranks), started=now, ended=died))
        grown.ends[attempt] = Cause.ORDER if over else _cause(rng, plot, sabotaged)
        if over:
            break
        base = step + _saved(part, began, every)
        down = rng.lognormal(math.log(300), 0.4)
        _add(truth, plot, sabotaged, part, base - step, ranks, died, last, down)
        now, step, attempt = died + down, base, attempt + 1
        if sabotaged:
            truth.interruption += 0.0
    columns = {name: np.concatenate([p[name] for p in grown.parts]) for name in grown.parts[0]}
    job = Job(
        runs=(f"job-{number}",), command=(f"train-{number}",), ranks=ranks, rows=rows_of(**columns),
        spells=tuple(grown.spells), ends=grown.ends, tainted={},
    )  # fmt: skip
    return job, grown.rank_steps
