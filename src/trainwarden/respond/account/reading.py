"""Jobs out of the logs of a store: a run, with those that recover it, is one job.

Rules
-----
* Attempts are numbered on through a chain of recoveries, so that a recovered run is one more attempt of its job: what
  lies between the runs is an interruption, and steps that the new run makes again are discarded in the old one.
* A log that does not verify is not accounted for: it is an error.
* What stands on a diverged step is tainted: its attempt from there, attempts that began beyond it, and jobs that loaded
  a file which was saved beyond it, by digest. A step on which replays disagree taints nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from trainwarden.casefile import Broken, CaseFile, load_case
from trainwarden.detect.sleep import INSIDE
from trainwarden.errors import LogTampered, UsageError
from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    Diverged,
    Entry,
    Idled,
    Inconclusive,
    Matched,
    ProcessExited,
    ProcessStarted,
    Recovered,
    Segment,
    Standing,
    StepRecord,
)
from trainwarden.respond.account.columns import Cause, Job, Rows, Spell, rows_of
from trainwarden.standing import collect, judge, matched_steps
from trainwarden.store import Store

_SECOND = 1e9
_KERNEL = "OOM killer"
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # crashes send none of these
_Step = tuple[int, int]  # attempt, step


def read_jobs(store: Store, runs: Sequence[str], key: str, progress: Callable[[str], None]) -> list[Job]:
    """The jobs that these runs belong to, oldest first; `progress(run)` before each is read.

    Raises:
        LogTampered: the log of one of them does not verify.
        UsageError: a run has no log.
    """
    chains = _chains(_cases(store, runs, key, progress))
    return spread([job_of([c.run for c in chain], [c.entries for c in chain], _command(chain[0])) for chain in chains])


def job_of(runs: Sequence[str], logs: Sequence[Sequence[Entry]], command: Sequence[str] = ()) -> Job:
    """One job from the logs of its runs, the first of which the others recover, in order."""
    parts, base, offsets = [], 0, dict[str, int]()
    for i, (run, entries) in enumerate(zip(runs, logs, strict=True)):
        offsets[run] = base
        part = _read(entries, base, last=i == len(logs) - 1)
        parts.append(part)
        base = max([base - 1, *part.ends]) + 1
    return Job(
        runs=tuple(runs),
        command=tuple(command),
        ranks=max(p.ranks for p in parts),
        rows=_joined([p.rows for p in parts]),
        spells=tuple(s for p in parts for s in p.spells),
        ends={a: cause for p in parts for a, cause in p.ends.items()},
        tainted=_inherited(parts),
        replays=sum(p.replays for p in parts),
        unaudited=sum(p.unaudited for p in parts),
        saved=tuple(s for p in parts for s in p.saved),
        loaded=tuple(s for p in parts for s in p.loaded),
        offsets=offsets,
    )


def spread(jobs: list[Job]) -> list[Job]:
    """Jobs that loaded a file of a tainted state are tainted from that attempt on, and so on through all of them."""
    for _ in range(len(jobs)):
        bad = {digest for job in jobs for a, step, digest in job.saved if step > job.tainted.get(a, step)}
        grown = [_after_loading(job, bad) for job in jobs]
        if grown == [job.tainted for job in jobs]:
            break
        jobs = [replace(job, tainted=tainted) for job, tainted in zip(jobs, grown, strict=True)]
    return jobs


def _after_loading(job: Job, bad: set[str]) -> dict[int, int]:
    own = {digest for _, _, digest in job.saved}  # within a job it is followed by steps
    return job.tainted | {attempt: 0 for attempt, digest in job.loaded if digest in bad - own}


def _cases(store: Store, runs: Sequence[str], key: str, progress: Callable[[str], None]) -> dict[str, CaseFile]:
    """The cases of these runs, of those they recover and of those that recover them."""
    waiting, cases = list(runs), dict[str, CaseFile]()
    known = set(store.runs())
    while waiting:
        name = waiting.pop(0)
        if name in cases:
            continue
        progress(name)
        case = load_case(store, name, key, look_at_files=False)
        if isinstance(case.state, Broken):
            raise LogTampered(
                f"the log of run {case.run} does not verify: {case.state.reason}",
                hint="a loss is not computed from records that somebody altered; leave this run out, and say so",
            )
        cases[name] = case
        kin = [e.new_run for e in case.entries if isinstance(e, Recovered)] + [case.sealed.parent]
        waiting.extend(run for run in kin if run in known)
    return cases


def _chains(cases: dict[str, CaseFile]) -> list[list[CaseFile]]:
    """Runs behind the run that they recover; where one was recovered twice, in the order of their beginning."""
    chains: dict[str, list[CaseFile]] = {}
    root: dict[str, str] = {}
    for name in sorted(cases, key=lambda n: (cases[n].sealed.wall_ns, n)):
        parent = cases[name].sealed.parent
        root[name] = root.get(parent, name)
        chains.setdefault(root[name], []).append(cases[name])
    return list(chains.values())


def _command(case: CaseFile) -> tuple[str, ...]:
    return tuple(case.seal.seal.argv) if case.seal else ()


# --------------------------------------------------------------------------- one log


def _read(entries: Sequence[Entry], base: int, *, last: bool) -> Job:
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


def _slept(entries: Iterable[Entry]) -> dict[_Step, float]:
    """What the slowest rank slept or idled inside each step, by its own record: its peers wait as long."""
    found: dict[_Step, float] = {}
    for e in entries:
        if isinstance(e, Idled):
            asleep = sum(s.slept_ns for s in e.sleeps if s.part in INSIDE)
            idle = max(0, e.idle_ns - e.usual_idle_ns) if e.part in INSIDE and e.unsealed else 0
            at = (e.attempt, e.step)
            found[at] = max(found.get(at, 0.0), (asleep + idle) / _SECOND)
    return found


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


# --------------------------------------------------------------------------- several


def _joined(parts: Sequence[Rows]) -> Rows:
    return rows_of(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in Rows.__dataclass_fields__})


def _inherited(parts: Sequence[Job]) -> dict[int, int]:
    """The tainted attempts: those with an altered step, and those that began beyond a tainted one."""
    own = {a: step for p in parts for a, step in p.tainted.items()}
    found, bad = dict[int, int](), None
    for attempt, first in _bases(parts):
        bad = first if bad is not None and first > bad else own.get(attempt)
        if bad is not None:
            found[attempt] = bad
    return found


def _bases(parts: Sequence[Job]) -> Iterator[tuple[int, int]]:
    """The first step of each attempt that has one."""
    for p in parts:
        for attempt in np.unique(p.rows.attempt).tolist():
            yield attempt, int(p.rows.step[p.rows.attempt == attempt].min())


def named_runs(store: Store, names: Sequence[str]) -> list[str]:
    """The ids of the runs that are named; without a name all that have a log.

    Raises:
        UsageError: a name is no run's, or there is no run.
    """
    found = [store.run(name).id for name in names] or [
        run for run in store.runs() if (store.run(run).log / "head").exists()
    ]
    if not found:
        raise UsageError(f"there is no run in {store.path}", hint="trainwarden run -- COMMAND")
    return found
