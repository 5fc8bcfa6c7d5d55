"""An update that did nothing, that was left out, or that the gradient scaler refused more often than usual.

* The weights after an update are those after the one before, though it was not skipped, its rate is above 0 and its
  gradients are others.
* A step took in twice, three times, … the usual number of passes, once, and the next one the usual number again: an
  update in between may have been left out. A short last batch of an accumulation is fewer passes, not more.
* In the last `WINDOW` updates the scaler refused more than a few.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from trainwarden.detect.about import about
from trainwarden.detect.settings import rate
from trainwarden.model import Confidence, Detail, Entry, Finding, Severity, Stage, StepRecord

MAX_KEPT = 4_096  # optimizers of ranks
USUAL = 8  # updates in a row with one number of passes
WINDOW = 200
_REFUSED = 20  # of them
_RUN_IN = 100  # first updates, in which a scaler looks for its scale


@dataclass
class _Optimizer:
    index: int
    record: StepRecord
    updates: int = 1
    usual: int = 0
    in_a_row: int = 1
    odd: tuple[int, StepRecord] | None = None
    refused: deque[int] = field(default_factory=deque)
    told: bool = False


class Skipped:
    """Remembers each optimizer's newest record, usual number of passes and refused updates."""

    id = "skipped"

    def __init__(self) -> None:
        self._optimizers: dict[tuple[int, int, int], _Optimizer] = {}

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, StepRecord):
            return ()
        where = (entry.attempt, entry.rank, entry.optimizer)
        one = self._optimizers.get(where)
        if one is None:
            if len(self._optimizers) < MAX_KEPT:
                self._optimizers[where] = _Optimizer(index, entry)
            return ()
        found = (*_nothing(index, one, entry), *_left_out(index, one, entry), *_refused(index, one, entry))
        one.index, one.record, one.updates = index, entry, one.updates + 1
        return found

    def finish(self) -> Iterable[Finding]:
        return ()


def _nothing(index: int, one: _Optimizer, record: StepRecord) -> Iterator[Finding]:
    """The update changed no weight."""
    last = one.record
    same = record.parameters and record.parameters == last.parameters and record.seq > last.seq
    if not same or record.skipped or not any(rate(g) for g in record.hyper):
        return
    new, old = (r.stages.get(Stage.REDUCED_GRADIENTS) for r in (record, last))
    if new is None or old is None or not new.root or new.root == old.root:
        return  # no gradients, or the same ones: all of them 0
    yield _finding(
        (one.index, index),
        record,
        Severity.MEDIUM,
        Confidence.HIGH,
        f"The update of optimizer {record.optimizer} of rank {record.rank} at step {record.step} changed no weight.",
        "An update with a learning rate above 0 and gradients moves the weights.",
        ("all gradients are 0", "the weights have so few digits (bfloat16) that every change is lost in rounding"),
    )


def _left_out(index: int, one: _Optimizer, record: StepRecord) -> Iterator[Finding]:
    """Told when the number of passes is the usual one again."""
    passes = record.micro_batches
    odd, one.odd = one.odd, None
    if passes == one.record.micro_batches:
        one.in_a_row += 1
        if one.in_a_row >= USUAL:
            one.usual = passes
    else:
        one.in_a_row = 1
    if odd is not None and passes == one.usual:
        times = odd[1].micro_batches // one.usual
        yield _finding(
            (odd[0], index),
            odd[1],
            Severity.LOW,
            Confidence.LOW,
            f"Step {odd[1].step} of rank {record.rank} took in {times} times as many passes as usual "
            f"({odd[1].micro_batches} in place of {one.usual}): an update may have been left out.",
            "Every step takes in the usual number of passes.",
            (
                "the script leaves out updates on purpose (a loss that is no number), or accumulates longer at times",
                "the script runs the model in training mode for something else",
            ),
        )
    if 0 < one.usual == one.record.micro_batches < passes and passes % one.usual == 0:
        one.odd = (index, record)


def _refused(index: int, one: _Optimizer, record: StepRecord) -> Iterator[Finding]:
    """The gradient scaler refused too many of the last updates."""
    if record.skipped and one.updates >= _RUN_IN:
        one.refused.append(one.updates)
    while one.refused and one.refused[0] <= one.updates - WINDOW:
        one.refused.popleft()
    if len(one.refused) <= _REFUSED or one.told:
        return
    one.told = True
    yield _finding(
        (one.index, index),
        record,
        Severity.LOW,
        Confidence.MEDIUM,
        f"The gradient scaler of rank {record.rank} refused {len(one.refused)} of the last {WINDOW} updates, up to "
        f"step {record.step}.",
        "Once a scaler has found its scale it refuses few updates.",
        ("training diverges, or its numbers do not fit half precision",),
    )


_finding = partial(about, Skipped.id, Stage.WEIGHTS)
