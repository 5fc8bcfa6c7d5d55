"""Compares what a replay tells with the record, step by step and file by file, as it arrives (`audit.compare`)."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from trainwarden.audit import runner
from trainwarden.audit.begun import begun
from trainwarden.audit.compare import Seen, add, began_differently, coverage, first_difference
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.starts import GIVEN_SETTINGS, Way
from trainwarden.model import Coverage, Detail, Location, Stage, StepRecord
from trainwarden.seal.room import Workspace

OnStep = Callable[[int, int], None]
"""Called with (attempt, step) whenever a step has been compared."""


class _Replayed(NamedTuple):
    """A replayed update, and the weights that its rank's update before it left."""

    seen: Seen
    left: Detail | None


class Comparison:
    """Collects replayed records until every recorded rank's is there, then compares."""

    def __init__(self, recorded: Recorded, attempt: int, base: int, way: Way, last: int, on_step: OnStep) -> None:
        self._recorded, self._attempt, self._base, self._way = recorded, attempt, base, way
        self._last, self._on_step = last, on_step
        self._waiting: dict[tuple[int, int], dict[int, _Replayed]] = {}
        self._updates = recorded.updates(attempt)
        self._left: dict[tuple[int, int], Detail | None] = {}  # (rank, optimizer) → the weights it left last
        self.matched: dict[int, Coverage] = {}
        self._left_out = {key for key in self._updates if way.first <= key[0] <= last}  # not compared yet
        self.divergence: Location | None = None
        self.details: dict[tuple[int, int], dict[int, Seen]] = {}
        self.keep: int | None = None
        self.rewritten: dict[int, list[str]] = {}  # last step before a checkpoint → digests of equal files

    def step(self, seen: Seen) -> None:
        """A replayed record has come."""
        step = seen.record.step + self._base
        record = msgspec.structs.replace(seen.record, step=step)
        key, place = (step, record.optimizer), (record.rank, record.optimizer)
        replayed = _Replayed(msgspec.structs.replace(seen, record=record), self._left.get(place))
        self._left[place] = seen.details.get(Stage.WEIGHTS)
        if self.keep == step:
            self.details.setdefault(key, {})[record.rank] = self._begun(replayed)
        if step < self._way.first or step > self._last or self.divergence is not None:
            return
        self._waiting.setdefault(key, {})[record.rank] = replayed
        self.try_to_compare(key)

    def records(self, key: tuple[int, int]) -> Mapping[int, StepRecord]:
        """Every recorded rank's record of an update; empty while it cannot be compared."""
        return self._updates.get(key, {})

    def try_to_compare(self, key: tuple[int, int]) -> None:
        """Compare an update if all that both sides say of it is there."""
        records, waiting = self.records(key), self._waiting.get(key, {})
        if not records or not set(records) <= set(waiting) or self.divergence is not None:
            return
        new = [self._begun(waiting[rank]) for rank in sorted(records)]
        self._compare(key, [self._claimed(records[s.record.rank], s) for s in new], new)
        del self._waiting[key]

    def _begun(self, replayed: _Replayed) -> Seen:
        """A replayed update with the weights that it began with, where the record says others."""
        seen = replayed.seen
        old = self._updates.get((seen.record.step, seen.record.optimizer), {}).get(seen.record.rank)
        if old is None or not began_differently(old, seen.record):
            return seen
        return msgspec.structs.replace(seen, start=begun(self._recorded.key, seen.record, replayed.left))

    def _claimed(self, record: StepRecord, replayed: Seen) -> Seen:
        seen = self._recorded.seen(record)
        if not began_differently(record, replayed.record):
            return seen
        return msgspec.structs.replace(seen, start=self._recorded.begun(record))

    def _compare(self, key: tuple[int, int], old: Sequence[Seen], new: Sequence[Seen]) -> None:
        self.divergence = first_difference(old, new)
        if self.divergence is None:
            step = key[0]
            self._left_out.discard(key)
            self.matched[step] = add(self.matched.get(step, Coverage()), self._covered(new, old))
            self._on_step(self._attempt, step)

    @property
    def whole(self) -> tuple[int, ...]:
        """The steps of which every optimizer's update was compared and is equal."""
        return tuple(sorted(self.matched.keys() - {step for step, _ in self._left_out}))

    def _covered(self, new: Sequence[Seen], old: Sequence[Seen]) -> Coverage:
        covered = coverage(new, old)
        if self._way.kind not in GIVEN_SETTINGS:
            return covered
        given = {str(Stage.HYPERPARAMETERS): "given by the record where a replay begins by substitution, not checked"}
        digests = sum(s.record.stages[Stage.HYPERPARAMETERS].tensors for s in new)
        return msgspec.structs.replace(covered, digests=covered.digests - digests, unseen=covered.unseen | given)

    def saved(self, saving: runner.Saving, space: Workspace) -> None:
        """Compare a checkpoint file that the replay wrote with the recorded one of the same place."""
        done = self._base + self._way.plans[0].first - self._way.plans[0].warmup + saving.done
        if self.divergence is not None or not saving.path.is_file():
            return
        for path, old in self._recorded.saved_by(self._attempt, done).items():
            if space.map_path(path) != str(saving.path) or old.format == "other":
                continue
            if not self._recorded.store.has(old.digest):
                continue
            was, now = content_digest(self._recorded.store.object_path(old.digest)), content_digest(saving.path)
            if was != now:
                self.divergence = Location(
                    step=done - 1, rank=old.rank, stage=Stage.CHECKPOINT, tensor=path, recorded=was, replayed=now
                )
            else:
                self.rewritten.setdefault(done - 1, []).append(old.digest)


def content_digest(path: Path) -> str:
    """BLAKE3 of a file; of a zip (torch.save), of its members without the folder that is named after the file."""
    h = blake3()
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                h.update(chunk)
        return h.hexdigest()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            h.update(info.filename.partition("/")[2].encode() + b"\0" + info.file_size.to_bytes(8, "little"))
            with archive.open(info) as member:
                while chunk := member.read(1 << 20):
                    h.update(chunk)
    return h.hexdigest()
