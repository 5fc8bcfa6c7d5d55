"""A job in columns as the log of a real run would have it: one record a rank and step."""

from __future__ import annotations

from trainwarden import model as m
from trainwarden.respond.account.columns import Cause, Job

_NS = 1e9
HOOK = "/srv/env/hook.py"
INTRUDER = m.Writer(pid=999_999, uid=1007, program="/usr/bin/python3")
_EXITS = {
    Cause.ORDER: {"code": 0, "goodbye": True},
    Cause.SENDER: {"code": -9, "sender": INTRUDER, "told_by": "the kernel's trace"},
    Cause.SIGNAL: {"code": -9, "untold": "the system does not tell"},
    Cause.OTHER: {"code": 1, "goodbye": True},
}


def entries(job: Job) -> list[m.Entry]:
    """The log: starts, records, sleeps and exits of every rank, in order of attempts."""
    found: list[m.Entry] = [m.Sealed(run=job.runs[0], seal="0" * 64, key="1" * 64)]
    for spell in job.spells:
        found += [_start(job, spell.attempt, rank, spell.started) for rank in range(job.ranks)]
        found += _steps(job, spell.attempt)
        found += [_exit(job, spell.attempt, rank, spell.ended) for rank in range(job.ranks)]
    return found


def _steps(job: Job, attempt: int) -> list[m.Entry]:
    rows, found = job.rows, list[m.Entry]()
    for i in (rows.attempt == attempt).nonzero()[0].tolist():
        wall, took = round(rows.ended[i] * _NS), round((rows.ended[i] - rows.began[i]) * _NS)
        for rank in range(job.ranks):
            found.append(
                m.StepRecord(
                    attempt=attempt, rank=rank, world=job.ranks, step=int(rows.step[i]), optimizer=0, seq=i,
                    stages={}, wall_ns=wall, duration_ns=took,
                )
            )  # fmt: skip
        if rows.slept[i] > 0:
            frames = (m.StackFrame(file=HOOK, line=3, function="act"),)
            asleep = m.Sleep(part="update", calls=1, asked_ns=0, slept_ns=round(rows.slept[i] * _NS), frames=frames)
            at = {"attempt": attempt, "rank": job.ranks - 1, "step": int(rows.step[i])}
            found.append(m.Idled(**at, sleeps=(asleep,), unsealed=(HOOK,)))
    return found


def _start(job: Job, attempt: int, rank: int, at: float) -> m.Entry:
    return m.ProcessStarted(
        attempt=attempt, rank=rank, world=job.ranks, pid=100 * attempt + rank, argv=("train.py",), cwd="/srv",
        executable="python", env_digest="", numerics=m.Numerics(), wall_ns=round(at * _NS),
    )  # fmt: skip


def _exit(job: Job, attempt: int, rank: int, at: float) -> m.Entry:
    """The last rank ends as the job did; its launcher ends the others."""
    ended = _EXITS[job.ends[attempt]]
    if rank < job.ranks - 1 and job.ends[attempt] is not Cause.ORDER:
        ended = {"code": -15}
    return m.ProcessExited(attempt=attempt, rank=rank, pid=100 * attempt + rank, wall_ns=round(at * _NS), **ended)
