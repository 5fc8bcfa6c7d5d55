"""Turns entries of a run's log into items for a log server. Pure: entries in, items out.

Rules
-----
* Nothing is left out and nothing is reordered: item by item, `first` to `last` cover the log without a hole.
* Consecutive step records are one item: a Parquet file as the object, bound by a `RecordBatch`. Every other entry is
  an item of its own; a large one travels as the object, one over `MAX_OBJECT` stays on the host and is bound by its
  leaf hash.
* `check_pack` recomputes a leaf from the host's entries. Of a batch's Parquet file it takes size and digest as the
  leaf has them: which rows it holds follows from the root over their leaf hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from blake3 import blake3

from trainwarden.errors import LogTampered, UsageError
from trainwarden.log import merkle
from trainwarden.log.frames import EntryFrame
from trainwarden.log.protocol import MAX_LEAF, MAX_OBJECT, Bound, Item
from trainwarden.model import LoggedEntry, RecordBatch, StepRecord, canonical, decode_entry, decode_leaf

_STEP = b'{"type":"step"'


class Pack(msgspec.Struct, frozen=True):
    """An item and the entries of the host's log that it stands for; `end` is the journal's offset behind them."""

    first: int
    last: int
    end: int
    item: Item


class Source(msgspec.Struct, frozen=True):
    """Whose log the entries are from."""

    host: str
    run: str


def pack(frames: Sequence[EntryFrame], source: Source, head: str = "", most: int = 4096) -> Iterator[Pack]:
    """The items of consecutive entries, at most `most` records in one; `head` is a signed head that covers them."""
    from trainwarden.log.records import MAX_RECORDS

    rows: list[tuple[EntryFrame, StepRecord]] = []
    for frame in frames:
        record = _record(frame.data)
        if rows and (record is None or len(rows) >= min(most, MAX_RECORDS)):
            yield from _batch(rows, source, head, most)
            rows.clear()
        if record is None:
            yield _entry(frame, source)
        else:
            rows.append((frame, record))
    if rows:
        yield from _batch(rows, source, head, most)


def waits(data: bytes) -> bool:
    """Whether an entry may wait for others of its batch: a step record, by the first bytes of its canonical form."""
    return data.startswith(_STEP)


def object_digest(item: Item) -> str:
    """The digest by which the server's entry binds the item's object, "" when there is none."""
    return blake3(item.object).hexdigest() if item.object else ""


def entry_hash(host: str, run: str, seq: int, object: str, leaf: bytes) -> bytes:
    """The leaf hash of item `seq` in the server's log (see `protocol.entry_bytes`)."""
    bound = Bound(host=host, run=run, seq=seq, object=object)
    return merkle.leaf_hash(msgspec.json.encode(bound) + b"\n" + leaf)


def check_pack(leaf: bytes, frames: Sequence[EntryFrame], source: Source) -> None:
    """Check that `leaf` is what these entries of the host's log make.

    Raises:
        LogTampered: it is of other entries, or of entries with other bytes.
    """
    try:
        found = decode_leaf(leaf)
    except msgspec.DecodeError as e:
        raise LogTampered(f"a leaf that was sent is none of ours: {e}") from None
    first, last = frames[0].index, frames[-1].index
    if canonical(found) != leaf or (found.host, found.run) != (source.host, source.run):
        raise LogTampered(f"the leaf of entries {first} to {last} is of host {found.host!r}, run {found.run!r}")
    root = merkle.root([frame.hash for frame in frames]).hex()
    match found:
        case RecordBatch():
            same = (found.first, found.last, found.count, found.leaves) == (first, last, len(frames), root)
            sent = found.leaves
        case LoggedEntry():
            same = found == _leaf_of(frames[0], source, found.entry != "") and len(frames) == 1
            sent = found.leaf
    if not same:
        raise LogTampered(
            f"entries {first} to {last} of this log are not those that were sent: root {root}, sent {sent}",
            hint="the log of this host was rewritten after it was sent: keep it as evidence",
        )


def _record(data: bytes) -> StepRecord | None:
    from trainwarden.log.records import fits  # here: pyarrow is for who packs, not for who starts or reads a run

    try:
        entry = decode_entry(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return entry if isinstance(entry, StepRecord) and fits(entry) else None


def _batch(rows: Sequence[tuple[EntryFrame, StepRecord]], source: Source, head: str, most: int) -> Iterator[Pack]:
    from trainwarden.log.records import batch

    frames = [frame for frame, _ in rows]
    try:
        data, bound = batch(
            [record for _, record in rows],
            [frame.hash for frame in frames],
            host=source.host,
            run=source.run,
            first=frames[0].index,
            head=head,
        )
    except UsageError:
        data, bound = b"", None
    if bound is None or len(data) > MAX_OBJECT:  # cannot be with what `fits` passed; then each goes by itself
        yield from (_entry(frame, source) for frame in frames)
        return
    yield Pack(frames[0].index, frames[-1].index, frames[-1].end, Item(leaf=canonical(bound), object=data))


def _entry(frame: EntryFrame, source: Source) -> Pack:
    leaf = _leaf_of(frame, source, in_leaf=True)
    data = canonical(leaf)
    if len(data) <= MAX_LEAF and leaf.entry:
        return Pack(frame.index, frame.index, frame.end, Item(leaf=data))
    carried = frame.data if len(frame.data) <= MAX_OBJECT else b""
    leaf = _leaf_of(frame, source, in_leaf=False)
    return Pack(frame.index, frame.index, frame.end, Item(leaf=canonical(leaf), object=carried))


def _leaf_of(frame: EntryFrame, source: Source, in_leaf: bool) -> LoggedEntry:
    try:
        text = frame.data.decode() if in_leaf else ""
    except UnicodeDecodeError:
        text = ""
    return LoggedEntry(
        host=source.host,
        run=source.run,
        index=frame.index,
        leaf=frame.hash.hex(),
        size=len(frame.data),
        entry=text,
    )
