"""Custody events as Parquet: one file a source, an object of the store, a row an event.

Rules
-----
* A row is an event without its source, which is the file. Process trees are JSON; every other column is plain.
* What a hostile source says may not fit a column (a time beyond 64 bits, text that is no UTF-8): such an event is told
  as unread, and the others stay.
* Writing and reading go in batches: memory does not grow with the number of events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainwarden.custody.readers.interface import Item
from trainwarden.errors import CustodyTampered
from trainwarden.model import Act, ActorKind, Binding, CustodyEvent, Process, Unread

_BATCH = 65_536
NUMBERS = ("line", "time_ns", "error_ns", "until_ns", "pid")
_TEXTS = (
    "act", "kind", "account", "login", "person", "host", "session", "origin", "program", "tree", "path", "digest",
    "before", "binding", "note",
)  # fmt: skip
SCHEMA = pa.schema(
    [pa.field(n, pa.int64(), nullable=False) for n in NUMBERS]
    + [pa.field(n, pa.string(), nullable=False) for n in _TEXTS]
)
EXAMPLES = 20
_LIMIT = 1 << 62


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What came of reading a source."""

    events: int
    unread: int
    examples: tuple[Unread, ...]
    first_ns: int
    last_ns: int


def write_events(items: Iterable[Item], path: Path) -> Counted:
    """Write the events among `items` to a Parquet file.

    Raises:
        OSError: it cannot be written.
    """
    events = unread = 0
    first, last = _LIMIT, 0
    examples: list[Unread] = []
    batch: list[CustodyEvent] = []
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=3) as out:
        for item in items:
            if isinstance(item, CustodyEvent) and (reason := _misfit(item)):
                item = Unread(line=item.line, reason=reason)
            if isinstance(item, CustodyEvent):
                events += 1
                first, last = min(first, item.time_ns), max(last, item.time_ns)
                batch.append(item)
                if len(batch) == _BATCH:
                    out.write_table(_columns(batch))
                    batch.clear()
            elif isinstance(item, Unread):
                unread += 1
                if len(examples) < EXAMPLES:
                    examples.append(item)
        if batch:
            out.write_table(_columns(batch))
    found = (first, last) if events else (0, 0)
    return Counted(events=events, unread=unread, examples=tuple(examples), first_ns=found[0], last_ns=found[1])


def _misfit(event: CustodyEvent) -> str:
    """Why an event cannot be a row; empty when it can."""
    if not all(-_LIMIT < n < _LIMIT for n in (event.time_ns, event.error_ns, event.until_ns)):
        return "a time beyond what nanoseconds hold"
    if any(not -_LIMIT < p.pid < _LIMIT for p in event.processes):
        return "a process id beyond 64 bits"
    try:
        "".join((event.account, event.login, event.host, event.path, event.note, event.session, event.origin)).encode()
    except UnicodeEncodeError:
        return "text that cannot be written"
    return ""


def _columns(events: list[CustodyEvent]) -> Any:
    values: dict[str, list[Any]] = {
        name: [getattr(e, name) for e in events]
        for name in (
            *NUMBERS[:4],
            "account",
            "login",
            "person",
            "host",
            "session",
            "origin",
            "path",
            "digest",
            "before",
            "note",
        )
    }
    values["act"] = [e.act.value for e in events]
    values["kind"] = [e.kind.value if e.kind else "" for e in events]
    values["binding"] = [e.binding.value for e in events]
    values["pid"] = [e.processes[0].pid if e.processes else -1 for e in events]
    values["program"] = [e.processes[0].program if e.processes else "" for e in events]
    values["tree"] = [_tree(e.processes) for e in events]
    return pa.table({name: values[name] for name in SCHEMA.names}, schema=SCHEMA)


def _tree(processes: tuple[Process, ...]) -> str:
    """The tree as JSON, "" where program and pid of the first say all of it."""
    if not processes or (len(processes) == 1 and not processes[0].argv):
        return ""
    return msgspec.json.encode(processes).decode()


def event_of(row: dict[str, Any], source: str) -> CustodyEvent:
    """The event of one row, as `SCHEMA` names its columns.

    Raises:
        CustodyTampered: the row is none of ours.
    """
    try:
        tree = row["tree"]
        if tree:
            processes = msgspec.json.decode(tree, type=tuple[Process, ...])
        else:
            one = Process(pid=row["pid"], program=row["program"])
            processes = (one,) if one != Process() else ()
        plain = {name: row[name] for name in (*NUMBERS[:4], "account", "login", "person", "host", "session", "origin")}
        return CustodyEvent(
            source=source,
            act=Act(row["act"]),
            kind=ActorKind(row["kind"]) if row["kind"] else None,
            binding=Binding(row["binding"]),
            processes=processes,
            path=row["path"],
            digest=row["digest"],
            before=row["before"],
            note=row["note"],
            **plain,
        )
    except (KeyError, ValueError, msgspec.DecodeError) as e:
        raise CustodyTampered(f"a row of the events of {source[:12]} is none of ours: {e}") from e


def numbered(path: Path) -> list[str]:
    """The accounts that the events of a file name by a number alone, because nothing said which name it has.

    Raises:
        CustodyTampered: it is not a table of custody events.
    """
    try:
        found = pq.read_table(path, columns=["account", "login"])
        names = {n for column in found.columns for n in pc.unique(column).to_pylist()}
    except (pa.ArrowException, OSError, KeyError) as e:
        raise CustodyTampered(f"a table of events cannot be read: {e}") from e
    return sorted(n for n in names if n.startswith("uid:"))


def read_events(path: Path, source: str) -> Iterator[CustodyEvent]:
    """Every event of a file, in its order.

    Raises:
        CustodyTampered: it is not a table of custody events.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    yield event_of(row, source)
    except (pa.ArrowException, OSError) as e:
        raise CustodyTampered(f"the events of {source[:12]} cannot be read: {e}") from e
