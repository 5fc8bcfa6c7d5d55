"""Sharded weights as wholes: what all ranks hold together, however it is cut.

Rules
-----
* Each rank tells its share of the fingerprint of all weights (`record.linear`): the shares of all ranks add up to that
  of the whole, so weights that are cut otherwise after a restart can be compared with those before it.
* An attempt that goes on from step t must begin with the weights that some attempt left after t steps.
* Logged are the shares under masks (`record.shares`); whoever holds the run's private key can take them off again.
* Compared is what ranks of one host tell, all of them: shares that another host's watcher has are not here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from trainwarden.model import Confidence, Finding, Severity, Stage, StepRecord
from trainwarden.record.shares import Sum, add, masked, packed, unmasked, unpacked

_MOST_WAITING = 1 << 10
_MOST_STEPS = 1 << 16
_LEFT, _BEGAN = "left", "began"


class WholeDesk:
    """Adds up shares, compares what restarts began with, and masks what is logged. Called from any thread."""

    def __init__(self, submit: Callable[[Finding], object], key: bytes) -> None:
        self._submit, self._key = submit, key
        self._open: OrderedDict[tuple[str, int, int, int], dict[int, Sum]] = OrderedDict()
        self._left: OrderedDict[tuple[int, int], set[Sum]] = OrderedDict()  # steps done, optimizer → weights
        self._lock = threading.Lock()

    def seen(self, record: StepRecord) -> StepRecord:
        """Take in a rank's record; it comes back as it may be logged. Raises ValueError when a share is none."""
        for moment, share in ((_BEGAN, record.began), (_LEFT, record.share)):
            if share:
                with self._lock:
                    self._take(moment, record, unpacked(bytes.fromhex(share)))
        return msgspec.structs.replace(
            record, share=self._hidden(_LEFT, record, record.share), began=self._hidden(_BEGAN, record, record.began)
        )

    def _hidden(self, moment: str, record: StepRecord, share: str) -> str:
        return packed(masked(self._key, _place(moment, record), unpacked(bytes.fromhex(share)))).hex() if share else ""

    def _take(self, moment: str, record: StepRecord, share: Sum) -> None:
        key = (moment, record.attempt, record.step, record.optimizer)
        told = self._open.setdefault(key, {})
        told[record.rank] = share
        if len(told) == record.world:
            del self._open[key]
            self._whole(moment, record, add(told.values()))
        elif len(self._open) > _MOST_WAITING:
            self._open.popitem(last=False)

    def _whole(self, moment: str, record: StepRecord, whole: Sum) -> None:
        if moment == _LEFT:
            self._left.setdefault((record.step + 1, record.optimizer), set()).add(whole)
            if len(self._left) > _MOST_STEPS:
                self._left.popitem(last=False)
            return
        known = self._left.get((record.step, record.optimizer))
        if known is not None and whole not in known:
            self._submit(_finding(record))


def whole(key: bytes, records: Sequence[StepRecord]) -> Sum | None:
    """The fingerprint of the weights that one update left, from all ranks' logged records; None while some are missing.

    `key` is the run's key of masks.
    """
    if not records or len({r.rank for r in records}) != records[0].world or not all(r.share for r in records):
        return None
    return add(unmasked(key, _place(_LEFT, r), unpacked(bytes.fromhex(r.share))) for r in records)


def _place(moment: str, record: StepRecord) -> str:
    return f"{moment} {record.attempt} {record.rank} {record.seq}"


def _finding(record: StepRecord) -> Finding:
    return Finding(
        detector="checkpoints",
        severity=Severity.HIGH,
        confidence=Confidence.MEDIUM,
        seen=f"Attempt {record.attempt} went on from step {record.step} with other weights than any attempt had left"
        " after that step, all shards taken together.",
        expected="What a checkpoint gives back is what was saved, however it is cut.",
        step=record.step,
        attempt=record.attempt,
        stage=Stage.WEIGHTS,
        benign=("the script changes weights on purpose when it resumes (another vocabulary, a merged adapter)",),
    )
