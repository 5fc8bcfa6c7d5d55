"""The bytes of the journal: frames of entries and of the tree heads signed over them. It only reads.

    frame  = kind (1 byte: "E" or "H") · length of the body (4 bytes, big-endian) · body
    E body = index (8 bytes, big-endian) · leaf hash (32 bytes, RFC 6962) · the entry's bytes
    H body = the signed note of the tree head over all entries before it

Rules
-----
* A batch is its entries, then one head. The first batch has no entry and the head of the empty tree.
* Index and leaf hash are there to *name* the entry that was changed; what convicts is the signed root.
* Reading stops at the first frame that is incomplete or not a frame; whether that is a torn tail or tampering
  depends on which side of the last signed head it lies, and is decided in `scan`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol, TypeAlias

import msgspec

from trainwarden.log.merkle import HASH_SIZE
from trainwarden.log.notes import MAX_NOTE

MAX_ENTRY = 64 * 1024 * 1024
_ENTRY, _HEAD = b"E", b"H"
_HEADER = struct.Struct(">cI")
_PREFIX = struct.Struct(f">Q{HASH_SIZE}s")
_WINDOW = 1024 * 1024


class Source(Protocol):
    """The journal's bytes, to be read at any offset."""

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end."""
        ...

    def size(self) -> int:
        """The number of bytes there are now."""
        ...


class EntryFrame(msgspec.Struct, frozen=True, gc=False):
    """One entry as the journal holds it, with the offsets of its frame."""

    index: int
    hash: bytes
    data: bytes
    start: int
    end: int


class HeadFrame(msgspec.Struct, frozen=True):
    """One kept tree head, with the offset after its frame."""

    note: bytes
    end: int


Frame: TypeAlias = EntryFrame | HeadFrame


def entry_frame(index: int, leaf: bytes, data: bytes) -> bytes:
    """The frame of an entry whose leaf hash is `leaf`."""
    return _HEADER.pack(_ENTRY, _PREFIX.size + len(data)) + _PREFIX.pack(index, leaf) + data


def head_frame(note: str) -> bytes:
    """The frame of a signed tree head."""
    body = note.encode()
    return _HEADER.pack(_HEAD, len(body)) + body


def read_frames(source: Source, offset: int, end: int) -> Iterator[Frame]:
    """The frames that lie whole between two offsets, up to the first that does not."""
    window = _Window(source, end)
    while (header := window.take(offset, _HEADER.size)) is not None:
        kind, length = _HEADER.unpack(header)
        start, body_at = offset, offset + _HEADER.size
        offset = body_at + length
        if kind == _HEAD and length <= MAX_NOTE and (note := window.take(body_at, length)) is not None:
            yield HeadFrame(note, offset)
        elif (
            kind == _ENTRY
            and _PREFIX.size <= length <= _PREFIX.size + MAX_ENTRY
            and (body := window.take(body_at, length)) is not None
        ):
            index, leaf = _PREFIX.unpack_from(body)
            yield EntryFrame(index, leaf, body[_PREFIX.size :], start, offset)
        else:
            return


class _Window:
    """Reads ahead, so that small frames do not cost a system call each."""

    def __init__(self, source: Source, end: int) -> None:
        self._source, self._end = source, end
        self._base, self._buffer = 0, b""

    def take(self, offset: int, size: int) -> bytes | None:
        if offset + size > self._end:
            return None
        start = offset - self._base
        if start < 0 or start + size > len(self._buffer):
            self._buffer = self._source.read(offset, min(max(size, _WINDOW), self._end - offset))
            self._base, start = offset, 0
        part = self._buffer[start : start + size]
        return part if len(part) == size else None
