"""What ranks tell of a batch's rows is kept, the newest of it, and what a crash cut off is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwarden.errors import StoreError
from trainwarden.supervise import rows
from trainwarden.supervise.rows import RowFile, Rows, read_rows


def batch(step: int, rank: int = 0, attempt: int = 0) -> Rows:
    return Rows(attempt, rank, step, ("0", "1"), bytes(16), bytes(8), bytes([step]) * 64)


def test_batches_are_read_by_attempt_and_step(tmp_path: Path) -> None:
    file = RowFile(tmp_path)
    for one in (batch(1), batch(2), batch(2, rank=1), batch(2, attempt=1), batch(3)):
        file.append(one)
    found = read_rows(tmp_path, 0, range(2, 4))
    assert found == {(2, 0): [batch(2)], (2, 1): [batch(2, rank=1)], (3, 0): [batch(3)]}


def test_of_a_long_run_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_BYTES", 500)
    file = RowFile(tmp_path)
    for step in range(100):
        file.append(batch(step))
    kept = sorted(step for step, _ in read_rows(tmp_path, 0, range(100)))
    assert kept[-1] == 99
    assert kept == list(range(kept[0], 100))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 1000


def test_frame_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    file = RowFile(tmp_path)
    file.append(batch(1))
    file.append(batch(2))
    path = tmp_path / "rows.bin"
    path.write_bytes(path.read_bytes()[:-5])
    assert list(read_rows(tmp_path, 0, range(9))) == [(1, 0)]
    path.write_bytes(path.read_bytes()[:30] + b"\xff" * 90)
    assert read_rows(tmp_path, 0, range(9)) == {}


def test_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        RowFile(tmp_path / "gone").append(batch(1))
