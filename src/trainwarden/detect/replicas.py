"""Replicas disagree: ranks that train copies of one model hold different weights after the same step.

In data-parallel training every rank applies the same reduced gradients to the same weights, so the roots of
`reduced_gradients`, `optimizer_state` and `weights` are equal on all ranks, bit for bit. Compared are ranks of
one attempt, step and optimizer that state the same world and recorded the same names. Buffers are not: running
statistics differ from rank to rank until the next forward pass copies those of rank 0.

Not compared, and said once for an attempt: ranks whose names differ, and ranks of which not one tensor is equal
from their first step on. Both are what sharded training (FSDP, tensor or pipeline parallel) looks like.
Equal replicas prove nothing: tainted shared code changes every rank alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from trainwarden.model import BUFFERS, Confidence, Detail, Entry, Finding, Severity, Stage, StepRecord

STAGES = (Stage.REDUCED_GRADIENTS, Stage.OPTIMIZER_STATE, Stage.WEIGHTS)
MAX_OPEN = 64  # steps that wait for a rank, for each attempt


@dataclass(frozen=True)
class _Seen:
    index: int
    record: StepRecord
    detail: Mapping[Stage, Detail] | None


@dataclass
class _Group:
    """One step of one optimizer: the record that others are compared with, and how many came."""

    first: _Seen
    came: int = 1


@dataclass
class _Attempt:
    """What is known of one attempt, and the steps of it that wait for further ranks."""

    replicas: bool = False  # two ranks were seen to agree
    shards: bool = False
    open: OrderedDict[tuple[int, int], _Group] = field(default_factory=OrderedDict)


class Replicas:
    """Compares each rank's record with the first one that arrived for the same step."""

    id = "replicas"

    def __init__(self) -> None:
        self._attempts: dict[int, _Attempt] = {}

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, StepRecord) or entry.world < 2 or entry.skipped:
            return ()
        attempt = self._attempts.setdefault(entry.attempt, _Attempt())
        if attempt.shards:
            return ()
        return list(self._take_in(attempt, _Seen(index, entry, detail)))

    def finish(self) -> Iterable[Finding]:
        return ()

    def _take_in(self, attempt: _Attempt, seen: _Seen) -> Iterator[Finding]:
        key = (seen.record.step, seen.record.optimizer)
        group = attempt.open.get(key)
        if group is None:
            attempt.open[key] = _Group(seen)
            if len(attempt.open) > MAX_OPEN:
                attempt.open.popitem(last=False)
            return
        group.came += 1
        if group.came >= seen.record.world:
            del attempt.open[key]
        yield from self._compare(attempt, group.first, seen)

    def _compare(self, attempt: _Attempt, one: _Seen, other: _Seen) -> Iterator[Finding]:
        differing = [stage for stage in STAGES if _differs(one, other, stage)]
        if not differing:
            attempt.replicas = True
            return
        if not attempt.replicas and not _share_something(one, other):
            attempt.shards = True
            attempt.open.clear()
            yield _not_compared(one, other)
            return
        yield _disagree(one, other, differing[0])


def _differs(one: _Seen, other: _Seen, stage: Stage) -> bool:
    a, b = _root(one.record, stage), _root(other.record, stage)
    return bool(a and b and a != b)


def _root(record: StepRecord, stage: Stage) -> str:
    if stage is Stage.WEIGHTS:
        return record.parameters
    if stage is Stage.OPTIMIZER_STATE and not _root(record, Stage.REDUCED_GRADIENTS):
        return ""  # an optimizer that computes gradients itself keeps the rank's own loss in its state (LBFGS)
    digest = record.stages.get(stage)
    return digest.root if digest else ""


def _share_something(one: _Seen, other: _Seen) -> bool:
    """Whether the two look like copies: the same names, and at least one gradient or weight is equal.

    Optimizer state says nothing: step counters are equal in shards too.
    """
    for stage in (Stage.REDUCED_GRADIENTS, Stage.WEIGHTS):
        a, b = _digests(one, stage), _digests(other, stage)
        if a and b and a.keys() == b.keys() and any(a[name] == b[name] for name in a):
            return True
    return False


def _digests(seen: _Seen, stage: Stage) -> dict[str, bytes]:
    detail = seen.detail.get(stage) if seen.detail else None
    pairs = zip(detail.names, detail.digests, strict=False) if detail else ()
    return {name: digest for name, digest in pairs if not name.startswith(BUFFERS)}


def _first_tensor(one: _Seen, other: _Seen, stage: Stage) -> str:
    """The first differing tensor, "" when the details are not at hand."""
    a, b = _digests(one, stage), _digests(other, stage)
    return next((name for name in a if name in b and a[name] != b[name]), "")


def _disagree(one: _Seen, other: _Seen, stage: Stage) -> Finding:
    tensor = _first_tensor(one, other, stage)
    ranks = tuple(sorted((one.record.rank, other.record.rank)))
    what = stage.value.replace("_", " ")
    where = f", first in {tensor!r}" if tensor else ""
    return Finding(
        detector=Replicas.id,
        severity=Severity.HIGH,
        confidence=Confidence.HIGH,
        seen=f"At step {one.record.step} ranks {ranks[0]} and {ranks[1]} have different {what}{where}.",
        expected="Ranks that train copies of one model hold the same values after every step, bit for bit.",
        step=one.record.step,
        attempt=one.record.attempt,
        ranks=ranks,
        stage=stage,
        tensor=tensor,
        evidence=(one.index, other.index),
        benign=(
            "the script changes weights outside of the data-parallel reduction on purpose (local SGD)",
            "faulty memory or processor on one of the hosts",
        ),
        wall_ns=other.record.wall_ns,
    )


def _not_compared(one: _Seen, other: _Seen) -> Finding:
    record = one.record
    return Finding(
        detector=Replicas.id,
        severity=Severity.INFO,
        confidence=Confidence.MEDIUM,
        seen=f"The ranks of attempt {record.attempt} share no tensor at step {record.step}: they were not compared.",
        expected="Ranks are copies of one model, or shards of it.",
        step=record.step,
        attempt=record.attempt,
        ranks=tuple(sorted((record.rank, other.record.rank))),
        evidence=(one.index, other.index),
        benign=("the model is sharded over the ranks (FSDP, tensor or pipeline parallel)",),
        wall_ns=other.record.wall_ns,
    )
