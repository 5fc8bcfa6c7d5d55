"""Follows a run's own log while its writer is at work: durable entries only, in order, each checked.

Rules
-----
* Nothing beyond the durable head is looked at: an append that fails is undone by the writer, and what was never
  acknowledged is never sent.
* Every batch is held against its signed root before its first entry is handed out. A journal that contradicts its
  head is `LogTampered`, and nothing of it is handed out.
* What waits is left on disk: in memory are at most the entries asked for and the rest of one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

from trainwarden.errors import LogTampered
from trainwarden.log.frames import EntryFrame
from trainwarden.log.journal import log_errors, require_head
from trainwarden.log.scan import Position, read_batches
from trainwarden.log.storage import FolderStorage
from trainwarden.model import TreeHead


class Tail:
    """Hands out the entries from index `start` on; `head` is the newest durable head it saw."""

    def __init__(
        self, folder: Path, start: int = 0, public_key: str = "", progress: Callable[[int], None] = lambda size: None
    ) -> None:
        self._folder, self._key, self._progress = folder, public_key, progress
        self._start = start
        self._storage: FolderStorage | None = None
        self._at = Position()
        self._ready: deque[EntryFrame] = deque()
        self.head: TreeHead | None = None

    def peek(self, count: int) -> list[EntryFrame]:
        """Up to `count` entries that were not taken yet.

        Raises:
            LogError: there is no log, or it cannot be read.
            LogTampered: it contradicts its head.
            SignatureInvalid: the head is not signed by the public key that was given.
        """
        with log_errors(f"read the log {self._folder}"):
            self._fill(count)
        return [self._ready[i] for i in range(min(count, len(self._ready)))]

    def take(self, count: int) -> None:
        """Take entries off that were peeked at."""
        for _ in range(count):
            self._ready.popleft()

    @property
    def end(self) -> int:
        """The journal's length in bytes, what is being written included."""
        return self._storage.size() if self._storage is not None else 0

    @property
    def size(self) -> int:
        """The number of durable entries, as of the last look."""
        return self.head.size if self.head is not None else 0

    def close(self) -> None:
        if self._storage is not None:
            self._storage.close()
            self._storage = None

    def _fill(self, count: int) -> None:
        if self._storage is None:
            self._storage = FolderStorage.for_reading(self._folder)
        head = self.head = require_head(self._storage, self._key)
        if self._at.frontier.size >= head.size or len(self._ready) >= count:
            return
        for batch in read_batches(self._storage, self._at, self._storage.size()):
            self._at = batch.after
            if batch.head.size > head.size or (batch.head.size == head.size and batch.head.root != head.root):
                raise self._replaced(head, batch.head)
            self._ready.extend(frame for frame in batch.entries if frame.index >= self._start)
            self._progress(self._at.frontier.size)
            if self._at.frontier.size == head.size or len(self._ready) >= count:
                return
        raise LogTampered(
            f"the log was truncated: its head says {head.size} entries, the journal ends after "
            f"{self._at.frontier.size}",
            hint="keep it as evidence and compare it with a copy",
        )

    def _replaced(self, head: TreeHead, kept: TreeHead) -> LogTampered:
        return LogTampered(
            f"the tree head was replaced: it has size {head.size}, root {head.root}; the journal keeps size "
            f"{kept.size}, root {kept.root}",
            hint="keep it as evidence and compare it with a copy",
        )
