"""One timeline of all sources, by corrected time: written as Parquet, read in parts."""

from __future__ import annotations

from pathlib import Path

from trainwarden.attribute.tables import NAMES, Tables
from trainwarden.durable import hint_for
from trainwarden.errors import UsageError


def write_timeline(tables: Tables, path: Path) -> int:
    """Write every event by corrected time to a Parquet file; how many there are.

    `source` is the place of the evidence in the incident. What does not fit memory is sorted on disk.

    Raises:
        UsageError: it cannot be written there.
    """
    target = str(path).replace("'", "''")
    try:
        path.touch()
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}", hint=hint_for(e)) from e
    names = ", ".join(NAMES)
    tables.db.execute(
        f"COPY (SELECT source, who, {names} FROM events ORDER BY time_ns) TO '{target}' "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
    )
    return tables.count()
