"""PNG and JPEG files that lie beside models: complete, and nothing behind their end."""

from __future__ import annotations

import zlib
from typing import Final

from trainwarden.gate.results import Clean, Decision, refused
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.window import Window

PNG: Final = b"\x89PNG\r\n\x1a\n"
JPEG: Final = b"\xff\xd8\xff"
_MOST: Final = 1 << 26  # bytes of a chunk


def read_png(window: Window, place: Place) -> Decision:
    """Chunks with their sums up to IEND (W3C PNG, third edition, 5.3)."""
    at = len(PNG)
    while len(head := window.read(at, 8)) == 8:
        size, name = int.from_bytes(head[:4], "big"), head[4:]
        if size > _MOST:
            return place.undecided("png", "a chunk that is too large for a picture beside a model")
        body = window.read(at + 4, size + 8)
        if len(body) != size + 8 or zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "big"):
            break
        at += size + 12
        if name == b"IEND":
            if at == window.size:
                return Clean(kind="png")
            return refused("png", place.path, "bytes behind the picture's end", offset=at, field="IEND")
    return place.undecided("png", "it is cut off, or a chunk's sum is wrong")


def read_jpeg(window: Window, place: Place) -> Decision:
    """Segments up to the first scan, and the end of the image at the file's end (ITU-T T.81, annex B)."""
    at = 2
    while len(head := window.read(at, 4)) == 4 and head[0] == 0xFF and head[1] not in (0xD8, 0xD9):
        at += 2 + int.from_bytes(head[2:], "big")
        if head[1] == 0xDA:
            ends = at < window.size and window.read(window.size - 2, 2) == b"\xff\xd9"
            return Clean(kind="jpeg") if ends else place.undecided("jpeg", "the image does not end where the file does")
    return place.undecided("jpeg", "its segments cannot be followed")
