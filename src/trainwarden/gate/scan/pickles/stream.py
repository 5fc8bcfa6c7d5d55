"""The bytes of a pickle, read forwards in bounded pieces."""

from __future__ import annotations

from typing import Final

from trainwarden.gate.scan.window import Window

MOST_KEPT: Final = 1 << 23
_CHUNK: Final = 1 << 16


class Broken(Exception):
    """The stream ends, or cannot be followed, before its STOP."""


class Stream:
    """The bytes of `window` from `at` on; `buffer[pos]` is the next one, and lies at `base + pos`."""

    def __init__(self, window: Window, at: int) -> None:
        self.window = window
        self.buffer, self.base, self.pos = window.read(at, _CHUNK), at, 0
        self._kept = 0

    def offset(self) -> int:
        """Where the next byte is."""
        return self.base + self.pos

    def take(self, count: int) -> bytes:
        """The next `count` bytes, which must be there."""
        begin = self.pos
        end = begin + count
        if end > len(self.buffer):
            self.base, begin, end = self.offset(), 0, count
            self.buffer = self.window.read(self.base, max(count, _CHUNK))
            if len(self.buffer) < count:
                raise Broken("the stream is cut off")
        self.pos = end
        return self.buffer[begin:end]

    def number(self, width: int) -> int:
        """The next `width` bytes as a little-endian number without sign."""
        return int.from_bytes(self.take(width), "little")

    def skip(self, count: int) -> None:
        """Pass over `count` bytes, which must be there."""
        if self.offset() + count > self.window.size:
            raise Broken("the stream is cut off")
        if self.pos + count <= len(self.buffer):
            self.pos += count
        else:
            self.base, self.pos, self.buffer = self.offset() + count, 0, b""

    def line(self) -> bytes:
        """The bytes up to the next newline, without it."""
        end = self.buffer.find(b"\n", self.pos)
        if end < 0:
            here = self.offset()
            self.buffer, self.base, self.pos = self.window.read(here, _CHUNK), here, 0
            end = self.buffer.find(b"\n")
            if end < 0:
                raise Broken("a line has no end")
        got = self.buffer[self.pos : end]
        self.pos = end + 1
        return got

    def keep(self, size: int) -> None:
        """Count `size` more bytes that are held in memory."""
        self._kept += size
        if self._kept > MOST_KEPT:
            raise Broken("it holds more names than a scan keeps")
