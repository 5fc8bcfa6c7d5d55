"""Compressed streams (gzip, bzip2, xz, zlib as joblib writes it), unpacked in bounded pieces."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from trainwarden.gate.results import Decision, joined, refused
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.window import PIECE, TooLarge, Window, unpacked

_LZMA_MEMORY: Final = 48 << 20


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_WAYS: Final[tuple[tuple[bytes, str, Callable[[], _Unpacker]], ...]] = (
    (b"\x1f\x8b\x08", "gzip", lambda: zlib.decompressobj(31)),
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", "xz", lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)),
    (b"\x5d\x00\x00", "lzma", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)),
    (b"\x78\x01", "zlib", lambda: zlib.decompressobj()),
    (b"\x78\x5e", "zlib", lambda: zlib.decompressobj()),
    (b"\x78\x9c", "zlib", lambda: zlib.decompressobj()),
    (b"\x78\xda", "zlib", lambda: zlib.decompressobj()),
)


def packing(head: bytes) -> str:
    """How a file that begins so is compressed, or ""."""
    return next((name for magic, name, _ in _WAYS if head.startswith(magic)), "")


def read_packed(window: Window, place: Place) -> Decision:
    """The decision on what a compressed stream holds; bytes behind its end refuse it, as readers differ there."""
    kind = packing(window.read(0, 8))
    make = next(make for _, name, make in _WAYS if name == kind)
    ended: list[bool] = []
    try:
        whole = unpacked(_pieces(window, make(), ended), window.size)
    except (zlib.error, OSError, EOFError, lzma.LZMAError, TooLarge) as e:
        return place.undecided(kind, f"it does not unpack ({e})")
    if not ended:
        return place.undecided(kind, "the compressed stream is cut off")
    if not ended[0]:
        return refused(
            kind, place.path, "bytes behind the compressed stream: some readers go on, others stop", field=kind
        )
    return joined(kind, [place.inside(whole, f"{kind}")])


def _pieces(window: Window, unpacker: _Unpacker, ended: list[bool]) -> Iterator[bytes]:
    at = 0
    while not unpacker.eof and (piece := window.read(at, PIECE >> 2)):
        at += len(piece)
        yield unpacker.decompress(piece, PIECE)
        while not unpacker.eof:
            left = getattr(unpacker, "unconsumed_tail", b"")
            if not left and getattr(unpacker, "needs_input", True):
                break
            yield unpacker.decompress(left, PIECE)
    if unpacker.eof:
        ended.append(not unpacker.unused_data and at >= window.size)
