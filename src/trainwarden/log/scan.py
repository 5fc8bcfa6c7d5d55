"""Walks the journal batch by batch and holds every entry against the signed roots.

Rules
-----
* A batch is handed out only after all of it was checked: indexes in order, each entry under its leaf hash, and
  the root over all entries so far equal to the head that closes the batch.
* Up to the head that the caller trusts, any defect is `LogTampered`. Beyond it lies at most one batch that
  was being written when the writer died: it was never acknowledged and is not part of the log.
* The message says what can be told apart: truncated, rewritten, swapped, removed, head replaced. An attacker
  who forges indexes and leaf hashes as well is still caught by the root, and located to the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trainwarden.errors import LogTampered, SignatureInvalid
from trainwarden.log.frames import EntryFrame, HeadFrame, Source, read_frames
from trainwarden.log.merkle import Frontier, leaf_hash
from trainwarden.log.notes import parse_head, verify_head
from trainwarden.model import TreeHead

_HINT = "the log was changed after it was written: keep it as evidence and compare it with a copy"


class Position(msgspec.Struct, frozen=True):
    """How far a walk has come: the offset after a batch and the tree over all entries before it."""

    offset: int = 0
    frontier: Frontier = Frontier()


class Batch(msgspec.Struct, frozen=True):
    """Entries that were appended together, the head signed over them, and the position after it."""

    entries: tuple[EntryFrame, ...]
    head: TreeHead
    after: Position


def read_to(source: Source, head: TreeHead, public_key: str = "", at: Position | None = None) -> Iterator[Batch]:
    """The checked batches from `at` (default: the begin) up to the trusted `head`; with a public key, each kept head's
    signature as well.

    Raises:
        LogTampered: the journal contradicts the head.
        SignatureInvalid: a kept head is not signed by `public_key`.
    """
    at = at or Position()
    for batch in read_batches(source, at, source.size(), public_key):
        at = batch.after
        kept = batch.head
        if kept.origin != head.origin:
            raise _tampered(f"the head of size {kept.size} is of log {kept.origin!r}, expected {head.origin!r}")
        if kept.size > head.size:
            raise _tampered(
                f"the tree head was replaced: none of size {head.size} was kept, the next has size {kept.size}"
            )
        if kept.size == head.size and kept.note != head.note:
            raise _tampered(
                f"the tree head of size {head.size} was replaced: it has root {head.root}, "
                f"the journal keeps root {kept.root}"
            )
        yield batch
        if kept.size == head.size:
            return
    raise _unfinished(source, at, head)


def read_batches(source: Source, at: Position, end: int, public_key: str = "") -> Iterator[Batch]:
    """The checked batches that lie whole between a position and an offset.

    Raises:
        LogTampered: an entry or a head contradicts the others.
        SignatureInvalid: a head is not signed by `public_key`.
    """
    entries: list[EntryFrame] = []
    for frame in read_frames(source, at.offset, end):
        if isinstance(frame, EntryFrame):
            _check_entry(source, frame, at.frontier.size + len(entries))
            entries.append(frame)
            continue
        frontier = at.frontier.extend(entry.hash for entry in entries)
        head = _check_head(frame, frontier, at, public_key)
        at = Position(frame.end, frontier)
        yield Batch(tuple(entries), head, at)
        entries.clear()


def unacknowledged(source: Source, at: Position, end: int, public_key: str) -> list[Batch]:
    """The whole, correctly signed batches beyond the last head; what is torn or forged there is left out."""
    found: list[Batch] = []
    try:
        for batch in read_batches(source, at, end, public_key):
            found.append(batch)
    except (LogTampered, SignatureInvalid):
        pass  # not part of the log: nobody was told that it is
    return found


def check_not_rolled_back(head: TreeHead, beyond: list[Batch]) -> None:
    """A writer replaces the head before it starts the next batch, so at most one signed batch lies beyond it.

    Raises:
        LogTampered: there are more: an old head was put back.
    """
    if len(beyond) > 1:
        newest = beyond[-1].head
        raise _tampered(
            f"the tree head was rolled back: it has size {head.size}, root {head.root}; "
            f"the journal goes on to a signed head of size {newest.size}, root {newest.root}"
        )


def rewritten(index: int, logged: bytes, found: bytes) -> LogTampered:
    """The error for an entry whose bytes no longer have their leaf hash."""
    return _tampered(
        f"entry {index} was rewritten: its leaf hash is {logged.hex()}, its content has {found.hex() or 'none'}"
    )


def _check_entry(source: Source, frame: EntryFrame, expected: int) -> None:
    if frame.index != expected:
        later = next((f for f in _entries_from(source, frame.end) if f.index == expected), None)
        if later is None:
            raise _tampered(f"entry {expected} was removed: entry {frame.index} is in its place")
        raise _tampered(f"entries {expected} and {frame.index} were swapped, or the order was changed there")
    found = leaf_hash(frame.data)
    if found == frame.hash:
        return
    twin = next((f for f in _entries_from(source, 0) if f.hash == found), None)
    if twin is None:
        raise rewritten(expected, frame.hash, found)
    raise _tampered(
        f"entries {expected} and {twin.index} were swapped: entry {expected} has leaf hash {frame.hash.hex()}, "
        f"its content has {found.hex()}, that of entry {twin.index}"
    )


def _check_head(frame: HeadFrame, frontier: Frontier, before: Position, public_key: str) -> TreeHead:
    head = verify_head(frame.note, public_key) if public_key else parse_head(frame.note)
    first, size = before.frontier.size, frontier.size
    if head.size != size:
        what = "removed" if head.size > size else "added"
        raise _tampered(f"entries were {what} before the head of size {head.size}: the journal has {size} up to there")
    if size == first and before.offset:
        raise _tampered(f"the head of size {size} is in the journal twice")
    found = frontier.root().hex()
    if found != head.root:
        span = f"one of the entries {first} to {size - 1}" if size else "the empty log's head"
        raise _tampered(
            f"{span} was rewritten together with its hash: the head of size {size} has root {head.root}, "
            f"the entries give {found}"
        )
    return head


def _unfinished(source: Source, at: Position, head: TreeHead) -> LogTampered:
    offset, entry = at.offset, at.frontier.size
    for frame in read_frames(source, at.offset, source.size()):
        offset, entry = frame.end, entry + isinstance(frame, EntryFrame)
    if offset == source.size():
        return _tampered(f"the log was truncated: its head says {head.size} entries, the journal ends after {entry}")
    return _tampered(
        f"the journal cannot be read from byte {offset}, where entry {entry} of {head.size} or a head should "
        f"be: truncated or rewritten there"
    )


def _entries_from(source: Source, offset: int) -> Iterator[EntryFrame]:
    return (f for f in read_frames(source, offset, source.size()) if isinstance(f, EntryFrame))


def _tampered(message: str) -> LogTampered:
    return LogTampered(message, hint=_HINT)
