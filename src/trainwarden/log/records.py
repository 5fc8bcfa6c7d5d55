"""Step records as Parquet: one file a batch, bound by one leaf, about 64 bytes a record.

Rules
-----
* A row is a record's numbers and the hash of its leaf in the host's own log. The hash binds the whole record,
  digests of the stages included; the record itself stays on the host.
* A batch is a stretch of consecutive entries of one log. The leaf (`model.RecordBatch`) names them, the RFC 6962 root
  over their leaf hashes, and the SHA-256 of the file: it can be checked against the file alone, or against the
  host's log alone.
* What a hostile rank wrote into a record may not fit a column (a step beyond 64 bits): `fits` tells, and such a
  record travels as an entry of its own.
* Reading trusts nothing: size, digest, number of rows, columns, log indexes and root are checked, in this order.

Trust: the reader of Parquet is Apache Arrow's; it sees hostile bytes only where a host signed a leaf over them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from trainwarden.errors import RecordsTampered, UsageError
from trainwarden.log import merkle
from trainwarden.model import STAGES, RecordBatch, StepRecord

MAX_RECORDS = 16_384
MAX_BYTES = 4 * 1024 * 1024

Table: TypeAlias = pa.Table
"""A table of step records in the columns of `SCHEMA`."""

_BITS = {stage: 1 << i for i, stage in enumerate(STAGES)}
_COLUMNS: tuple[tuple[str, Any, bool], ...] = (  # name, type, may be null
    ("index", pa.int64(), False),  # in the host's log
    ("attempt", pa.int32(), False),
    ("rank", pa.int32(), False),
    ("world", pa.int32(), False),
    ("step", pa.int64(), False),
    ("optimizer", pa.int32(), False),
    ("seq", pa.int64(), False),
    ("loss", pa.float64(), True),
    ("lr", pa.float64(), True),  # of the first parameter group
    ("skipped", pa.bool_(), False),
    ("micro_batches", pa.int32(), False),
    ("unseen", pa.int16(), False),  # bit i: stage i of model.STAGES has no digest
    ("wall_ns", pa.int64(), False),
    ("duration_ns", pa.int64(), False),
    ("cpu_ns", pa.int64(), False),
    ("recorder_ns", pa.int64(), False),
    ("leaf", pa.binary(merkle.HASH_SIZE), False),
)
SCHEMA = pa.schema([pa.field(name, kind, nullable=null) for name, kind, null in _COLUMNS])
_SORTED = ("index", "step", "seq", "wall_ns", "duration_ns", "cpu_ns", "recorder_ns")
_FEW_VALUES = ("attempt", "rank", "world", "optimizer", "lr", "micro_batches", "unseen")
_NARROW = ("attempt", "rank", "world", "optimizer", "micro_batches")
_WIDE = ("step", "seq", "wall_ns", "duration_ns", "cpu_ns", "recorder_ns")


def fits(record: StepRecord) -> bool:
    """Whether every number of the record fits its column."""
    r = record
    narrow = min(r.attempt, r.rank, r.world, r.optimizer, r.micro_batches)
    wide = min(r.step, r.seq, r.wall_ns, r.duration_ns, r.cpu_ns, r.recorder_ns)
    return (
        narrow >= -(1 << 31)
        and max(r.attempt, r.rank, r.world, r.optimizer, r.micro_batches) < 1 << 31
        and wide >= -(1 << 63)
        and max(r.step, r.seq, r.wall_ns, r.duration_ns, r.cpu_ns, r.recorder_ns) < 1 << 63
    )


def table(records: Sequence[StepRecord], indexes: Sequence[int], leaves: Sequence[bytes]) -> Table:
    """The table of records that `fits` passed, with their log indexes and leaf hashes.

    Raises:
        UsageError: there are not as many of each, or a number does not fit its column.
    """
    if not len(records) == len(indexes) == len(leaves):
        raise UsageError(f"{len(records)} records, {len(indexes)} log indexes and {len(leaves)} leaf hashes")
    values: dict[str, Sequence[Any]] = {name: [getattr(r, name) for r in records] for name in (*_NARROW, *_WIDE)}
    values |= {
        "index": indexes,
        "loss": [r.loss for r in records],
        "lr": [_lr(r) for r in records],
        "skipped": [r.skipped for r in records],
        "unseen": [_unseen(r) for r in records],
        "leaf": leaves,
    }
    try:
        return pa.table({name: values[name] for name in SCHEMA.names}, schema=SCHEMA)
    except (pa.ArrowException, OverflowError) as e:
        raise UsageError(f"a record does not fit the table: {e}") from e


def joined(parts: Sequence[Table]) -> Table:
    """One table of several."""
    return pa.concat_tables(parts, promote_options="none")


def write_parquet(rows: Table) -> bytes:
    """The Parquet file of a table, without statistics: they cost more than the columns of a small batch."""
    sink = io.BytesIO()
    pq.write_table(
        rows,
        sink,
        version="2.6",
        data_page_version="2.0",
        compression="zstd",
        compression_level=9,
        use_dictionary=list(_FEW_VALUES),
        column_encoding={"loss": "BYTE_STREAM_SPLIT", **dict.fromkeys(_SORTED, "DELTA_BINARY_PACKED")},
        write_statistics=False,
        store_schema=False,
    )
    return sink.getvalue()


def batch(
    records: Sequence[StepRecord], leaves: Sequence[bytes], *, host: str, run: str, first: int, head: str = ""
) -> tuple[bytes, RecordBatch]:
    """The Parquet file of consecutive records, from log index `first` on, and the leaf that binds it.

    `leaves` are the records' leaf hashes in the host's log, `head` is the signed note of a tree head that covers them.

    Raises:
        UsageError: there is no record, there are more than `MAX_RECORDS`, or one does not fit.
    """
    if not 1 <= len(records) <= MAX_RECORDS:
        raise UsageError(f"a batch has 1 to {MAX_RECORDS} records, not {len(records)}")
    last = first + len(records) - 1
    data = write_parquet(table(records, range(first, last + 1), leaves))
    bound = RecordBatch(
        host=host,
        run=run,
        first=first,
        last=last,
        count=len(records),
        leaves=merkle.root(leaves).hex(),
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        head=head,
    )
    return data, bound


def read_batch(data: bytes, bound: RecordBatch) -> Table:
    """The records of a Parquet file after checking that it is the one that the leaf binds.

    Raises:
        RecordsTampered: the file is another one, is no such Parquet file, or contradicts the leaf.
    """
    if not 1 <= bound.count <= MAX_RECORDS or bound.last - bound.first + 1 != bound.count or bound.first < 0:
        raise RecordsTampered(f"the leaf binds {bound.count} records as entries {bound.first} to {bound.last}")
    if len(data) != bound.size or len(data) > MAX_BYTES:
        raise RecordsTampered(f"the file of records has {len(data)} bytes, expected {bound.size}, at most {MAX_BYTES}")
    found = hashlib.sha256(data).hexdigest()
    if found != bound.sha256:
        raise RecordsTampered(f"the file of records has SHA-256 {found}, its leaf binds {bound.sha256}")
    rows = _read(data, bound.count)
    if rows.column("index").to_pylist() != list(range(bound.first, bound.last + 1)):
        raise RecordsTampered(f"the file's rows are not entries {bound.first} to {bound.last} in order")
    root = merkle.root(rows.column("leaf").to_pylist()).hex()
    if root != bound.leaves:
        raise RecordsTampered(f"the file's leaf hashes have root {root}, its leaf binds {bound.leaves}")
    return rows


def _read(data: bytes, count: int) -> Table:
    try:
        file = pq.ParquetFile(
            pa.BufferReader(data),
            pre_buffer=False,
            thrift_string_size_limit=1 << 20,
            thrift_container_size_limit=1 << 16,
        )
        meta = file.metadata
        if (meta.num_rows, meta.num_row_groups) != (count, 1) or file.schema_arrow.names != SCHEMA.names:
            raise RecordsTampered(
                f"the file has {meta.num_rows} rows in {meta.num_row_groups} groups and columns "
                f"{', '.join(file.schema_arrow.names)[:400]}; expected {count} rows in 1 group and the records' columns"
            )
        if file.schema_arrow.remove_metadata() != SCHEMA:
            raise RecordsTampered(f"the file's columns have other types: {str(file.schema_arrow)[:400]}")
        rows = file.read(use_threads=False)
        rows.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as e:
        raise RecordsTampered(f"the file of records is not readable Parquet: {_first_line(e)}") from e
    holes = [name for name, _, null in _COLUMNS if not null and rows.column(name).null_count]
    if rows.num_rows != count or holes:
        raise RecordsTampered(f"the file has {rows.num_rows} rows, expected {count}; values missing in {holes}")
    return rows


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _lr(record: StepRecord) -> float | None:
    value = record.hyper[0].get("lr") if record.hyper else None
    return float(value) if isinstance(value, float) else None


def _unseen(record: StepRecord) -> int:
    stages = record.stages
    return sum(bit for stage, bit in _BITS.items() if stage not in stages or not stages[stage].root)
