"""Follows a log while it grows: each entry is verified and handed out once, when it comes.

Rules
-----
* Reading goes on where it ended; a batch counts once its entries are under a head that the key signed, and the log ends
  at the head that lies there now, as for `verify_log`.
* A log that got shorter, whose head went back or has another root, is `LogTampered`, at every look until it is mended.
* The root at every kept head is remembered, so that a head that somebody else saw can be held against this log.

Trust: what was read before is not read again. An entry that is altered later was counted as it was.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from trainwarden.errors import LogTampered
from trainwarden.log.journal import log_errors, require_head
from trainwarden.log.scan import Batch, Position, check_not_rolled_back, read_to, unacknowledged
from trainwarden.log.storage import FolderStorage
from trainwarden.model import TreeHead

_ROOT = 32  # bytes


class LogFollower:
    """One log in a folder, under one key; for one thread at a time."""

    def __init__(self, folder: Path, key: str, origin: str = "") -> None:
        self.key, self._folder, self._origin = key, folder, origin
        self._at = Position()
        self._sizes, self._roots = array("Q"), bytearray()  # of all kept heads

    @property
    def size(self) -> int:
        """The entries that were handed out."""
        return self._at.frontier.size

    def new(self) -> Iterator[Batch]:
        """What came since; a batch counts as handed out when the next one is asked for.

        Raises:
            LogTampered: the log does not continue what was read, or contradicts its head.
            SignatureInvalid: a head is not signed by the key.
            LogError: there is no log, or it cannot be read.
        """
        with log_errors(f"read the log {self._folder}"), closing(FolderStorage.for_reading(self._folder)) as storage:
            written = storage.size()  # before the head: a writer can then only have moved that on
            head = require_head(storage, self.key)
            self._check_continues(head, written)
            if head.size > self.size or not self._at.offset:
                for batch in read_to(storage, head, self.key, self._at):
                    yield batch
                    self._take(batch)
            if self._at.frontier.root().hex() != head.root:
                raise LogTampered(f"its head of {head.size} entries was replaced: it has root {head.root}")
            check_not_rolled_back(head, unacknowledged(storage, self._at, written, self.key))

    def root(self, size: int) -> str:
        """The root that the log had at a kept head of that size, "" where there is none."""
        at = bisect_left(self._sizes, size)
        if at == len(self._sizes) or self._sizes[at] != size:
            return ""
        return self._roots[at * _ROOT : (at + 1) * _ROOT].hex()

    def _take(self, batch: Batch) -> None:
        self._at = batch.after
        self._sizes.append(batch.after.frontier.size)
        self._roots += batch.after.frontier.root()

    def _check_continues(self, head: TreeHead, written: int) -> None:
        if self._origin and head.origin != self._origin:
            raise LogTampered(f"this is the log {head.origin!r}, expected {self._origin!r}")
        if head.size < self.size:
            raise LogTampered(f"it was cut or put back: it has {head.size} entries, {self.size} were seen")
        if written < self._at.offset:
            raise LogTampered(f"it was cut: its journal has {written} bytes, {self._at.offset} were read")
