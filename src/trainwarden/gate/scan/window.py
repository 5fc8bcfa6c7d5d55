"""A stretch of bytes that is read in bounded pieces: of an open file, or of what was unpacked into a temporary one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

PIECE: Final = 1 << 20
MOST_UNPACKED: Final = 1 << 33
MOST_RATIO: Final = 2000


class TooLarge(ValueError):
    """Unpacking would take more room than a scan may use."""


class Window:
    """`size` bytes from `begin` of the file that `fd` is open on; `whole` windows keep their bytes in memory."""

    def __init__(self, fd: int, begin: int, size: int, owner: object = None) -> None:
        self._fd, self._begin, self.size, self._owner = fd, begin, size, owner

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`, fewer at the end.

        Raises:
            OSError: the file cannot be read.
        """
        count = min(count, self.size - offset)
        if count <= 0 or offset < 0:
            return b""
        got = os.pread(self._fd, count, self._begin + offset)
        while len(got) < count and (more := os.pread(self._fd, count - len(got), self._begin + offset + len(got))):
            got += more
        return got

    def part(self, offset: int, size: int) -> Window:
        """The stretch of `size` bytes from `offset`, cut off at this window's end."""
        offset = min(max(offset, 0), self.size)
        return Window(self._fd, self._begin + offset, max(0, min(size, self.size - offset)), self._owner)


def unpacked(pieces: Iterable[bytes], packed_size: int) -> Window:
    """A window on what `pieces` yield, kept on disk.

    Raises:
        TooLarge: it is more than a checkpoint of that packed size can be.
        OSError: the temporary folder is full.
    """
    import tempfile

    kept = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the window
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_UNPACKED or (size > 1 << 24 and size > MOST_RATIO * packed_size // 10):
            raise TooLarge(f"unpacks to more than {size:,} bytes from {packed_size:,}")
        kept.write(piece)
    kept.flush()
    return Window(kept.fileno(), 0, size, kept)
