"""Tensors that are left out of training: from the start, from some update on, or in silence.

* A rank tells which trainable tensors no optimizer moves (`ModelSeen`), and again when that changes.
* An optimizer that no longer has a tensor that it had.
* A tensor whose digest stays the same over `LOOKS` looks, `EVERY` updates apart, while most others move and the rate is
  above 0. What its gradient did in that time says which case it is.

Looked at are the first `MAX_RANKS` ranks: in replicas all ranks hold the same, which `replicas` checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from trainwarden.detect.about import about
from trainwarden.detect.settings import rate
from trainwarden.model import Confidence, Detail, Entry, Finding, ModelSeen, Severity, Stage, StepRecord

EVERY = 8  # updates between two looks
LOOKS = 3  # looks at which a tensor must stand still
MAX_RANKS = 8
MAX_OPTIMIZERS = 64
MAX_NOTES = 4_096
_BENIGN_IDLE = ("the script trains a part of the model on purpose (a head, adapters) and did not mark the rest",)
_EXPECTED = "Every tensor that an optimizer has moves with the others."
_BENIGN_STILL = (
    "the tensor's changes are lost in rounding (bfloat16, a tiny rate)",
    "the script freezes or skips parts of the model now and then (experts, layers)",
)


@dataclass
class _Optimizer:
    index: int
    updates: int = 0
    weights: Detail | None = None
    gradients: Detail | None = None
    still: dict[str, int] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)


class Frozen:
    """Remembers the weights' digests at the last look, and which of them stood still."""

    id = "frozen"

    def __init__(self) -> None:
        self._notes: dict[tuple[int, int], tuple[int, ModelSeen]] = {}
        self._optimizers: dict[tuple[int, int, int], _Optimizer] = {}

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case ModelSeen():
                return tuple(self._seen(index, entry))
            case StepRecord() if detail and entry.rank < MAX_RANKS and not entry.skipped:
                return tuple(self._record(index, entry, detail))
            case _:
                return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _seen(self, index: int, note: ModelSeen) -> Iterator[Finding]:
        where = (note.attempt, note.rank)
        known = self._notes.get(where)
        if known is None and len(self._notes) >= MAX_NOTES:
            return
        self._notes[where] = (index, note)
        if known is None:
            # Told for one rank: the others are copies of it, or shards.
            first = next(n for (attempt, _), (_, n) in self._notes.items() if attempt == note.attempt)
            if note.idle_count and first is note:
                yield _idle(index, note)
            return
        before = known[1]
        if (before.parameters, before.elements, before.frozen, before.idle_count) != (
            note.parameters,
            note.elements,
            note.frozen,
            note.idle_count,
        ):
            yield _changed(known[0], before, index, note)

    def _record(self, index: int, record: StepRecord, detail: Mapping[Stage, Detail]) -> Iterator[Finding]:
        where = (record.attempt, record.rank, record.optimizer)
        one = self._optimizers.get(where)
        if one is None:
            if len(self._optimizers) >= MAX_OPTIMIZERS:
                return
            one = self._optimizers[where] = _Optimizer(index)
        one.updates += 1
        weights, gradients = detail.get(Stage.WEIGHTS), detail.get(Stage.REDUCED_GRADIENTS)
        if weights is None or gradients is None or (one.updates - 1) % EVERY:
            return
        if one.weights is not None and one.gradients is not None and all(rate(g) for g in record.hyper):
            yield from _looked(index, one, record, weights, gradients)
        one.index, one.weights, one.gradients = index, weights, gradients


def _looked(index: int, one: _Optimizer, record: StepRecord, weights: Detail, gradients: Detail) -> Iterator[Finding]:
    """Compare with the look before; tensors are those that have a gradient stage, so buffers are none of them."""
    if one.weights is None or one.gradients is None:
        return
    before = dict(zip(one.weights.names, one.weights.digests, strict=True))
    had = dict(zip(one.gradients.names, one.gradients.digests, strict=True))
    now = dict(zip(weights.names, weights.digests, strict=True))
    has = dict(zip(gradients.names, gradients.digests, strict=True))
    gone = sorted(set(had) - set(has))
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        who = f"Optimizer {record.optimizer} of rank {record.rank}"
        sentence = f"{who} no longer moves {gone[0]!r}{more} at step {record.step}."
        evidence = (one.index, index)
        yield _finding(
            evidence, record, Severity.MEDIUM, Confidence.HIGH, sentence, _EXPECTED, _BENIGN_STILL, tensor=gone[0]
        )
    still = [n for n in has if n in before and before[n] == now.get(n)]
    one.moved.update(n for n in has if n in before and before[n] != now.get(n))
    if 2 * len(still) > len(has):
        one.still.clear()  # most stand still: the rate is too small, or this is no training
        return
    one.still = {n: one.still.get(n, 0) + 1 for n in still}
    new = [n for n in still if one.still[n] == LOOKS and n not in one.told]
    for name in new[:4]:
        one.told.add(name)
        same = had.get(name) == has.get(name)
        yield _stands_still(one.index, index, record, name, same, name in one.moved, len(new) - 1)


def _idle(index: int, note: ModelSeen) -> Finding:
    more = f" and {note.idle_count - 1} more" if note.idle_count > 1 else ""
    return Finding(
        detector=Frozen.id,
        severity=Severity.LOW,
        confidence=Confidence.LOW,
        seen=f"No optimizer moves {', '.join(note.idle[:1])}{more}, though it is trainable ({note.parameters} tensors "
        "are trained).",
        expected="Every trainable tensor belongs to an optimizer.",
        step=note.step,
        attempt=note.attempt,
        ranks=(note.rank,),
        stage=Stage.WEIGHTS,
        tensor=note.idle[0] if note.idle else "",
        evidence=(index,),
        benign=_BENIGN_IDLE,
    )


def _changed(known_at: int, before: ModelSeen, index: int, note: ModelSeen) -> Finding:
    fewer = note.parameters < before.parameters or note.idle_count > before.idle_count or note.frozen > before.frozen
    return Finding(
        detector=Frozen.id,
        severity=Severity.MEDIUM if fewer else Severity.LOW,
        confidence=Confidence.MEDIUM,
        seen=f"What rank {note.rank} trains changed by step {note.step}: {note.parameters} tensors are trained, "
        f"{note.frozen} frozen, {note.idle_count} in no optimizer; before it was {before.parameters}, {before.frozen} "
        f"and {before.idle_count}.",
        expected="What is trained stays the same in an attempt.",
        step=note.step,
        attempt=note.attempt,
        ranks=(note.rank,),
        stage=Stage.WEIGHTS,
        tensor=note.idle[0] if note.idle else "",
        evidence=(known_at, index),
        benign=("the script freezes or unfreezes parts of the model on purpose",),
    )


def _stands_still(
    before: int, index: int, record: StepRecord, name: str, same: bool, moved: bool, others: int
) -> Finding:
    why = "its gradient is absent, or 0, or always the same" if same else "though it gets gradients"
    since = "moves no longer" if moved else "has not moved so far"
    more = f" (and {others} more)" if others else ""
    return _finding(
        (before, index),
        record,
        Severity.LOW if moved else Severity.INFO,
        Confidence.MEDIUM if moved else Confidence.LOW,
        f"The tensor {name!r}{more} of rank {record.rank} {since}, over {EVERY * LOOKS} updates up to step "
        f"{record.step} in which most others moved: {why}.",
        _EXPECTED,
        _BENIGN_STILL,
        tensor=name,
    )


_finding = partial(about, Frozen.id, Stage.WEIGHTS)
