"""Jobs out of the logs of a store: a run, with those that recover it, is one job.

Rules
-----
* Attempts are numbered on through a chain of recoveries, so that a recovered run is one more attempt of its job: what
  lies between the runs is an interruption, and steps that the new run makes again are discarded in the old one.
* A log that does not verify is not accounted for: it is an error.
* What stands on a diverged step is tainted: its attempt from there, attempts that began beyond it, and jobs that loaded
  a file which was saved beyond it, by digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from trainwarden.casefile import Broken, CaseFile, load_case
from trainwarden.errors import LogTampered, UsageError
from trainwarden.model import Entry, Recovered
from trainwarden.respond.account.columns import Job, Rows, rows_of
from trainwarden.respond.account.onelog import read_log
from trainwarden.store import Store


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
        part = read_log(entries, base, last=i == len(logs) - 1)
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
                hint="no loss is computed from records that may have been altered; --key says whose key signed it",
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
