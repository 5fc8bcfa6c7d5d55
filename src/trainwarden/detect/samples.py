"""Samples: what an index of a data set gives is not what it gave before, or not what the sealed manifest lists.

The watcher compares digests of the samples that reach the ranks (`DataDiffers`). Read from the step records here: two
ranks that hold one model and are fed the same batches, so that one of them adds nothing.

Not checked, and said: samples that differ from pass to pass as random augmentation makes them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from trainwarden.detect.about import about
from trainwarden.model import (
    Confidence,
    DataDiffers,
    Detail,
    Entry,
    Finding,
    PassSeen,
    Severity,
    Stage,
    StepRecord,
)

IN_A_ROW = 8  # steps with one batch on two ranks
MAX_OPEN = 64  # steps that wait for a rank, for each attempt
MAX_RANKS = 4_096


@dataclass
class _Attempt:
    """What of an attempt's steps was fed to whom."""

    open: OrderedDict[int, dict[str, tuple[int, StepRecord]]] = field(default_factory=OrderedDict)
    same: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # ranks → steps in a row, the last
    apart: bool = False  # some step had different batches on two ranks


class Samples:
    """Judges the differences in samples, and batches that two ranks share."""

    id = "samples"

    def __init__(self) -> None:
        self._attempts: OrderedDict[int, _Attempt] = OrderedDict()
        self._said: set[tuple[str, str]] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case DataDiffers(kind="changed" | "manifest" | "copies"):
                return (_differs(index, entry),)
            case PassSeen() if entry.uncompared:
                what = (entry.dataset, entry.uncompared)
                if what not in self._said and len(self._said) < MAX_RANKS:
                    self._said.add(what)
                    return (_unchecked(index, entry),)
            case StepRecord() if entry.world > 1 and entry.optimizer == 0:
                return list(self._shared(index, entry))
        return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _shared(self, index: int, record: StepRecord) -> Iterator[Finding]:
        batch = record.stages.get(Stage.BATCH)
        if batch is None or not batch.root:
            return
        attempt = self._attempts.setdefault(record.attempt, _Attempt())
        if len(self._attempts) > 4:
            self._attempts.popitem(last=False)
        roots = attempt.open.setdefault(record.step, {})
        if len(attempt.open) > MAX_OPEN:
            attempt.open.popitem(last=False)
        if len(roots) >= MAX_RANKS:
            return
        other = roots.setdefault(batch.root, (index, record))
        attempt.apart = attempt.apart or len(roots) > 1
        if other[1].rank == record.rank or not record.parameters or other[1].parameters != record.parameters:
            return
        ranks = (min(record.rank, other[1].rank), max(record.rank, other[1].rank))
        before = attempt.same.get(ranks, (0, -1))
        row = before[0] + 1 if before[1] == record.step - 1 else 1
        if len(attempt.same) < MAX_RANKS or ranks in attempt.same:
            attempt.same[ranks] = (row, record.step)
        if row == IN_A_ROW:
            yield _clone(other[0], index, record, ranks, attempt.apart)


def _names(parts: tuple[str, ...]) -> str:
    return ", ".join(repr(p) for p in parts)


def _differs(index: int, d: DataDiffers) -> Finding:
    same = f", with {_names(d.same)} unchanged" if d.same else ""
    if d.kind == "manifest":
        seen = (
            f"Rank {d.rank} was given sample {d.index} at step {d.step} with another {_names(d.parts)} than the sealed "
            f"manifest of samples lists{same}."
        )
        benign = ("the data or their preparation were changed on purpose after the manifest was made",)
        return _finding(
            (index,), d, Severity.HIGH, Confidence.HIGH, seen, "Samples are those of the sealed manifest.", benign
        )
    if d.kind == "copies":
        which = f"the newest {d.expected} samples at step {d.step}" if d.batch >= 0 else f"{d.expected} samples"
        before = ", and none was before" if d.batch >= 0 else ""
        return _finding(
            (index,),
            d,
            Severity.LOW,
            Confidence.LOW,
            f"Of {which} of a data set {d.found} are copies of others{before}.",
            "Few samples of a data set are equal.",
            ("the data set repeats samples on purpose, or is a toy",),
        )
    return _finding(
        (index,),
        d,
        Severity.MEDIUM,
        Confidence.MEDIUM,
        f"Rank {d.rank} was given sample {d.index} at step {d.step} with another {_names(d.parts)} than before{same}.",
        "One index of a data set gives one sample.",
        (
            "the data set changes a few of its samples at random (rare augmentation), or began to",
            "the script filled or replaced its data between two passes",
        ),
    )


_finding = partial(about, Samples.id, Stage.BATCH)


def _clone(before: int, index: int, record: StepRecord, ranks: tuple[int, int], apart: bool) -> Finding:
    return Finding(
        detector=Samples.id,
        severity=Severity.MEDIUM if apart else Severity.LOW,
        confidence=Confidence.MEDIUM,
        seen=f"Ranks {ranks[0]} and {ranks[1]} hold one model and were fed the same in {IN_A_ROW} steps in a row.",
        expected="Ranks that hold copies of one model train on different samples.",
        step=record.step,
        attempt=record.attempt,
        ranks=ranks,
        stage=Stage.BATCH,
        evidence=(before, index),
        benign=("the script feeds every rank the same on purpose", "the data are constant, as in a test"),
        wall_ns=record.wall_ns,
    )


def _unchecked(index: int, seen: PassSeen) -> Finding:
    return _finding(
        (index,),
        seen,
        Severity.INFO,
        Confidence.HIGH,
        f"The samples of {seen.dataset} were not compared: {seen.uncompared}.",
        "The same index gives the same sample in every pass.",
        ("the data set draws its samples at random (augmentation)",),
    )
