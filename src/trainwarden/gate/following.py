"""Follows the logs that a clearance stands on: each entry is verified and judged once, when it comes.

Rules
-----
* One look judges all of a log; further ones judge what came since, for whoever answers many times a second beside a run
  that goes on.
* Reading goes on where it ended: a batch counts once its entries are under a head that the run's key signed. A log that
  got shorter, whose head went back, or that is not there is a trouble.
* Open incidents are looked for when any of these logs, or that of custody, changed.
* A freeze is looked for anew when something that could be one came, or the store's list of frozen runs changed.

Trust: the run's key. What was read before is not read again: an entry that is altered later was counted already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from trainwarden import descent
from trainwarden.custody.ledger import folder as custody_folder
from trainwarden.errors import LogError, LogTampered, SignatureInvalid, StoreError, UsageError
from trainwarden.gate.findings import divergences, open_findings
from trainwarden.gate.incidents import open_on
from trainwarden.log.journal import log_errors, require_head
from trainwarden.log.scan import Batch, Position, read_batches
from trainwarden.log.storage import HEAD, FolderStorage
from trainwarden.model import CheckpointLoaded, Contained, Recovered, RunSeen, Severity, Undone, decode_entry
from trainwarden.store import Store


class Follower:
    """What one run's log has against a checkpoint; kept between looks."""

    def __init__(self, store: Store, seen: RunSeen, least: Severity) -> None:
        self._store, self._seen, self._least = store, seen, least
        self._at, self._head = Position(), 0
        self._found: dict[str, None] = {}
        self._frozen: tuple[str, ...] = ()
        self._marks: object = None
        self._related = True
        self._told: tuple[object, tuple[str, ...]] = (None, ())

    @property
    def head(self) -> Path:
        """The head of the run's log; with `store_marks` it changes when there may be something new."""
        return head_of(self._store, self._seen.run)

    def look(self) -> tuple[str, ...]:
        """What is against the checkpoint now; () for nothing."""
        looks = look_at(self.head), store_marks(self._store)
        if self._told[0] == looks:
            return self._told[1]
        incidents: tuple[str, ...] = ()
        try:
            incidents = open_on(self._store, self._seen.run)
            folder = self._store.run(self._seen.run).log
            with log_errors(f"read the log {folder}"), closing(FolderStorage.for_reading(folder)) as storage:
                self._read(storage)
            self._look_for_freezes()
        except (LogError, StoreError, UsageError, SignatureInvalid, msgspec.DecodeError) as e:
            self._told = None, ()  # it may pass: to be looked at again
            return (*incidents, f"run {self._seen.run} cannot be looked at: {e}", *self._frozen, *self._found)
        told = (*incidents, *self._frozen, *self._found)
        self._told = None if incidents else looks, told  # so may an incident that cannot be told of
        return told

    def _read(self, storage: FolderStorage) -> None:
        head, size = require_head(storage, self._seen.key), storage.size()
        if size < self._at.offset or head.size < self._head:
            raise LogTampered(f"it was cut or put back: {self._head} entries were seen, its head says {head.size}")
        for batch in read_batches(storage, self._at, size, self._seen.key):
            self._take(batch)
            self._at = batch.after
        self._head = head.size
        size, known = self._at.frontier.size, self._seen.size
        if size < known:
            raise LogTampered(f"it has {size} entries, {known} were there when it was cleared")
        if size < head.size:
            raise LogTampered(f"it has {size} entries, its head says {head.size}")

    def _take(self, batch: Batch) -> None:
        before, after, known = self._at.frontier.size, batch.after.frontier, self._seen.size
        if before < known <= after.size and (after.size != known or after.root().hex() != self._seen.root):
            raise LogTampered("it is another one than when it was cleared")
        for frame in batch.entries:
            if frame.index >= known:
                self._found.update(dict.fromkeys(self._judge(frame.index, frame.data)))

    def _judge(self, index: int, data: bytes) -> Iterator[str]:
        entry, run, until = decode_entry(data), self._seen.run, self._seen.until
        self._related |= isinstance(entry, Contained | Undone | Recovered | CheckpointLoaded)
        for _, diverged in divergences([(index, entry)], until):
            yield f"run {run} diverged at step {diverged.at.step} (entry {index}: {diverged.at.words})"
        for _, finding in open_findings([(index, entry)], until, self._least):
            yield f"run {run}, entry {index}, {finding.severity} finding {finding.detector}: {finding.seen}"

    def _look_for_freezes(self) -> None:
        marks = frozen_marks(self._store)
        if not self._related and marks == self._marks:
            return
        self._frozen = tuple(
            f"run {frozen.run} is frozen (entry {frozen.index}: {frozen.reason or 'no reason given'})"
            for frozen in descent.frozen_by(self._store, self._seen.run)
        )
        self._related, self._marks = False, marks


def head_of(store: Store, run: str) -> Path:
    """Where the head of a run's log lies."""
    return store.path / "runs" / run / "log" / HEAD


def frozen_marks(store: Store) -> object:
    """The runs that are marked as frozen, each with its log's head: the mark comes before the entry that freezes."""
    try:
        names = sorted(os.listdir(store.frozen))
    except OSError:
        return ()
    return tuple((name, look_at(head_of(store, name))) for name in names)


def store_marks(store: Store) -> object:
    """What changes when anything of the whole store may be against a checkpoint: freezes, and the log of custody."""
    return frozen_marks(store), look_at(custody_folder(store) / HEAD)


def look_at(head: Path) -> bytes | None:
    """The head that lies there, None for none.

    Not its times: two that are written within one tick of the clock have the same, and may have the same inode.
    """
    try:
        return head.read_bytes()
    except OSError:
        return None
