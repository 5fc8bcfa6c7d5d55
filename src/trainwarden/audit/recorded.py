"""A run's log read for replay: who started, what each step was said to be, which files it left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from trainwarden.audit.begun import begun
from trainwarden.audit.compare import Seen
from trainwarden.casefile import CaseFile, read_entries
from trainwarden.errors import CannotDecide
from trainwarden.lineage import Attempt, History, in_place, trace
from trainwarden.model import (
    CheckpointSaved,
    DataOpened,
    Detail,
    Entry,
    ProcessStarted,
    Sealed,
    SignedSeal,
    Stage,
    StepRecord,
)
from trainwarden.record.entropy import FILE_NAME as ENTROPY_FILE
from trainwarden.store import RunDir, Store
from trainwarden.supervise.details import DetailReader
from trainwarden.supervise.private import read_digest_key, read_env

Updates = dict[tuple[int, int], dict[int, StepRecord]]  # (step, optimizer) → rank → record


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a replay finds at its original place: `path` is the recorded one, `digest` the store's."""

    path: str
    digest: str


class Recorded:
    """One run, held open for its details. Everything in it is the suspect's claim."""

    def __init__(
        self, store: Store, folder: RunDir, seal: SignedSeal, entries: Sequence[Entry], earlier: Sequence[Entry] = ()
    ) -> None:
        self.store, self.folder, self.seal = store, folder, seal
        self.entries = entries
        self.history: History = trace(entries)
        self.key = read_digest_key(folder.private)
        self._details = DetailReader(folder.details)
        self._saves = [e for e in [*earlier, *entries] if isinstance(e, CheckpointSaved)]
        self._own_saves: list[CheckpointSaved] = []
        self.opened: dict[str, DataOpened] = {}
        """Data that the run opened and the seal does not list, by path: each is told once."""
        self._starts: dict[tuple[int, int], ProcessStarted] = {}
        self._updates: dict[int, Updates] = {}
        for e in entries:
            self._take(e)

    def _take(self, e: Entry) -> None:
        match e:
            case ProcessStarted():
                self._starts[e.attempt, e.rank] = e
            case StepRecord():
                self._updates.setdefault(e.attempt, {}).setdefault((e.step, e.optimizer), {})[e.rank] = e
            case CheckpointSaved():
                self._own_saves.append(e)
            case DataOpened():
                self.opened[e.path] = e
            case _:
                pass

    def grow(self, e: Entry) -> None:
        """The log has another entry; `entries` and `history` stay as they were."""
        self._take(e)
        if isinstance(e, CheckpointSaved):
            self._saves.append(e)

    def retrace(self, more: Sequence[Entry]) -> None:
        """The history again, with entries that `grow` has taken in since."""
        self.entries = [*self.entries, *more]
        self.history = trace(self.entries)

    def forget(self, attempt: int, before: int) -> None:
        """Drop an attempt's records of steps before this one, which nobody will ask for."""
        updates = self._updates.get(attempt, {})
        for key in [key for key in updates if key[0] < before]:
            del updates[key]

    def attempt(self, number: int) -> Attempt:
        """One attempt of the run. Raises CannotDecide when the log has none of that number."""
        for attempt in self.history.attempts:
            if attempt.number == number:
                return attempt
        raise CannotDecide(f"the log has no attempt {number}")

    def starts(self, attempt: int) -> list[tuple[ProcessStarted, dict[str, str]]]:
        """Every rank's start with its environment variables, by rank.

        Raises:
            CannotDecide: a rank of the attempt's world never introduced itself.
            StoreError, StoreTampered: its environment variables are missing or changed.
        """
        found = sorted((s for (a, _), s in self._starts.items() if a == attempt), key=lambda s: s.rank)
        worlds = {s.world for s in found}
        if not found or len(worlds) != 1 or [s.rank for s in found] != list(range(found[0].world)):
            said = ", ".join(str(s.rank) for s in found) or "none"
            raise CannotDecide(f"attempt {attempt} cannot be started again: ranks in the log: {said}")
        return [(s, read_env(self.folder.private, s.env_digest)) for s in found]

    def updates(self, attempt: int) -> Updates:
        """Every rank's record of each update of an attempt; it grows with the record."""
        return self._updates.setdefault(attempt, {})

    def seen(self, record: StepRecord) -> Seen:
        """A record with its details."""
        return Seen(record=record, details=self._details.get(record.attempt, record.rank, record.seq))

    def begun(self, record: StepRecord) -> Detail | None:
        """The weights that a record says it began with; None where the record does not say or contradicts itself."""
        updates = self.updates(record.attempt)
        steps = range(record.step - 1, self.attempt(record.attempt).base - 1, -1)
        earlier = (updates.get((step, record.optimizer), {}).get(record.rank) for step in steps)
        last = next((r for r in earlier if r is not None), None)
        left = self.seen(last).details.get(Stage.WEIGHTS) if last is not None else None
        return begun(self.key, record, left)

    @property
    def saves(self) -> tuple[tuple[int, int], ...]:
        """(attempt, steps done) of every file that this run saved."""
        return tuple(dict.fromkeys((s.attempt, s.step) for s in self._own_saves))

    def saved_by(self, attempt: int, done: int) -> dict[str, CheckpointSaved]:
        """The files that an attempt saved after `done` steps, the newest of each path."""
        return {s.path: s for s in in_place(self.every_save(attempt, done))}

    def every_save(self, attempt: int, done: int) -> list[CheckpointSaved]:
        """What an attempt saved after `done` steps, under every name that it had."""
        return [s for s in self._own_saves if (s.attempt, s.step) == (attempt, done)]

    def checkpoint_files(self, attempt: int, done: int) -> list[Placed]:
        """Those files, to be placed for a replay that resumes from them."""
        return self._kept(Placed(path=s.path, digest=s.digest) for s in self.saved_by(attempt, done).values())

    def start_files(self, attempt: Attempt) -> list[Placed]:
        """What an attempt found when it began: the folders of the checkpoints that it loaded, as they were saved.

        Raises:
            CannotDecide: it loaded a file that neither the log nor the seal knows, or no copy was kept.
        """
        files: dict[str, Placed] = {}
        for load in attempt.loaded:
            known = [s for s in self._saves if s.digest == load.digest]
            if not known:
                continue  # data of the seal, or a finding of its own; the workspace has what was sealed
            # What training does not change is equal in every checkpoint: then place and step say which it was.
            known = [s for s in known if s.path == load.path] or known
            known = [s for s in known if s.step == load.known_step] or known
            same = {(s.attempt, s.step, str(Path(s.path).parent)) for s in known}
            for s in self._saves:
                if (s.attempt, s.step, str(Path(s.path).parent)) in same:
                    moved = Path(load.path).parent / Path(s.path).name
                    files[str(moved)] = Placed(path=str(moved), digest=s.digest)
        return self._kept(files.values())

    def _kept(self, files: Iterable[Placed]) -> list[Placed]:
        kept = list(files)
        for file in kept:
            if not self.store.has(file.digest):
                raise CannotDecide(f"no copy of {file.path} ({file.digest[:12]}) was kept")
        return kept

    def entropy(self, attempt: int, rank: int) -> str:
        """The file of what a rank's unseeded generators began with, "" when it left none."""
        path = self.folder.snapshots / f"a{attempt}-r{rank}" / ENTROPY_FILE
        return str(path) if path.exists() else ""

    def snapshots(self, attempt: int, rank: int, kind: str) -> dict[int, Path]:
        """Steps done → snapshot file of a rank; kind "side" or "full"."""
        name = f"a{attempt}-r{rank}"
        folders = self.folder.pinned / name, self.folder.snapshots / name
        return {int(p.stem.partition("-")[2]): p for f in folders for p in sorted(f.glob(f"{kind}-*.safetensors"))}


def earlier_entries(store: Store, parent: str) -> list[Entry]:
    """The entries of the run that another recovers, and of those before it, oldest first."""
    earlier: list[Entry] = []
    seen: set[str] = set()
    while parent and parent not in seen:
        seen.add(parent)
        entries, _ = read_entries(store.run(parent))
        earlier = [*entries, *earlier]
        parent = next((e.parent for e in entries if isinstance(e, Sealed)), "")
    return earlier


def recorded_of(store: Store, case: CaseFile) -> Recorded:
    """The record of a run, with what the runs saved that it recovers.

    Raises:
        CannotDecide: its seal cannot be read.
        StoreError: its private folder is not there.
    """
    if case.seal is None:
        raise CannotDecide(f"run {case.run} has no readable seal", hint=f"trainwarden verify {case.run}")
    earlier = earlier_entries(store, case.sealed.parent)
    return Recorded(store, store.run(case.run), case.seal, case.entries, earlier)
