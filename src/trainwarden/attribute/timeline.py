"""One timeline of all sources, by corrected time: a Parquet file, sorted part by part, in memory that does not grow."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trainwarden.attribute.tables import NAMES, Tables
from trainwarden.durable import hint_for
from trainwarden.errors import UsageError

_PART = 500_000  # events sorted at once


def write_timeline(tables: Tables, path: Path) -> int:
    """Write every event by corrected time to a Parquet file; how many there are.

    `source` is the place of the evidence in the incident.

    Raises:
        UsageError: it cannot be written there.
    """
    edges = _edges(tables)
    select = f"SELECT source, who, {', '.join(NAMES)} FROM events WHERE "
    written, out = 0, None
    try:
        for first, end in pairwise(edges):
            # Parts of files whose own times are elsewhere are not read at all: records lie in the order of their times.
            near = f"stamped_ns BETWEEN {first - tables.furthest_ns} AND {end + tables.furthest_ns}"
            where = f"{near} AND time_ns >= {first} AND time_ns < {end} ORDER BY time_ns, source, line"
            found: Any = tables.db.sql(select + where).to_arrow_table()
            if out is None:
                out = pq.ParquetWriter(path, found.schema, compression="zstd", compression_level=1)
            out.write_table(found)
            written += found.num_rows
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}", hint=hint_for(e)) from e
    finally:
        if out is not None:
            out.close()
    return written


def _edges(tables: Tables) -> list[int]:
    """Times that cut the events into parts of about `_PART`, the first and one past the last included."""
    ((first, last),) = tables.rows("SELECT coalesce(min(time_ns), 0), coalesce(max(time_ns), 0) FROM events")
    parts = max(1, tables.count() // _PART)
    cuts = [n / parts for n in range(1, parts)]
    found = tables.rows("SELECT approx_quantile(time_ns, ?::FLOAT[]) FROM events", [cuts])[0][0] if cuts else []
    return sorted({int(first), *(int(c) for c in found if first < c <= last), int(last) + 1})
