"""Follows the logs that a clearance stands on: each entry is verified and judged once, when it comes.

Rules
-----
* The same judgement as `troubles.against`, for whoever has to answer many times a second beside a run that goes on.
* Reading goes on where it ended: a batch counts once its entries are under a head that the run's key signed. A log that
  got shorter, whose head went back, or that is not there is a trouble.
* A freeze is looked for anew when something that could be one came, or the store's list of frozen runs changed.

Trust: the run's key. What was read before is not read again: an entry that is altered later was counted already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from trainwarden import descent
from trainwarden.errors import LogError, LogTampered, SignatureInvalid, StoreError, UsageError
from trainwarden.gate.findings import divergences, open_findings
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
    def watched(self) -> tuple[Path, ...]:
        """The files that change when there may be something new."""
        return self._store.path / "runs" / self._seen.run / "log" / HEAD, self._store.frozen

    def look(self) -> tuple[str, ...]:
        """What is against the checkpoint now; () for nothing."""
        looks = tuple(identity(path) for path in self.watched)
        if self._told[0] == looks:
            return self._told[1]
        try:
            folder = self._store.run(self._seen.run).log
            with log_errors(f"read the log {folder}"), closing(FolderStorage.for_reading(folder)) as storage:
                self._read(storage)
            self._look_for_freezes()
        except (LogError, StoreError, UsageError, SignatureInvalid, msgspec.DecodeError) as e:
            self._told = None, ()  # it may pass: to be looked at again
            return (f"run {self._seen.run} cannot be looked at: {e}", *self._frozen, *self._found)
        self._told = looks, (*self._frozen, *self._found)
        return self._told[1]

    def _read(self, storage: FolderStorage) -> None:
        head, size = require_head(storage, self._seen.key), storage.size()
        if size < self._at.offset or head.size < self._head:
            raise LogTampered(f"it was cut or put back: {self._head} entries were seen, its head says {head.size}")
        for batch in read_batches(storage, self._at, size, self._seen.key):
            self._take(batch)
            self._at = batch.after
        self._head = head.size
        if self._at.frontier.size < max(head.size, self._seen.size):
            raise LogTampered(
                f"it has {self._at.frontier.size} entries, {max(head.size, self._seen.size)} were there before"
            )

    def _take(self, batch: Batch) -> None:
        before, after, known = self._at.frontier.size, batch.after.frontier, self._seen.size
        if before < known <= after.size and (after.size != known or after.root().hex() != self._seen.root):
            raise LogTampered("it is another log than when the checkpoint was cleared")
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
        marks = identity(self._store.frozen)
        if not self._related and marks == self._marks:
            return
        self._frozen = tuple(
            f"run {frozen.run} is frozen (entry {frozen.index}: {frozen.reason or 'no reason given'})"
            for frozen in descent.frozen_by(self._store, self._seen.run)
        )
        self._related, self._marks = False, marks


def identity(path: Path) -> tuple[int, ...]:
    """What tells that something else is at `path` now, or that it was written; () where there is nothing."""
    try:
        s = path.stat()
    except OSError:
        return ()
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns
