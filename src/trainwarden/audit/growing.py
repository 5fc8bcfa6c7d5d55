"""A comparison with a record that still grows: what lacks its counterpart on either side decides nothing yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainwarden.audit import runner
from trainwarden.audit.compare import add
from trainwarden.audit.comparing import Comparison
from trainwarden.audit.contents import content_digest
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.starts import Way
from trainwarden.lineage import in_place
from trainwarden.model import Coverage, Location, Stage, StepRecord
from trainwarden.seal.room import Workspace

_NO_LAST = 1 << 60


class Growing(Comparison):
    """Steps are compared when every rank of the world has recorded them, files when both sides have them."""

    def __init__(self, recorded: Recorded, attempt: int, base: int, world: int, way: Way) -> None:
        super().__init__(recorded, attempt, base, way, _NO_LAST, lambda attempt, step: None)
        self._world = world
        self.wrote: dict[tuple[int, str], str] = {}  # (steps done, file in the workspace) → its digest

    def records(self, key: tuple[int, int]) -> Mapping[int, StepRecord]:
        found = super().records(key)
        return found if len(found) == self._world else {}

    def saved(self, saving: runner.Saving, space: Workspace) -> None:
        """Keep the digest of a file that the replay wrote; the script may write over it before the record is there."""
        done = self._base + saving.done
        self.wrote.pop((done, saving.renamed_from), None)
        if saving.path.is_file():
            self.wrote[done, str(saving.path)] = _digest(saving.path, saving.format)

    def files_of(self, done: int, space: Workspace) -> tuple[str, ...] | None:
        """Recorded digests of the files that both sides saved after `done` steps; None while one lacks its counterpart.

        Files count under the last name that they had: whether the watcher was quick enough to read one under the name
        that it was first written to differs from run to run. The first that differs is the divergence.
        """
        listed = in_place(self._recorded.every_save(self._attempt, done))
        theirs = {space.map_path(s.path) for s in listed}
        ours = {path for at, path in self.wrote if at == done}
        if not ours <= theirs:
            return None
        same = []
        for old in listed:
            now = self.wrote.get((done, space.map_path(old.path)))
            if now is None or old.format == "other" or not self._recorded.store.has(old.digest):
                continue
            was = _digest(self._recorded.store.object_path(old.digest), old.format)
            if not was or not now:
                continue  # not what its format says: it is not found to be reproduced
            if was != now:
                self.divergence = Location(
                    step=done - 1, rank=old.rank, stage=Stage.CHECKPOINT, tensor=old.path, recorded=was, replayed=now
                )
                return None
            same.append(old.digest)
        written = theirs <= ours or done in self.matched  # it is past the place where it would have written them
        return tuple(same) if written else None

    def recorded(self, record: StepRecord) -> None:
        """The log has another record of this attempt."""
        key = record.step, record.optimizer
        self._left_out.add(key)
        self.try_to_compare(key)

    def cover(self, first: int, last: int) -> Coverage | None:
        """What was compared of these steps; None while one of them is not whole."""
        if any(first <= step <= last for step, _ in self._left_out):
            return None
        total = Coverage()
        for step in range(first, last + 1):
            if step not in self.matched:
                return None
            total = add(total, self.matched[step])
        return total

    def forget(self, before: int) -> None:
        """Drop what was concluded from."""
        for step in [step for step in self.matched if step < before]:
            del self.matched[step]
        for key in [key for key in self._waiting if key[0] < before]:
            del self._waiting[key]
        for place in [place for place in self.wrote if place[0] < before]:
            del self.wrote[place]


def _digest(path: Path, format: str) -> str:
    """The digest of a file's content, empty when it is not what its format says."""
    try:
        return content_digest(path, format)
    except ValueError:
        return ""
