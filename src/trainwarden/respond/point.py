"""The checkpoint that a recovery goes back to, and what must be replayed before it may.

Rules
-----
* Candidates are the run's checkpoints of which every file can still be had, whole, on the disk or in the store. The
  newest that is cleared, or that replays could clear, is the point.
* Where an older one is cleared already, a newer one is worth its replays only if they take fewer steps of time than
  training these steps again: that is so where several replays run side by side.
* Where every checkpoint is tainted, and where there is none, it is what the run began from: a cleared checkpoint of an
  earlier run, or nothing. A checkpoint that is only undecided is no reason to throw all work away: that is asked.

Trust: as `respond.plan`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from trainwarden.audit.engine import groups
from trainwarden.casefile import CaseFile, load_case
from trainwarden.errors import NothingCleared, StoreError
from trainwarden.lineage import last_cleared, newest_first, outstanding
from trainwarden.model import Checkpoint, CheckpointSaved, Recovered, Segment, Standing
from trainwarden.respond.disk import digest_now
from trainwarden.store import Store


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go back to; `checkpoint` None is the run's own beginning from nothing."""

    checkpoint: Checkpoint | None
    why: str
    audit: tuple[Segment, ...] = ()  # to be replayed first


def find_point(store: Store, case: CaseFile, *, jobs: int = 1, tried: Collection[Segment] = ()) -> Point:
    """The point to take a run back to; `jobs` is how many replays may run side by side.

    A checkpoint that would need only replays that were `tried` already is passed over. `case` is read with
    `look_at_files=False`.

    Raises:
        NothingCleared: no checkpoint is cleared, no replay could clear one, and one of them is not tainted.
    """
    own = case.history.checkpoints
    ready = (c for c in newest_first(own) if c.standing is Standing.CLEARED)
    cleared = next((c for c in ready if _available(store, c.files)), None)  # looks at no more files than it must
    newer = _clearable(store, case, cleared, tried)
    if newer is not None and (cleared is None or _pays(newer, cleared.step, jobs)):
        return newer
    if cleared is not None:
        return Point(checkpoint=cleared, why=cleared.reason)
    if any(c.standing is not Standing.TAINTED for c in own):
        raise NothingCleared(
            f"no checkpoint of run {case.run} is cleared or can be: nothing is known to be safe to go back to",
            hint=f"trainwarden audit {case.run} says why; or `--from-start`, which needs no checkpoint",
        )
    why = "every checkpoint is tainted" if own else "it saved no checkpoint"
    return Point(checkpoint=_stood_on(store, case), why=f"{why}: it goes back to where it began")


def _clearable(store: Store, case: CaseFile, cleared: Checkpoint | None, tried: Collection[Segment]) -> Point | None:
    """The newest checkpoint beyond `cleared` that replays alone are missing for."""
    least = cleared.step if cleared else -1
    for c in newest_first(case.history.checkpoints):
        if c.step <= least or c.standing in (Standing.CLEARED, Standing.TAINTED):
            continue
        missing = outstanding(case.entries, c)
        if missing and not set(tried).issuperset(missing) and _available(store, c.files):
            return Point(checkpoint=c, why=f"if {_count(missing)} to be replayed matches", audit=missing)
    return None


def _count(segments: Sequence[Segment]) -> str:
    return "the segment" if len(segments) == 1 else f"every one of {len(segments)} segments"


def _pays(point: Point, cleared_step: int, jobs: int) -> bool:
    """Do the replays of `point` take less time than training from the cleared step up to it?"""
    to_train = point.checkpoint.step - cleared_step if point.checkpoint else 0
    longest = max(sum(s.last - s.first + 1 for s in group) for group in groups(point.audit, jobs))
    return longest < to_train


def _stood_on(store: Store, case: CaseFile) -> Checkpoint | None:
    """The cleared checkpoint of an earlier run that this one began from; None when it began from nothing.

    Raises:
        NothingCleared: it began from a checkpoint that is not cleared, or that cannot be had.
    """
    attempts = case.history.attempts
    loaded = {load.digest for load in attempts[0].loaded if load.known_step >= 0} if attempts else set()
    if not loaded and not (loaded := _was_to_load(store, case)):
        return None
    parent = case.sealed.parent
    for _ in range(64):
        if not parent:
            break
        earlier = load_case(store, parent, look_at_files=False)
        found = [c for c in earlier.history.checkpoints if loaded & {f.digest for f in c.files}]
        if (point := last_cleared(found)) and _available(store, point.files):
            return point
        parent = earlier.sealed.parent
    raise NothingCleared(
        f"run {case.run} began from a checkpoint that is not cleared",
        hint=f"trainwarden recover {case.sealed.parent or case.run}; or `--from-start`",
    )


def _was_to_load(store: Store, case: CaseFile) -> set[str]:
    """Digests of what a resumed run that ended before it loaded anything was given; empty for the very beginning."""
    run, step = case.run, -1
    while parent := load_case(store, run, look_at_files=False).sealed.parent:
        earlier = load_case(store, parent, look_at_files=False)
        if step < 0:
            given = [e for e in earlier.entries if isinstance(e, Recovered) and e.new_run == run]
            if not given or not given[-1].checkpoint:
                return set()
            step = given[-1].from_step
        found = {f.digest for c in earlier.history.checkpoints if c.step == step for f in c.files}
        if found:
            return found
        run = parent
    return set()


def _available(store: Store, files: Iterable[CheckpointSaved]) -> bool:
    return all(digest_now(f.path) == f.digest or _kept(store, f.digest) for f in files)


def _kept(store: Store, digest: str) -> bool:
    """Is there a copy in the store that still is what it was?"""
    try:
        store.check(digest)
    except StoreError:
        return False
    return True
