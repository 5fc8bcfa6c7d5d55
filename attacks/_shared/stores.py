"""Acts on the range's own store after a run has ended, as somebody with the supervisor's account can."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from trainwarden.errors import CannotDecide
from trainwarden.keys import SigningKey
from trainwarden.keys.signing import new_seed
from trainwarden.log.frames import HeadFrame, read_frames
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.log.storage import FolderStorage
from trainwarden.model import Finding, Sealed, canonical, decode_entry
from trainwarden.redteam.place import Range


def edit_log(place: Range) -> None:
    """One bit in the middle of the journal."""
    _edit(place, _run(place) / "log" / "journal", bit_turned)


def cut_log(place: Range) -> None:
    """The journal loses its second half."""
    _edit(place, _run(place) / "log" / "journal", lambda data: data[: len(data) // 2])


def edit_details(place: Range) -> None:
    """One bit of the first rank's digests."""
    _edit(place, min((_run(place) / "details").iterdir()), bit_turned)


def edit_seal(place: Range) -> None:
    """The seal claims another time."""
    _edit(place, _run(place) / "seal.json", lambda data: re.sub(rb'("created_ns": ?)1', rb"\g<1>2", data, count=1))


def edit_object(place: Range) -> None:
    """One bit of the list of sealed code."""
    digest = json.loads((_run(place) / "seal.json").read_bytes())["seal"]["code"]["digest"]
    _edit(place, place.store / "objects" / digest[:2] / digest[2:], bit_turned)


def roll_back(place: Range) -> None:
    """The log is what it was in the middle of the run: a whole journal, with the signed head of then."""
    log = _run(place) / "log"
    storage = FolderStorage.for_reading(log)
    heads = [f for f in read_frames(storage, 0, storage.size()) if isinstance(f, HeadFrame)]
    storage.close()
    earlier = heads[len(heads) // 2]
    place.edit(log / "journal", lambda data: data[: earlier.end])
    _edit(place, log / "head", lambda _: earlier.note)


def rewrite_without_findings(place: Range) -> None:
    """Another log of the run takes its place: without findings, signed and named as its key by the insider."""
    log = _run(place) / "log"
    entries = [decode_entry(data) for _, data in LogReader.open(log).entries()]
    first, key = entries[0], SigningKey(new_seed())
    if not isinstance(first, Sealed):
        raise CannotDecide("the log does not begin with a seal")
    others = [e for e in entries[1:] if not isinstance(e, Finding)]
    fresh = place.tmp / "log"
    writer = LogWriter.create(fresh, f"trainwarden/{first.run}", key)
    writer.append([canonical(e) for e in (msgspec.structs.replace(first, key=key.public), *others)])
    writer.close()
    place.copy(fresh, log)
    place.note("the log was written anew")


def bit_turned(data: bytes) -> bytes:
    """The bytes with one bit in their middle turned."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _edit(place: Range, file: Path, change: Callable[[bytes], bytes]) -> None:
    place.edit(file, change, keep_times=True)
    place.note(f"{file.name} was edited")


def _run(place: Range) -> Path:
    """The folder of the newest run of this attack. Raises CannotDecide when there is none."""
    if not place.runs:
        raise CannotDecide("no run was recorded", hint="see what the job printed")
    return place.store / "runs" / place.runs[-1]
