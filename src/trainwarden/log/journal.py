"""The one writer of a log: appends batches of entries, each closed by a signed tree head.

Rules
-----
* `append` returns after its entries *and* the head over them are durable. Order: entries and head to the
  journal, fsync, then the head file replaced. So at any instant at most one batch lies beyond the head file.
* A failed append leaves the log as it was, and the next one may succeed (a disk gets space again).
* Opening checks the whole journal against the head. Missing or wrong below the head: `LogTampered`. Beyond
  it: a batch that is whole and signed is taken in (so that the same size is never signed twice), a torn one
  is cut. Neither was acknowledged.

Trust: whoever has the key can sign another history, and whoever can write the folder can put the whole log
back to an earlier state. Both need a witness to be seen; neither can be done by changing single bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainwarden.durable import hint_for
from trainwarden.errors import LogError, LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log.frames import MAX_ENTRY, entry_frame, head_frame, read_frames
from trainwarden.log.merkle import Frontier, leaf_hash
from trainwarden.log.notes import check_origin, parse_head, sign_head, verify_head
from trainwarden.log.scan import Position, check_not_rolled_back, read_to, unacknowledged
from trainwarden.log.storage import FolderStorage, Storage
from trainwarden.model import TreeHead


class LogWriter:
    """A log held open for appending; threads may share it."""

    def __init__(self, storage: Storage, key: SigningKey, head: TreeHead, at: Position) -> None:
        self._storage, self._key, self._head, self._at = storage, key, head, at
        self._guard = threading.Lock()
        self._dirty = False  # a failed append may have left bytes beyond `_at`
        self._lost = ""  # why it is no longer known what the storage holds

    @classmethod
    def create(cls, where: Path | Storage, origin: str, key: SigningKey) -> LogWriter:
        """Begin the log `origin` in a new or empty folder (or another storage).

        Raises:
            UsageError: `origin` cannot name a log.
            LogLocked: another process has the folder.
            LogError: there is a log already, or the folder cannot be written.
        """
        check_origin(origin)
        with log_errors(f"create the log {origin}"):
            storage = FolderStorage.for_writing(where, create=True) if isinstance(where, Path) else where
            try:
                return cls._begin(storage, origin, key)
            except BaseException:
                storage.close()
                raise

    @classmethod
    def _begin(cls, storage: Storage, origin: str, key: SigningKey) -> LogWriter:
        if storage.read_head() is not None:
            raise LogError(f"there is a log already where {origin} should begin", hint="open it instead")
        if sum(1 for _ in read_frames(storage, 0, storage.size())) > 1:
            raise LogTampered(
                f"the tree head is missing where {origin} should begin, but the journal has entries",
                hint="the head was removed: keep the folder as evidence and use a new one",
            )
        storage.truncate(0)  # what a creation that was cut short left
        head = sign_head(origin, 0, Frontier().root(), key)
        storage.append(frame := head_frame(head.note))
        storage.sync()
        storage.write_head(head.note.encode())
        return cls(storage, key, head, Position(len(frame), Frontier()))

    @classmethod
    def open(cls, where: Path | Storage, key: SigningKey) -> LogWriter:
        """Open a log to go on appending, after a crash as well.

        Raises:
            LogLocked: another process has it.
            LogTampered: it contradicts its head.
            SignatureInvalid: `key` did not sign it.
            LogError: there is no log, or it cannot be written.
        """
        with log_errors(f"open the log {where}"):
            storage = FolderStorage.for_writing(where) if isinstance(where, Path) else where
            try:
                return cls._recover(storage, key)
            except BaseException:
                storage.close()
                raise

    @classmethod
    def _recover(cls, storage: Storage, key: SigningKey) -> LogWriter:
        head, at = require_head(storage, key.public), Position()
        for batch in read_to(storage, head):
            at = batch.after
        beyond = unacknowledged(storage, at, storage.size(), key.public)
        check_not_rolled_back(head, beyond)
        if beyond:
            head, at = beyond[0].head, beyond[0].after
        if storage.size() > at.offset:
            storage.truncate(at.offset)
        if beyond:
            storage.sync()
            storage.write_head(head.note.encode())
        return cls(storage, key, head, at)

    @property
    def size(self) -> int:
        """The number of entries."""
        return self._head.size

    def head(self) -> TreeHead:
        """The newest signed tree head."""
        return self._head

    def append(self, entries: Sequence[bytes]) -> list[int]:
        """Append entries as one batch; on return they are durable under a signed head. Gives their indexes.

        Raises:
            LogError: they cannot be written (full disk, closed log, too large); the log is as before.
        """
        with self._guard:
            self._check_open(entries)
            if not entries:
                return []
            first = self._head.size
            hashes = [leaf_hash(entry) for entry in entries]
            frontier = self._at.frontier.extend(hashes)
            head = sign_head(self._head.origin, frontier.size, frontier.root(), self._key)
            frames = [entry_frame(i, h, entry) for i, (h, entry) in enumerate(zip(hashes, entries, strict=True), first)]
            self._write(b"".join([*frames, head_frame(head.note)]), head, frontier)
            return list(range(first, frontier.size))

    def _check_open(self, entries: Sequence[bytes]) -> None:
        if self._lost:
            raise LogError(f"the log {self._head.origin} takes no more entries: {self._lost}", hint="open it again")
        largest = max(map(len, entries), default=0)
        if largest > MAX_ENTRY:
            raise LogError(
                f"an entry of {largest} bytes is too large for the log, the limit is {MAX_ENTRY}",
                hint="store the bytes as an object and log their digest",
            )

    def _write(self, batch: bytes, head: TreeHead, frontier: Frontier) -> None:
        try:
            self._undo()
            self._dirty = True
            self._storage.append(batch)
            self._storage.sync()
        except OSError as e:
            self._undo_now()
            raise _failed(f"append to the log {head.origin}", e) from e
        after = Position(self._at.offset + len(batch), frontier)
        try:
            self._storage.write_head(head.note.encode())
        except OSError as e:
            self._settle(head, after)
            raise _failed(f"append to the log {head.origin}", e) from e
        self._head, self._at, self._dirty = head, after, False

    def _settle(self, head: TreeHead, after: Position) -> None:
        """Find out which head a failed replacement left: the journal must never be shorter than it says."""
        try:
            current = self._storage.read_head()
        except OSError as e:
            self._lost = f"its head cannot be read ({e.strerror})"
            return
        if current == head.note.encode():
            self._head, self._at, self._dirty = head, after, False
        else:
            self._undo_now()

    def _undo(self) -> None:
        if self._dirty:
            self._storage.truncate(self._at.offset)
            self._dirty = False

    def _undo_now(self) -> None:
        try:
            self._undo()
        except OSError:
            pass  # `_dirty` stays: the next append tries again, and opening cuts it too

    def close(self) -> None:
        """Give up the log and its lock; closing twice is harmless."""
        with self._guard:
            if self._lost != "it was closed":
                self._storage.close()
                self._lost = "it was closed"


@contextmanager
def log_errors(what: str) -> Iterator[None]:
    """Turn errors of the storage into `LogError` with a hint."""
    try:
        yield
    except OSError as e:
        raise _failed(what, e) from e


def require_head(storage: Storage, public_key: str) -> TreeHead:
    """The head in `storage`, signed by `public_key` (not judged when that is empty).

    Raises:
        LogError: there is none and there are no entries: no log was begun.
        LogTampered: it is missing or malformed.
        SignatureInvalid: another key signed it, or nobody.
        OSError: it cannot be read.
    """
    note = storage.read_head()
    if note is not None:
        return verify_head(note, public_key) if public_key else parse_head(note)
    if sum(1 for _ in read_frames(storage, 0, storage.size())) > 1:
        raise LogTampered("the signed tree head is missing, but the journal has entries", hint="the head was removed")
    raise LogError("there is no log: its creation was cut short", hint="start the run again")


def _failed(what: str, error: OSError) -> LogError:
    hint = "there is no log in that folder" if isinstance(error, FileNotFoundError) else hint_for(error)
    return LogError(f"cannot {what}: {error.strerror or error}", hint=hint)
