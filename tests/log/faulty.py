"""A storage in memory that crashes or fails at any chosen point, and the states a crash can leave behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


class Crash(BaseException):
    """The machine stopped here."""


class FaultyStorage:
    """Keeps apart what was written and what is durable. Every effect passes a numbered point.

    With `crash_at` the process dies at that point. With `fail_at` and `fail_for` that many points from there on
    raise `OSError(code)` instead of having their effect.
    """

    def __init__(
        self,
        journal: bytes = b"",
        head: bytes | None = None,
        *,
        crash_at: int = -1,
        fail_at: int = -1,
        fail_for: int = 1,
        code: int = errno.ENOSPC,
    ) -> None:
        self.journal, self.durable_journal = bytearray(journal), bytes(journal)
        self.head = self.durable_head = head
        self.crash_at, self.fail_at, self.fail_for, self.code = crash_at, fail_at, fail_for, code
        self.points = 0
        self.closed = False

    def _point(self) -> None:
        now, self.points = self.points, self.points + 1
        if now == self.crash_at:
            raise Crash
        if self.fail_at <= now < self.fail_at + self.fail_for:
            raise OSError(self.code, os.strerror(self.code))

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.journal[offset : offset + size])

    def size(self) -> int:
        return len(self.journal)

    def read_head(self) -> bytes | None:
        return self.head

    def append(self, data: bytes) -> None:
        self._point()
        half = len(data) // 2
        self.journal += data[:half]
        self._point()
        self.journal += data[half:]
        self._point()

    def sync(self) -> None:
        self._point()
        self.durable_journal = bytes(self.journal)
        self._point()

    def truncate(self, size: int) -> None:
        self._point()
        del self.journal[size:]
        self._point()

    def write_head(self, note: bytes) -> None:
        self._point()  # the new file is written and synced beside the old one
        self._point()
        self.head = note
        self._point()  # renamed, but the folder is not synced yet
        self.durable_head = note
        self._point()

    def close(self) -> None:
        self.closed = True

    def survivors(self) -> Iterator[FaultyStorage]:
        """What may be found after the crash: nothing, all, or part of what was not synced had been persisted."""
        written, durable = bytes(self.journal), self.durable_journal
        torn = written[: (len(durable) + len(written)) // 2]
        holes = written[: len(durable)] + bytes(max(0, len(written) - len(durable)))
        unordered = holes[:-10] + written[-10:] if len(holes) > len(durable) + 10 else holes
        for journal in dict.fromkeys((durable, written, torn, holes, unordered)):
            for head in dict.fromkeys((self.durable_head, self.head)):
                yield FaultyStorage(journal, head)

    def process_died(self, crash_at: int) -> FaultyStorage:
        """What the next process finds when only this one died: all that was written, not yet all of it durable."""
        after = FaultyStorage(bytes(self.journal), self.head, crash_at=crash_at)
        after.durable_journal, after.durable_head = self.durable_journal, self.durable_head
        return after


class Reopened(FaultyStorage):
    """The same bytes without the faults."""

    def __init__(self, storage: FaultyStorage) -> None:
        super().__init__(bytes(storage.journal), storage.head)
