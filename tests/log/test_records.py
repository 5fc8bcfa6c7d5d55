"""Step records as Parquet: what the leaf binds is what is read, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import math

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recorded_rows import leaves_of, step_record, step_records

from trainwarden.errors import RecordsTampered, UsageError
from trainwarden.log import merkle, records
from trainwarden.model import RecordBatch, StageDigest, canonical, decode_leaf


def made(count: int = 40, first: int = 7) -> tuple[bytes, RecordBatch]:
    rows = step_records(count)
    return records.batch(rows, leaves_of(rows), host="node1", run="r", first=first, head="note")


def rebound(data: bytes, bound: RecordBatch) -> RecordBatch:
    """The leaf that a hostile host would make for other bytes."""
    return msgspec.structs.replace(bound, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def test_rows_come_back_as_recorded_with_the_leaf_of_the_whole_record() -> None:
    rows = step_records(300)
    data, bound = records.batch(rows, leaves_of(rows), host="node1", run="r", first=7)
    table = records.read_batch(data, bound).to_pylist()
    assert [t["leaf"] for t in table] == leaves_of(rows)
    assert [t["index"] for t in table] == list(range(7, 307))
    for name in ("attempt", "rank", "world", "step", "seq", "loss", "wall_ns", "duration_ns", "cpu_ns", "recorder_ns"):
        assert [t[name] for t in table] == [getattr(r, name) for r in rows]
    assert {t["lr"] for t in table} == {3e-4}


def test_the_leaf_is_a_leaf_of_the_server_and_binds_the_local_log() -> None:
    rows = step_records(40)
    _, bound = made()
    assert decode_leaf(canonical(bound)) == bound
    assert bound.leaves == merkle.root(leaves_of(rows)).hex()


def test_about_64_bytes_a_record_at_the_size_of_a_real_batch() -> None:
    data, bound = made(256)
    assert (len(data) + len(canonical(bound))) / 256 <= 64


def test_values_that_are_no_plain_numbers_survive() -> None:
    rows = [
        step_record(0, loss=None, hyper=()),
        step_record(1, loss=math.inf, skipped=True, stages={}),
        step_record(2, loss=math.nan, hyper=({"lr": "high"},), stages={"batch": StageDigest(unseen="no loader")}),
    ]
    data, bound = records.batch(rows, leaves_of(rows), host="h", run="r", first=0)
    table = records.read_batch(data, bound).to_pylist()
    assert [t["loss"] for t in table][:2] == [None, math.inf]
    assert math.isnan(table[2]["loss"])
    assert [t["lr"] for t in table] == [None, 3e-4, None]
    assert [t["unseen"] for t in table] == [0x100, 0x1FF, 0x1FF]
    assert [t["skipped"] for t in table] == [False, True, False]


@pytest.mark.parametrize("change", [{"step": 1 << 63}, {"rank": 1 << 31}, {"wall_ns": -(1 << 63) - 1}])
def test_a_record_with_hostile_numbers_does_not_fit_and_is_no_crash(change: dict[str, object]) -> None:
    record = step_record(**change)  # type: ignore[arg-type]
    assert not records.fits(record)
    with pytest.raises(UsageError, match="does not fit"):
        records.batch([record], leaves_of([record]), host="h", run="r", first=0)


def test_a_batch_has_a_record_and_not_too_many() -> None:
    with pytest.raises(UsageError, match="not 0"):
        records.batch([], [], host="h", run="r", first=0)
    with pytest.raises(UsageError, match="1 records, 1 log indexes and 0 leaf hashes"):
        records.batch([step_record()], [], host="h", run="r", first=0)


def test_another_file_in_the_place_of_the_bound_one() -> None:
    data, bound = made()
    other, _ = made(41)
    with pytest.raises(RecordsTampered, match=r"bytes, expected"):
        records.read_batch(other, bound)
    with pytest.raises(RecordsTampered, match="SHA-256"):
        records.read_batch(data[:-1] + bytes([data[-1] ^ 1]), bound)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"first": 8, "last": 47}, "not entries 8 to 47"),
        ({"count": 41, "last": 47}, "40 rows"),
        ({"count": 1 << 40, "last": (1 << 40) + 6}, "binds 1099511627776 records"),
        ({"last": 100}, "binds 40 records"),
        ({"leaves": "00" * 32}, "leaf hashes have root"),
    ],
)
def test_a_leaf_that_says_something_else_than_the_file(change: dict[str, object], reason: str) -> None:
    data, bound = made()
    with pytest.raises(RecordsTampered, match=reason):
        records.read_batch(data, msgspec.structs.replace(bound, **change))


def test_a_hostile_host_binds_a_file_of_other_columns() -> None:
    data, bound = made()
    table = records.read_batch(data, bound)
    wide = table.set_column(0, "index", table.column("index").cast(pa.float64()))
    nulls = table.set_column(0, "index", pa.array([None] * 40, pa.int64()))
    for hostile in (table.drop_columns(["leaf"]), table.append_column("more", table.column("step")), wide, nulls):
        forged = parquet(hostile)
        with pytest.raises(RecordsTampered):
            records.read_batch(forged, rebound(forged, bound))
    grouped = parquet(table, row_group_size=10, store_schema=False)
    with pytest.raises(RecordsTampered, match="4 groups"):
        records.read_batch(grouped, rebound(grouped, bound))


@pytest.mark.parametrize("hostile", [b"", b"PAR1", b"PAR1" * 3, b"PAR1" + b"\xff" * 64 + b"PAR1", b"\0" * 100])
def test_bytes_that_are_no_parquet(hostile: bytes) -> None:
    _, bound = made()
    with pytest.raises(RecordsTampered):
        records.read_batch(hostile, rebound(hostile, bound))


_DATA, _BOUND = made()


@given(st.lists(st.tuples(st.integers(0, len(_DATA) - 1), st.integers(1, 255)), min_size=1, max_size=4))
@example([(len(_DATA) - 5, 255)])  # the length of the footer
@settings(max_examples=300, deadline=None)
def test_fuzz_a_hostile_host_binds_damaged_parquet(flips: list[tuple[int, int]]) -> None:
    """Whatever the file holds, it is refused with the one error, or it is rows under the root that the leaf binds."""
    damaged = bytearray(_DATA)
    for at, mask in flips:
        damaged[at] ^= mask
    try:
        table = records.read_batch(bytes(damaged), rebound(bytes(damaged), _BOUND))
    except RecordsTampered:
        return
    assert merkle.root(table.column("leaf").to_pylist()).hex() == _BOUND.leaves
    assert table.schema.remove_metadata() == records.SCHEMA


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_fuzz_arbitrary_bytes_between_the_marks_of_parquet(middle: bytes) -> None:
    data = b"PAR1" + middle + b"PAR1"
    with pytest.raises(RecordsTampered):
        records.read_batch(data, rebound(data, _BOUND))
