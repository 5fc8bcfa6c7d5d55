"""Compares a replayed step with the recorded one. Pure: records and digests in, the first difference out.

Rules
-----
* A step is compared when every rank's record of it is there: the earliest stage that differs on any rank is the
  cause, and within it the lowest rank.
* Gradients are produced from the last layer backwards, so of several tensors that differ in a gradient stage the
  last in the model's order differed first; in every other stage it is the first.
* Before all stages come the weights that the step began with, where both accounts say: what differs there was
  edited between two steps. An account that keeps `before` back is compared in what the step computed from them.
* A stage that the replay saw and the record did not is a difference: a rank does not get out of a comparison by
  saying that it saw nothing. A stage that neither saw is reported as not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from trainwarden.model import STAGES, Coverage, Detail, Location, Stage, StepRecord

_BACKWARD = (Stage.LOCAL_GRADIENTS, Stage.REDUCED_GRADIENTS)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's record of one update with the per-tensor digests under its roots.

    `start`: the weights that it began with; needed only where `began_differently`.
    """

    record: StepRecord
    details: dict[Stage, Detail]
    start: Detail | None = None


def first_difference(
    recorded: Sequence[Seen], replayed: Sequence[Seen], stages: Sequence[Stage] = STAGES
) -> Location | None:
    """The first of `stages`, rank and tensor in which two accounts of one update differ; None when all is equal.

    Both sequences hold one entry per rank, in the same order.
    """
    for old, new in zip(recorded, replayed, strict=True):
        if began_differently(old.record, new.record):
            return _edited_before(old, new)
    for stage in stages:
        for old, new in zip(recorded, replayed, strict=True):
            place = _differs(stage, old, new)
            if place is not None:
                return place
    return None


def began_differently(old: StepRecord, new: StepRecord) -> bool:
    """Whether two accounts say that the update began with other weights; False where one of them does not say."""
    return bool(old.before and new.before) and old.before != new.before


def coverage(replayed: Sequence[Seen], recorded: Sequence[Seen]) -> Coverage:
    """What comparing these updates looked at."""
    digests = 0
    unseen: dict[str, str] = {}
    for old, new in zip(recorded, replayed, strict=True):
        for stage, digest in new.record.stages.items():
            if digest.root and old.record.stages.get(stage):
                digests += digest.tensors
            elif not digest.root:
                unseen.setdefault(str(stage), digest.unseen)
    return Coverage(records=len(recorded), digests=digests, unseen=unseen)


def add(a: Coverage, b: Coverage) -> Coverage:
    """The coverage of two comparisons together."""
    return Coverage(records=a.records + b.records, digests=a.digests + b.digests, unseen={**b.unseen, **a.unseen})


def _edited_before(old: Seen, new: Seen) -> Location:
    names = differing(old.start, new.start) if old.start and new.start else ()
    first = names[0] if names else ""
    return Location(
        step=old.record.step,
        rank=old.record.rank,
        stage=Stage.WEIGHTS,
        tensor=first,
        optimizer=old.record.optimizer,
        recorded=digest_of(old.start, first) or old.record.before,
        replayed=digest_of(new.start, first) or new.record.before,
        tensors=names,
        before=True,
    )


def _differs(stage: Stage, old: Seen, new: Seen) -> Location | None:
    was, now = old.record.stages.get(stage), new.record.stages.get(stage)
    was_root, now_root = (was.root if was else ""), (now.root if now else "")
    if was_root == now_root:
        return None
    if not was_root or not now_root:
        reason = (was.unseen if was and not was_root else "") or "not recorded"
        return _location(stage, old, (), "" if was_root else f"not seen: {reason}", now_root)
    names = differing(old.details.get(stage), new.details.get(stage))
    first = (names[-1] if stage in _BACKWARD else names[0]) if names else ""
    return _location(
        stage,
        old,
        names,
        digest_of(old.details.get(stage), first) or was_root,
        digest_of(new.details.get(stage), first) or now_root,
    )


def _location(stage: Stage, seen: Seen, names: tuple[str, ...], recorded: str, replayed: str) -> Location:
    first = (names[-1] if stage in _BACKWARD else names[0]) if names else ""
    record = seen.record
    return Location(
        step=record.step,
        rank=record.rank,
        stage=stage,
        tensor=first,
        optimizer=record.optimizer,
        recorded=recorded,
        replayed=replayed,
        tensors=names,
    )


def differing(old: Detail | None, new: Detail | None) -> tuple[str, ...]:
    """The names whose digests differ or that only one side has, in the recorded order."""
    was = dict(zip(old.names, old.digests, strict=True)) if old else {}
    now = dict(zip(new.names, new.digests, strict=True)) if new else {}
    return tuple(n for n in [*was, *(n for n in now if n not in was)] if was.get(n) != now.get(n))


def digest_of(detail: Detail | None, name: str) -> str:
    """A tensor's digest in hex, empty when it is not there."""
    pairs: Mapping[str, bytes] = dict(zip(detail.names, detail.digests, strict=True)) if detail else {}
    return pairs[name].hex() if name in pairs else ""
