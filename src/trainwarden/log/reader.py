"""Reads a log while its writer may be at work, as of the head that was newest when it was opened.

Rules
-----
* No entry is handed out that contradicts the head: what `read_to` checks is checked here as well.
* With a public key the head and every kept head must be signed by it; without one, the reader finds damage and
  clumsy edits, not an attacker who re-signs: use `verify_log` to judge.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from trainwarden.errors import UsageError
from trainwarden.log.frames import EntryFrame, read_frames
from trainwarden.log.journal import log_errors, require_head
from trainwarden.log.merkle import Tree, leaf_hash
from trainwarden.log.scan import read_to, rewritten
from trainwarden.log.storage import FolderStorage, Storage
from trainwarden.model import TreeHead


class LogReader:
    """A log held open for reading; `head` stays what it was at opening."""

    def __init__(self, storage: Storage, head: TreeHead, public_key: str = "") -> None:
        self.head = head
        self._storage, self._public_key = storage, public_key
        self._offsets = array("Q")
        self._tree: Tree | None = None

    @classmethod
    def open(cls, where: Path | Storage, public_key: str = "") -> LogReader:
        """Open the log in a folder (or another storage).

        Raises:
            LogError: there is no log, or it cannot be read.
            LogTampered: its head is missing or malformed.
            SignatureInvalid: `public_key` did not sign its head.
        """
        with log_errors(f"read the log {where}"):
            storage = FolderStorage.for_reading(where) if isinstance(where, Path) else where
            try:
                return cls(storage, require_head(storage, public_key), public_key)
            except BaseException:
                storage.close()
                raise

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """All entries in order with their indexes, each batch checked before its first is handed out.

        Raises:
            LogError, LogTampered, SignatureInvalid: at the first batch that cannot be read or contradicts a head.
        """
        with log_errors(f"read the log {self.head.origin}"):
            for batch in read_to(self._storage, self.head, self._public_key):
                for frame in batch.entries:
                    yield frame.index, frame.data

    def entry(self, index: int) -> bytes:
        """One entry.

        Raises:
            UsageError: there is no such entry.
            LogError, LogTampered, SignatureInvalid: as `entries`.
        """
        tree = self._index()
        if not 0 <= index < tree.size:
            raise UsageError(f"the log has no entry {index}, it has {tree.size}")
        with log_errors(f"read the log {self.head.origin}"):
            frame = next(read_frames(self._storage, self._offsets[index], self._storage.size()), None)
        found = leaf_hash(frame.data) if isinstance(frame, EntryFrame) else b""
        if not isinstance(frame, EntryFrame) or found != tree.leaf(index):
            raise rewritten(index, tree.leaf(index), found)
        return frame.data

    def inclusion_proof(self, index: int) -> list[bytes]:
        """The hashes that lead from leaf `index` to the head's root (RFC 6962, 2.1.1).

        Raises:
            UsageError: there is no such entry.
            LogError, LogTampered, SignatureInvalid: as `entries`.
        """
        try:
            return self._index().inclusion_proof(index)
        except IndexError as e:
            raise UsageError(f"no inclusion proof: {e}") from None

    def consistency_proof(self, old: int) -> list[bytes]:
        """The hashes that show that the log only grew since it had `old` entries (RFC 6962, 2.1.2).

        Raises:
            UsageError: the log never had that size.
            LogError, LogTampered, SignatureInvalid: as `entries`.
        """
        try:
            return self._index().consistency_proof(old)
        except IndexError as e:
            raise UsageError(f"no consistency proof: {e}") from None

    def root_at(self, size: int) -> bytes:
        """The root that the log had at `size` entries.

        Raises:
            UsageError: the log never had that size.
            LogError, LogTampered, SignatureInvalid: as `entries`.
        """
        try:
            return self._index().root(size)
        except IndexError as e:
            raise UsageError(f"no root: {e}") from None

    def close(self) -> None:
        """Give up the files."""
        self._storage.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _index(self) -> Tree:
        """The tree and the entries' offsets, from one checked walk."""
        if self._tree is None:
            tree, offsets = Tree(), array("Q")
            with log_errors(f"read the log {self.head.origin}"):
                for batch in read_to(self._storage, self.head, self._public_key):
                    tree.extend(frame.hash for frame in batch.entries)
                    offsets.extend(frame.start for frame in batch.entries)
            self._tree, self._offsets = tree, offsets
        return self._tree
