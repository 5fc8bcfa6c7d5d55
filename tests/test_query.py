"""`trainwarden query`: answers from the run's own log, and SQL that wants more than that is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent / "log"))
from recorded_rows import leaves_of, make_run, step_record, step_records

from trainwarden.cli import main
from trainwarden.errors import UsageError
from trainwarden.log import records
from trainwarden.model import Gap
from trainwarden.query import select
from trainwarden.store import Store
from trainwarden.supervise import samples

ROWS = step_records(40)
TABLE = records.table(ROWS, range(40), leaves_of(ROWS))


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    Store.open(tmp_path / "store", create=True).close()
    gap = Gap(attempt=0, rank=1, step=3, reason="x")
    folder = make_run(tmp_path / "store", [list(ROWS[:20]), [gap], list(ROWS[20:]), [step_record(9, step=1 << 70)]])
    return [folder.id, "--store", str(tmp_path / "store")]


def test_rows_of_the_log_with_their_indexes(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT min(index), max(index), count(*), count(DISTINCT rank) FROM records"
    assert main(["query", run[0], sql, *run[1:], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == [[0, 40, 40, 8]]  # entry 20 is the gap, entry 41 fits no column
    assert told["left_out"] == 1


def test_table_on_the_terminal_and_a_parquet_file(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.parquet"
    sql = "SELECT rank, leaf, NULL AS nothing, '[red]' AS word FROM records ORDER BY index LIMIT 1"
    assert main(["query", run[0], sql, "--parquet", str(file), *run[1:]]) == 0
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "rank" in out
    assert pq.read_table(file).column("leaf").to_pylist() == leaves_of(ROWS)


def test_neither_a_query_nor_a_file(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", *run]) == 3
    assert "hint:" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", *run, "--parquet", str(tmp_path / "no" / "such" / "x")]) == 3
    assert "error: cannot write" in capsys.readouterr().err


def test_a_log_that_was_rewritten_gives_no_answer(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "store" / "runs" / run[0] / "log" / "journal"
    journal.write_bytes(journal.read_bytes().replace(b'"rank":3', b'"rank":4', 1))
    assert main(["query", run[0], "SELECT 1", *run[1:]]) == 1
    assert "rewritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sql",
    [
        "COPY records TO '{path}'",
        "COPY (SELECT 1) TO '{path}' (FORMAT PARQUET)",
        "CREATE TABLE t AS SELECT * FROM records",
        "DROP VIEW records",
        "ATTACH '{path}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA enable_external_access = true",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY records TO '{path}'",
        "SELECT * FROM '{path}'",
        "SELECT * FROM read_csv('{path}')",
        "SELECT * FROM read_text('{path}')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
        "SELECT * FROM sqlite_scan('{path}', 't')",
        "SELECT * FROM table_of_the_caller",
        "SELECT * FROM nowhere",
        "EXPORT DATABASE '{path}'",
        "CALL pragma_version()",
        "EXPLAIN SELECT 1",
        "SELEKT 1",
        "",
        "-- nothing",
    ],
)
def test_sql_that_reaches_outside_is_refused(sql: str, tmp_path: Path) -> None:
    table_of_the_caller = TABLE  # a Python variable that DuckDB would find by its name
    path = tmp_path / "secret"
    path.write_text("a,b\n1,2\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError):
        select(TABLE, sql.format(path=path))
    assert sorted(tmp_path.iterdir()) == before
    assert path.read_text() == "a,b\n1,2\n"
    assert table_of_the_caller is TABLE


def test_values_of_every_kind_are_told_as_json(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sql = (
        "SELECT leaf, [1, 2] AS l, {'a': 1} AS s, DATE '2026-01-01' AS d, 1.5::DECIMAL(4,2) AS x, 'nan'::DOUBLE AS n, "
        "170141183460469231731687303715884105727::HUGEINT AS h, INTERVAL 1 DAY AS i FROM records LIMIT 1"
    )
    assert main(["query", run[0], sql, *run[1:], "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row[0] == leaves_of(ROWS)[0].hex()
    assert row[1:4] == [[1, 2], {"a": 1}, "2026-01-01"]


def test_the_samples_that_a_run_was_given(run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "samples.txt"
    words = ["query", *run, "--samples", str(file)]
    assert main(words) == 3
    assert "kept no samples" in capsys.readouterr().err
    table = samples.Table(("0", "1"), 3)
    table.put(1, bytes(32))
    private = tmp_path / "store" / "runs" / run[0] / "private"
    private.mkdir(exist_ok=True)
    samples.keep(table, private)
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["listed"]) == (3, 1)
    assert samples.read_manifest(file)[0].get(1) == bytes(32)
    table.varying.add("0")
    samples.keep(table, private)
    assert main(words) == 3
    assert "without random augmentation" in capsys.readouterr().err
