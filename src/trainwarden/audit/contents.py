"""Whether a checkpoint file that a replay wrote holds what the recorded one holds.

Rules
-----
* Equal is: the same bytes, in a zip (`torch.save`) member by member without the folder that is named after the file.
* A replay runs in a place of its own, and some checkpoints name absolute paths. So what its pickles say in text is
  compared with the replay's places taken out of it. Nothing is unpickled: its instructions are read one by one.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from trainwarden.audit.dcpindex import index_digest
from trainwarden.model import DCP, DCP_INDEX

_TEXT = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_LARGEST_PICKLE = 64 << 20
_CHECKSUM = ".data/serialization_id"  # PyTorch's, over the other members


def content_digest(path: Path, format: str) -> str:
    """BLAKE3 of a file; of a zip, of its members.

    Raises:
        ValueError: the index of a distributed checkpoint that is none.
    """
    if format == DCP_INDEX:
        return index_digest(path)
    h = blake3()
    if format == DCP or not zipfile.is_zipfile(path):  # a part of a distributed checkpoint is many zips, end to end
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                h.update(chunk)
        return h.hexdigest()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            h.update(_inner(info).encode() + b"\0" + info.file_size.to_bytes(8, "little"))
            with archive.open(info) as member:
                while chunk := member.read(1 << 20):
                    h.update(chunk)
    return h.hexdigest()


def same_but_for_places(recorded: Path, replayed: Path, places: Sequence[str]) -> bool:
    """Whether two zips are equal once the `places` of the replay are taken out of the text of its pickles."""
    if not (zipfile.is_zipfile(recorded) and zipfile.is_zipfile(replayed)):
        return False
    with zipfile.ZipFile(recorded) as old, zipfile.ZipFile(replayed) as new:
        members = [[m for m in archive.infolist() if _inner(m) != _CHECKSUM] for archive in (old, new)]
        if [_inner(m) for m in members[0]] != [_inner(m) for m in members[1]]:
            return False
        return all(_same(old, a, new, b, places) for a, b in zip(*members, strict=True))


def _same(
    old: zipfile.ZipFile, a: zipfile.ZipInfo, new: zipfile.ZipFile, b: zipfile.ZipInfo, places: Sequence[str]
) -> bool:
    if a.file_size == b.file_size and a.CRC == b.CRC and old.read(a) == new.read(b):
        return True
    if not _inner(a).endswith("data.pkl") or max(a.file_size, b.file_size) > _LARGEST_PICKLE:
        return False
    try:
        return list(_said(old.read(a), ())) == list(_said(new.read(b), places))
    except ValueError:
        return False


def _said(pickled: bytes, places: Sequence[str]) -> Iterator[tuple[str, object]]:
    """The instructions of a pickle, with the places taken out of its text. Raises ValueError when it is none."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in _TEXT:
            yield opcode.name, argument
            continue
        text = str(argument)
        for place in places:
            text = text.replace(place, "")
        yield "text", text


def _inner(info: zipfile.ZipInfo) -> str:
    return info.filename.partition("/")[2]
