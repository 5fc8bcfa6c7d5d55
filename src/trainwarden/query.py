"""SQL over a run's step records: one `SELECT` on a view `records`, by DuckDB, shut in.

Rules
-----
* The table is made from the run's own log, whose entries are checked against its signed head on the way.
* SQL comes from whoever asks and may hold anything: one statement, a `SELECT`; DuckDB runs in memory without access
  to files, network, extensions and Python's variables, and its settings are locked before the statement is read.
* A record whose numbers do not fit the columns is left out, and their number is told.

Trust: records are claims by suspect hosts. A query shows what was claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import LogTampered, UsageError
from trainwarden.log import records
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.reader import LogReader
from trainwarden.model import StepRecord, decode_entry
from trainwarden.store import RunDir

_PART = 16_384  # records turned into columns at once
_STEP = b'{"type":"step"'
_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "temp_directory": "",
    "memory_limit": "4GB",
}
_HINT = "one SELECT over the view `records`, for example: SELECT rank, count(*), avg(loss) FROM records GROUP BY rank"


class Answer(msgspec.Struct, frozen=True):
    """What a statement gave: the columns' names and the rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Records(msgspec.Struct, frozen=True):
    """A run's step records as a table, and how many could not be put into it."""

    table: records.Table
    left_out: int


def read_records(folder: RunDir, progress: Callable[[int, int], None] = lambda done, total: None) -> Records:
    """Every step record of a run; `progress(entries read, entries in all)`.

    Raises:
        LogError, LogTampered: the log cannot be read, or contradicts its head.
    """
    parts: list[records.Table] = []
    left_out = 0
    with LogReader.open(folder.log) as log:
        rows: list[tuple[int, bytes, StepRecord]] = []
        for row in _steps(log, progress):
            if not records.fits(row[2]):
                left_out += 1
                continue
            rows.append(row)
            if len(rows) == _PART:
                parts.append(_part(rows))
                rows.clear()
        parts.append(_part(rows))
    return Records(records.joined(parts), left_out)


def select(table: records.Table, sql: str) -> Answer:
    """The answer of one `SELECT` over the view `records`.

    Raises:
        UsageError: it is no single `SELECT`, or DuckDB refuses it.
    """
    with duckdb.connect(":memory:", config=_LOCKED) as db:
        db.register("records", table)
        db.execute("SET lock_configuration = true")
        try:
            statements = db.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                kinds = ", ".join(s.type.name for s in statements) or "nothing"
                raise UsageError(f"a query is one SELECT, this is: {kinds}", hint=_HINT)
            result = db.execute(statements[0])
            columns = tuple(str(column[0]) for column in result.description or ())
            return Answer(columns, tuple(tuple(row) for row in result.fetchall()))
        except duckdb.Error as e:
            raise UsageError(f"the query cannot be answered: {str(e).strip()}", hint=_HINT) from e


def export(table: records.Table, path: Path) -> int:
    """Write a table as a Parquet file; its size in bytes.

    Raises:
        UsageError: it cannot be written there.
    """
    data = records.write_parquet(table)
    try:
        write_atomically(path, data)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}", hint=hint_for(e)) from e
    return len(data)


def _steps(log: LogReader, progress: Callable[[int, int], None]) -> Iterator[tuple[int, bytes, StepRecord]]:
    for index, data in log.entries():
        if index % _PART == 0:
            progress(index, log.head.size)
        if not data.startswith(_STEP):  # canonical bytes begin with the type
            continue
        try:
            entry = decode_entry(data)
        except msgspec.DecodeError as e:
            raise LogTampered(f"entry {index} is no entry of ours: {e}", hint="a newer version wrote this log") from e
        if isinstance(entry, StepRecord):
            yield index, leaf_hash(data), entry


def _part(rows: list[tuple[int, bytes, StepRecord]]) -> records.Table:
    return records.table([r for _, _, r in rows], [i for i, _, _ in rows], [leaf for _, leaf, _ in rows])
