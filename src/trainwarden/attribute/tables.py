"""The events of an incident's evidence in DuckDB, streamed from Parquet: what is asked of all of them is asked in SQL.

Rules
-----
* Nothing is held but what a query needs; what does not fit `MEMORY` is spilled beside the store's caches.
* Every table is re-hashed against the log's digest before it is read.
* The SQL is ours alone: what records say is bound or compared, never spliced in. Extensions cannot be loaded.

Trust: as the store's. A table was made from its source when that was taken in; `verify` of a dossier makes it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from trainwarden.attribute.nouns import Clock
from trainwarden.custody.table import SCHEMA, event_of
from trainwarden.model import CustodyEvent, Evidence, SourceKind
from trainwarden.store import Store

MEMORY = "1GB"
MANY_CLOCKS = (SourceKind.AUDIT, SourceKind.TETRAGON, SourceKind.FALCO, SourceKind.JOURNAL)
"""Kinds of sources whose lines are stamped on the host that they name."""
NAMES = tuple(SCHEMA.names)


class Tables:
    """Evidence held open for questions."""

    def __init__(self, paths: Sequence[tuple[Evidence, Path]], spill: Path, threads: int = 0) -> None:
        self.evidence = tuple(evidence for evidence, _ in paths)
        self.db = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": MEMORY,
                "threads": threads or os.cpu_count() or 1,
                "temp_directory": str(spill),
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self.db.execute(f"CREATE VIEW raw AS {_union(paths)}")
        self.set_clocks(())

    def close(self) -> None:
        """Give up the connection and what it spilled."""
        self.db.close()

    def set_clocks(self, clocks: Iterable[Clock]) -> None:
        """From now on `events` has times corrected by these clocks, errors that include theirs, and `stamped_ns`."""
        clocks = tuple(clocks)
        self.furthest_ns = max((abs(c.offset_ns) for c in clocks), default=0)
        places = {evidence.id: n for n, evidence in enumerate(self.evidence)}
        rows = [(places[c.source], c.host, c.offset_ns, c.error_ns) for c in clocks]
        self.db.execute(
            "CREATE OR REPLACE TABLE clocks (source INT, clock VARCHAR, offset_ns BIGINT, clock_error BIGINT)"
        )
        if rows:
            self.db.executemany("INSERT INTO clocks VALUES (?, ?, ?, ?)", rows)
        self.db.execute(
            "CREATE OR REPLACE VIEW events AS SELECT r.* REPLACE ("
            "r.time_ns - coalesce(c.offset_ns, 0) AS time_ns, r.error_ns + coalesce(c.clock_error, 0) AS error_ns, "
            "CASE WHEN r.until_ns = 0 THEN 0 ELSE r.until_ns - coalesce(c.offset_ns, 0) END AS until_ns), "
            "r.time_ns AS stamped_ns "
            "FROM raw r LEFT JOIN clocks c ON r.source = c.source AND r.clock = c.clock"
        )

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of one statement."""
        return self.db.execute(sql, list(values)).fetchall()

    def events(self, where: str, values: Sequence[object] = (), *, limit: int = 100_000) -> list[CustodyEvent]:
        """The events for which a condition holds, by time."""
        names = ", ".join(NAMES)
        found = self.rows(
            f"SELECT source, {names} FROM events e WHERE {where} ORDER BY time_ns, source, line LIMIT {limit}", values
        )
        return [event_of(dict(zip(NAMES, row[1:], strict=True)), self.evidence[row[0]].id) for row in found]

    def count(self) -> int:
        """How many events there are."""
        return sum(evidence.events for evidence in self.evidence)


def open_tables(store: Store, evidence: Sequence[Evidence]) -> Tables:
    """Open the tables of this evidence.

    Raises:
        StoreError, StoreTampered: one is missing, or is not what was written.
    """
    paths = []
    for one in evidence:
        store.check(one.table)
        paths.append((one, store.object_path(one.table)))
    spill = store.path / "cache"
    return Tables(paths, spill)


def named(evidence: Iterable[Evidence]) -> Mapping[str, Evidence]:
    """Evidence by its id."""
    return {one.id: one for one in evidence}


def _union(paths: Sequence[tuple[Evidence, Path]]) -> str:
    """One view over all files; `clock` is the host where a source has several clocks, `who` as `nouns` says."""
    parts = [
        f"SELECT {n}::INT AS source, {'host' if evidence.kind in MANY_CLOCKS else repr('')} AS clock, "
        f"CASE WHEN login <> '' THEN login ELSE account END AS who, * FROM read_parquet('{_quoted(path)}')"
        for n, (evidence, path) in enumerate(paths)
    ]
    if parts:
        return " UNION ALL ".join(parts)
    empty = ", ".join(
        f"{'0::BIGINT' if n in ('line', 'time_ns', 'error_ns', 'until_ns', 'pid') else repr('')} AS {n}" for n in NAMES
    )
    return f"SELECT 0::INT AS source, '' AS clock, '' AS who, {empty} WHERE false"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
