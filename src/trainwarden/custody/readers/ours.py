"""Our own words: the journal of a log (of a run, or of actors), and custody events as JSON lines.

A run's log tells who the kernel said changed a sealed file or sent a signal, whose key approved the seal, and which
account contained the run; what a rank claims of itself is no custody. Statements are `CustodyEvent`s as JSON, one a
line, with `time` (ISO 8601) in place of `time_ns` where that is easier: a badge reader, minutes, personnel records.
Whoever takes them in signs for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from trainwarden.custody.readers.interface import (
    MILLI,
    BadLine,
    Context,
    Item,
    Reader,
    each_line,
    stamp_ns,
    user_name,
)
from trainwarden.log.frames import EntryFrame, read_frames
from trainwarden.model import (
    UNREADABLE,
    Act,
    ActorEnrolled,
    Approved,
    Binding,
    Contained,
    CustodyEvent,
    Entry,
    FileChanged,
    KeyRevoked,
    KeyRotated,
    Process,
    ProcessExited,
    Quarantined,
    RegistryEntry,
    Released,
    SourceKind,
    Unread,
    Writer,
    decode_entry,
    decode_registry_entry,
)

_HEAD_FRAME = b"H\0\0"


def recognise_log(head: bytes, name: str) -> bool:
    """Is it the journal of one of our logs?"""
    return head.startswith(_HEAD_FRAME) and b"trainwarden/" in head[:256]


def read_log(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every entry that tells of an act; `line` is the entry's index. Whether the log verifies is judged elsewhere."""
    source = _Bytes(file)
    actors = b"trainwarden/actors" in source.read(0, 256)
    for frame in read_frames(source, 0, source.size()):
        if isinstance(frame, EntryFrame):
            try:
                entry = decode_registry_entry(frame.data) if actors else decode_entry(frame.data)
            except UNREADABLE as e:
                yield Unread(line=frame.index, reason=str(e)[:200])
                continue
            yield from _acts(frame.index, entry, context)


class _Bytes:
    """A file as `read_frames` wants it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def size(self) -> int:
        return self._file.seek(0, 2)


def _acts(index: int, entry: Entry | RegistryEntry, context: Context) -> Iterator[Item]:
    common: dict[str, Any] = {"source": context.source, "line": index, "error_ns": MILLI, "host": context.host}
    match entry:
        case FileChanged():
            act = Act.WRITE if entry.found else Act.DELETE
            yield CustodyEvent(
                time_ns=entry.wall_ns, act=act, path=entry.path, digest=entry.found, before=entry.sealed,
                note=entry.untold or f"{entry.kind} changed", **_by(entry.writer, context), **common,
            )  # fmt: skip
        case ProcessExited() if entry.sender is not None:
            yield CustodyEvent(
                time_ns=entry.wall_ns, act=Act.SIGNAL, path=f"pid {entry.pid}",
                note=f"rank {entry.rank} ended with {entry.code}; told by {entry.told_by}",
                **_by(entry.sender, context), **common,
            )  # fmt: skip
        case Approved():
            for approval in entry.approvals:
                yield CustodyEvent(
                    time_ns=approval.wall_ns, act=Act.APPROVE, account=approval.actor, path=f"seal {entry.seal}",
                    digest=entry.seal, binding=Binding.KEY, **common,
                )  # fmt: skip
        case Contained(by=by) | Quarantined(by=by) | Released(by=by) if by:
            what = entry.what if isinstance(entry, Contained) else entry.__struct_config__.tag
            path = entry.path if isinstance(entry, Quarantined) else ""
            yield CustodyEvent(
                time_ns=entry.wall_ns, act=Act.OTHER, account=by.split()[0], path=path, note=f"{what} by {by}", **common
            )
        case ActorEnrolled():
            yield CustodyEvent(
                time_ns=entry.wall_ns, act=Act.GRANT, kind=entry.kind, account=entry.name, path="actors",
                note=f"key {entry.key}", **common,
            )  # fmt: skip
        case KeyRevoked():
            yield CustodyEvent(
                time_ns=entry.wall_ns, act=Act.REVOKE, account=entry.name, path="actors", note=entry.reason, **common
            )
        case KeyRotated():
            yield CustodyEvent(
                time_ns=entry.wall_ns, act=Act.OTHER, account=entry.name, path="actors", binding=Binding.KEY,
                note="key rotated", **common,
            )  # fmt: skip
        case _:
            yield None


def _by(writer: Writer | None, context: Context) -> dict[str, Any]:
    if writer is None:
        return {}
    account, login = user_name(writer.uid, context), user_name(writer.login_uid, context)
    process = Process(pid=writer.pid, program=writer.program, argv=writer.argv)
    return {"account": account, "login": login if login != account else "", "processes": (process,)}


LOG = Reader(kind=SourceKind.LOG, recognise=recognise_log, read=read_log, editors=("root",))

# --------------------------------------------------------------------------- statements

_statement = msgspec.json.Decoder(dict[str, Any]).decode


def recognise_statement(head: bytes, name: str) -> bool:
    """Is it made of custody events of ours?"""
    first = head.split(b"\n", 1)[0]
    return first.startswith(b"{") and b'"act"' in first and (b'"time_ns"' in first or b'"time"' in first)


def read_statement(file: BinaryIO, context: Context) -> Iterator[Item]:
    """Every event of the file."""
    return each_line(file, lambda n, text: _stated(n, text, context))


def _stated(number: int, text: str, context: Context) -> CustodyEvent:
    raw = _statement(text)
    for name in ("time", "until"):
        if name in raw:
            raw[f"{name}_ns"] = stamp_ns(str(raw.pop(name)), context.zone)
    raw |= {"type": "custody", "source": context.source, "line": number}
    try:
        return msgspec.convert(raw, CustodyEvent)
    except msgspec.ValidationError as e:
        raise BadLine(str(e)) from None


STATEMENT = Reader(kind=SourceKind.STATEMENT, recognise=recognise_statement, read=read_statement, editors=("*",))
