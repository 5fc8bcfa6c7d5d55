"""Tar archives of plain files and folders."""

from __future__ import annotations

from typing import Final

from trainwarden.gate.results import Clean, Decision, joined, refused
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.window import PIECE, Window

_BLOCK: Final = 512


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
