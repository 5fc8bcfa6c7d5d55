"""Optimizer state was emptied, set back or made anew in the middle of an attempt.

Three sources: what a rank tells of slices that it read again before an update (`StateChanged`), the names under a
record's stage `optimizer_state`, and the digests: a counter `TENSOR/step` that moved at every update
before and now stands still, though its tensor moved, or that is again what it was after the first update.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from trainwarden.model import Confidence, Detail, Entry, Finding, Severity, Stage, StateChanged, StepRecord

MAX_KEPT = 4_096  # optimizers of ranks whose counts are kept
MAX_COUNTERS = 256  # of them whose counters are
_COUNTERS_OF_EACH = 64
_SCALER = re.compile(r"scaler\d+/")
_MOVED = 3  # updates at which a counter must have moved before its standing still says something
_BENIGN = (
    "the script resets its optimizer on purpose (a restart of the schedule, merged adapters)",
    "the script loaded a checkpoint in the middle of an attempt",
)


@dataclass
class _Counter:
    first: bytes
    last: bytes
    weight: bytes
    moved: int = 0


@dataclass
class _Optimizer:
    index: int
    record: StepRecord
    updates: int = 1
    owned: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    counters: dict[str, _Counter] = field(default_factory=dict)


class Cleared:
    """Remembers each optimizer's number of entries, and some of their counters."""

    id = "cleared"

    def __init__(self) -> None:
        self._optimizers: dict[tuple[int, int, int], _Optimizer] = {}

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if isinstance(entry, StateChanged):
            return tuple(_told(index, entry))
        if not isinstance(entry, StepRecord):
            return ()
        return tuple(self._record(index, entry, detail or {}))

    def finish(self) -> Iterable[Finding]:
        return ()

    def _record(self, index: int, record: StepRecord, detail: Mapping[Stage, Detail]) -> Iterator[Finding]:
        where = (record.attempt, record.rank, record.optimizer)
        one = self._optimizers.get(where)
        if one is None:
            if len(self._optimizers) >= MAX_KEPT:
                return
            one = self._optimizers[where] = _Optimizer(index, record)
            one.owned = _first_names(detail)
            if len(self._optimizers) <= MAX_COUNTERS:
                one.counters = _counters(detail)
                one.names = state.names if (state := detail.get(Stage.OPTIMIZER_STATE)) else ()
            yield from self._taken_over(index, one)
            return
        yield from self._vanished(index, one, record, detail)
        if not record.skipped:
            yield from self._counted(index, one, record, detail)
        one.index, one.record, one.updates = index, record, one.updates + 1

    def _vanished(
        self, index: int, one: _Optimizer, record: StepRecord, detail: Mapping[Stage, Detail]
    ) -> Iterator[Finding]:
        """Names of state that were there after the update before; a gradient scaler's come and go with it."""
        state = detail.get(Stage.OPTIMIZER_STATE)
        if state is None or not one.names or state.names is one.names:
            return
        gone = [n for n in set(one.names).difference(state.names) if not _SCALER.match(n)]
        one.names = state.names
        if gone:
            more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            sentence = f"Optimizer state of rank {record.rank} is gone after step {record.step}: {min(gone)}{more}."
            yield _finding(record, (one.index, index), sentence, tensor=min(gone))

    def _taken_over(self, index: int, new: _Optimizer) -> Iterator[Finding]:
        """Whether the optimizer moves tensors that another one moved at more than one step before."""
        record = new.record
        for number in range(min(record.optimizer, MAX_COUNTERS)):
            old = self._optimizers.get((record.attempt, record.rank, number))
            shared = old.owned & new.owned if old else frozenset()
            if old is not None and shared and old.updates > 2 and record.step > old.record.step:
                yield _finding(
                    record,
                    (old.index, index),
                    f"A new optimizer of rank {record.rank} moves {min(shared)!r} at step {record.step}: its state "
                    f"began anew after {old.updates} updates by optimizer {number}.",
                    severity=Severity.LOW,
                    tensor=min(shared),
                )
                return

    def _counted(
        self, index: int, one: _Optimizer, record: StepRecord, detail: Mapping[Stage, Detail]
    ) -> Iterator[Finding]:
        """Counters that stand still while their tensors move, or that begin again."""
        state, weights = detail.get(Stage.OPTIMIZER_STATE), detail.get(Stage.WEIGHTS)
        if state is None or weights is None or not one.counters:
            return
        found: dict[str, str] = {}
        now = dict(zip(state.names, state.digests, strict=True))
        moved = dict(zip(weights.names, weights.digests, strict=True))
        for name, counter in one.counters.items():
            new, weight = now.get(name), moved.get(name.removesuffix("/step"), counter.weight)
            if new is None:
                continue
            if new == counter.last:
                if weight != counter.weight and counter.moved >= _MOVED:
                    found.setdefault("stands still, though its tensor moved", name)
                    counter.moved = 0
            elif new == counter.first and counter.moved:
                found.setdefault("is again what it was after the first update", name)
                counter.moved = 0
            else:
                counter.moved += 1
            counter.last, counter.weight = new, weight
        for what, name in found.items():
            sentence = f"The step counter {name} of rank {record.rank} {what}, at step {record.step}."
            yield _finding(record, (one.index, index), sentence, tensor=name)


def _first_names(detail: Mapping[Stage, Detail]) -> frozenset[str]:
    weights = detail.get(Stage.WEIGHTS)
    return frozenset(weights.names[:8]) if weights else frozenset()


def _counters(detail: Mapping[Stage, Detail]) -> dict[str, _Counter]:
    state, weights = detail.get(Stage.OPTIMIZER_STATE), detail.get(Stage.WEIGHTS)
    if state is None or weights is None:
        return {}
    moved = dict(zip(weights.names, weights.digests, strict=True))
    found: dict[str, _Counter] = {}
    for name, digest in zip(state.names, state.digests, strict=True):
        weight = moved.get(name.removesuffix("/step"))
        if name.endswith("/step") and weight is not None and len(found) < _COUNTERS_OF_EACH:
            found[name] = _Counter(digest, digest, weight)
    return found


def _told(index: int, note: StateChanged) -> Iterator[Finding]:
    """What a rank says of the slices that it read again."""
    for names, what in ((note.emptied, "emptied"), (note.lowered, "set back")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield Finding(
                detector=Cleared.id,
                severity=Severity.MEDIUM,
                confidence=Confidence.HIGH,
                seen=f"Optimizer state of rank {note.rank} was {what} before the update at step {note.step}: "
                f"{names[0]}{more}.",
                expected="Between two updates nothing changes the optimizer state.",
                step=note.step,
                attempt=note.attempt,
                ranks=(note.rank,),
                stage=Stage.OPTIMIZER_STATE,
                tensor=names[0],
                evidence=(index,),
                benign=_BENIGN,
            )


def _finding(
    record: StepRecord,
    evidence: tuple[int, ...],
    seen: str,
    *,
    severity: Severity = Severity.MEDIUM,
    tensor: str = "",
) -> Finding:
    return Finding(
        detector=Cleared.id,
        severity=severity,
        confidence=Confidence.HIGH,
        seen=seen,
        expected="Within an attempt an optimizer keeps its state from update to update.",
        step=record.step,
        attempt=record.attempt,
        ranks=(record.rank,),
        stage=Stage.OPTIMIZER_STATE,
        tensor=tensor,
        evidence=evidence,
        benign=_BENIGN,
        wall_ns=record.wall_ns,
    )
