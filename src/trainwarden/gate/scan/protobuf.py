"""Protocol buffers' wire format (protobuf.dev, "Encoding"), read without knowing the messages."""

from __future__ import annotations

from collections.abc import Iterator

from trainwarden.gate.scan.window import Window


class BadMessage(ValueError):
    """No protobuf message."""


def fields(window: Window, begin: int, end: int, spent: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where the value of each field begins and ends; `spent` counts fields over several calls.

    Raises:
        BadMessage: these bytes are no message.
    """
    at = begin
    while at < end:
        spent[0] += 1
        if spent[0] > 1 << 21:
            raise BadMessage("too many fields")
        raw = window.read(at, 20)
        key, used = _varint(raw, 0)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, after = _varint(raw, used)
            start, stop = at + used, at + after
        elif kind == 2:
            size, after = _varint(raw, used)
            start, stop = at + after, at + after + size
        elif kind in (1, 5):
            start, stop = at + used, at + used + (8 if kind == 1 else 4)
        else:
            raise BadMessage(f"a field of kind {kind}")
        if stop > end or number == 0:
            raise BadMessage("a field reaches past its message")
        yield number, kind, start, stop
        at = stop


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 70:
        value |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if raw[at - 1] < 0x80:
            return value, at
    raise BadMessage("a number without an end")
