"""Replays what a checkpoint lacks before a recovery may go back to it.

Rules
-----
* The newest checkpoint comes first, and only the segments that it stands on are replayed, the oldest first: where one
  diverges, the checkpoints before it are cleared by then and nothing more need be replayed.
* Every verdict is in the run's log before the next replay begins. So a recovery that is broken off here goes on where
  it was.

Trust: as `audit.engine`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing

from trainwarden.audit.engine import Audit, OnVerdict
from trainwarden.audit.recorded import recorded_of
from trainwarden.casefile import CaseFile, Intact, load_case
from trainwarden.errors import LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import Segment, SignedSeal, Verdict, canonical
from trainwarden.respond.hears import Hears
from trainwarden.respond.point import Point, find_point
from trainwarden.seal.room import Room, build_room
from trainwarden.store import Store

MakeRoom = Callable[[Store, SignedSeal], Room]


def open_case(store: Store, run: str) -> CaseFile:
    """The case of a run that may be recovered; "last" passes over runs that ended before they had a log.

    Raises:
        UsageError: there is no such run.
        LogTampered: log or seal do not verify.
    """
    case = load_case(store, _with_log(store) if run == "last" else run, look_at_files=False)
    if not isinstance(case.state, Intact) or case.seal is None:
        reason = getattr(case.state, "reason", "its seal cannot be read")
        raise LogTampered(
            f"the log of run {case.run} does not verify: {reason}",
            hint=f"trainwarden verify {case.run}; nothing is concluded from a log that was altered",
        )
    return case


def _with_log(store: Store) -> str:
    for name in reversed(store.runs()):
        if store.run(name).seal_file.exists() and any(store.run(name).log.iterdir()):
            return name
    return "last"


def clear(
    store: Store,
    case: CaseFile,
    key: SigningKey,
    hears: Hears,
    *,
    jobs: int = 0,
    make_room: MakeRoom = build_room,
) -> tuple[CaseFile, Point]:
    """Replay until the point to go back to needs no further replay: it, and the case with its new verdicts.

    Raises:
        NothingCleared: nothing is cleared and nothing can be.
        LogLocked: the run still goes on, or another audit holds it.
        StoreError, StoreTampered: the clean room cannot be made.
    """
    jobs = jobs or side_by_side(case)
    tried: set[Segment] = set()
    while (point := find_point(store, case, jobs=jobs, tried=tried)).audit:
        tried.update(point.audit)
        hears.replays(point)
        _replay(store, case, point, key, hears, jobs, make_room)
        case = load_case(store, case.run, look_at_files=False)
    return case, point


def side_by_side(case: CaseFile) -> int:
    """How many replays of this run may go on at once here: one for each time that its ranks fit the processors."""
    world = max((a.world for a in case.history.attempts), default=1)
    return max(1, (os.cpu_count() or 1) // max(1, world))


def _replay(
    store: Store, case: CaseFile, point: Point, key: SigningKey, hears: Hears, jobs: int, make_room: MakeRoom
) -> None:
    recorded = recorded_of(store, case)
    lock = threading.Lock()
    with closing(LogWriter.open(store.run(case.run).log, key)) as log:

        def told(verdict: Verdict) -> None:
            with lock:
                log.append([canonical(verdict)])
                hears.verdict(verdict)

        on_verdict: OnVerdict = told
        audit = Audit(recorded, make_room(store, recorded.seal), hears.step, on_verdict)
        audit.run(point.audit, jobs=jobs, first_only=True)
