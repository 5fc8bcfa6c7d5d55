"""Compares what a replay tells with the record, step by step and file by file, as it arrives (`audit.compare`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from trainwarden.audit import runner
from trainwarden.audit.begun import begun
from trainwarden.audit.compare import Seen, add, began_differently, coverage, first_difference
from trainwarden.audit.contents import content_digest, same_but_for_places
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.starts import GIVEN_SETTINGS, Way
from trainwarden.model import CheckpointSaved, Coverage, Detail, Location, Stage, StepRecord
from trainwarden.seal.room import Workspace

OnStep = Callable[[int, int], None]
"""Called with (attempt, step) whenever a step has been compared."""


class _Replayed(NamedTuple):
    """A replayed update, and the weights that its rank's update before it left."""

    seen: Seen
    left: Detail | None


class _Written(NamedTuple):
    """A file that the replay wrote again after `done` steps: the recorded one, and the digests of both contents."""

    done: int
    old: CheckpointSaved
    was: str
    now: str


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
        self._files: list[_Written] = []  # not decided yet

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
            self._settle()

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
        """Compare a checkpoint file that the replay wrote with the recorded one of the same place.

        It is read now, since it may be overwritten, and counts when the steps before it are compared: ranks tell on
        connections of their own, and one's file can be told of before another's step, which may be the cause.
        """
        done = self._base + self._way.plans[0].first - self._way.plans[0].warmup + saving.done
        if self.divergence is not None or not saving.path.is_file():
            return
        for path, old in self._recorded.saved_by(self._attempt, done).items():
            if space.map_path(path) != str(saving.path) or old.format == "other":
                continue
            if not self._recorded.store.has(old.digest):
                continue
            kept = self._recorded.store.object_path(old.digest)
            try:
                was, now = content_digest(kept, old.format), content_digest(saving.path, old.format)
            except ValueError:
                continue  # not what its format says: it is not found to be reproduced
            if was != now and same_but_for_places(kept, saving.path, _places(space)):
                now = was
            self._files.append(_Written(done, old, was, now))
        self._settle()

    def _settle(self, *, all_told: bool = False) -> None:
        """Decide on the files that stand on nothing that is still to be compared."""
        waiting, self._files = self._files, []
        for file in waiting:
            if self.divergence is not None:
                return
            if not all_told and any(step < file.done for step, _ in self._left_out):
                self._files.append(file)
            elif file.was == file.now:
                self.rewritten.setdefault(file.done - 1, []).append(file.old.digest)
            else:
                self.divergence = Location(
                    step=file.done - 1,
                    rank=file.old.rank,
                    stage=Stage.CHECKPOINT,
                    tensor=file.old.path,
                    recorded=file.was,
                    replayed=file.now,
                )

    def ended(self) -> None:
        """Nothing more is told: decide on the rest."""
        self._settle(all_told=True)


def _places(space: Workspace) -> tuple[str, ...]:
    """What stands before the original paths in a workspace and its room (`Workspace.map_path`)."""
    return f"{space.scratch}/abs", f"{space.room.path}/root"
