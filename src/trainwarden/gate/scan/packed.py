"""Compressed streams (gzip, bzip2, xz, zlib as joblib writes it) and tar archives, unpacked in bounded pieces."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from trainwarden.gate.results import Clean, Decision, joined, refused
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.window import PIECE, TooLarge, Window, unpacked

_BLOCK: Final = 512
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


def is_tar(head: bytes) -> bool:
    """Is the first block a tar header, as Python's tarfile decides it: by its check sum alone?"""
    block = head[:_BLOCK]
    if len(block) < _BLOCK or not any(block):
        return False
    try:
        told = int(block[148:156].split(b"\0")[0].strip() or b"-1", 8)
    except ValueError:
        return False
    return told == sum(block[:148]) + 8 * 32 + sum(block[156:])


def read_tar(window: Window, place: Place) -> Decision:
    """The decision on a tar archive of plain files and folders."""
    parts: list[Decision] = []
    at = 0
    while any(block := window.read(at, _BLOCK)):
        if not is_tar(block):
            return place.undecided("tar", "a header is damaged")
        name = block[:100].split(b"\0")[0].decode("utf-8", "replace")
        kind = block[156:157]
        try:
            size = int(block[124:136].split(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            return place.undecided("tar", "a size that is no octal number")
        if name.startswith("/") or ".." in name.split("/"):
            return refused("tar", place.path, "a member leads out of the archive", offset=at, field="name", name=name)
        if kind not in (b"0", b"\0", b"5", b"x", b"g", b"L"):
            return refused("tar", place.path, "a link or a device", offset=at, field="type", name=name)
        if at + _BLOCK + size > window.size:
            return place.undecided("tar", "it is cut off")
        if kind in (b"x", b"g", b"L") and size > 1 << 20:
            return place.undecided("tar", "a member's description is too long")
        if kind in (b"x", b"g") and b"size=" in window.read(at + _BLOCK, size):
            return refused("tar", place.path, "a second size in an extended header", offset=at, field="pax", name=name)
        if kind in (b"0", b"\0") and size:
            parts.append(place.inside(window.part(at + _BLOCK, size), name))
        at += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    rest = at
    while piece := window.read(rest, PIECE):
        if any(piece):
            return refused("tar", place.path, "bytes behind the end of the archive", offset=rest, field="tar")
        rest += len(piece)
    return joined("tar", parts or [Clean(kind="tar")])
