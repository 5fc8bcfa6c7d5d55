"""Files that are moved away and put back together: a crash at any moment loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainwarden.errors import CannotDecide, StoreError
from trainwarden.respond import disk
from trainwarden.respond.disk import Restore, keep, put_back, take_away
from trainwarden.store import RunDir, Store

MANY = disk._FEW + 12


class Yard:
    """A store with a run, and files in two folders outside of it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder / "store", create=True)
        self.run: RunDir = self.store.create_run()
        self.files = [folder / f"site{i % 2}" / f"f{i}.py" for i in range(MANY)]
        for i, file in enumerate(self.files):
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"x = {i}")
            os.chmod(file, 0o640)
        self.moves = [(str(f), "new in the sealed environment") for f in self.files]


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


@pytest.mark.parametrize("count", [1, MANY])
def test_what_is_moved_away_is_put_back_as_it_was(yard: Yard, count: int) -> None:
    moves, files = yard.moves[:count], yard.files[:count]
    kept = keep(yard.store, yard.run, moves)
    assert len(list(yard.run.quarantine.glob("*.json"))) == count
    take_away([(path, seen) for (path, _), (_, seen) in zip(moves, kept, strict=True)])
    assert not any(f.exists() for f in files)
    put_back(
        yard.store,
        [Restore(path=p, digest=d, mode=0o640, mtime=7) for (p, _), (d, _) in zip(moves, kept, strict=True)],
    )
    assert [f.read_text() for f in files] == [f"x = {i}" for i in range(count)]
    assert {(f.stat().st_mode & 0o777, int(f.stat().st_mtime)) for f in files} == {(0o640, 7)}
    assert sorted(p for f in {f.parent for f in yard.files} for p in f.iterdir()) == sorted(yard.files)


def test_a_disk_that_fails_while_files_are_kept_leaves_them_where_they_are(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "sync_file_system", refuse)
    with pytest.raises(StoreError):
        keep(yard.store, yard.run, yard.moves)
    assert all(f.exists() for f in yard.files)


def test_one_that_was_written_to_meanwhile_stays_and_those_after_it_as_well(yard: Yard) -> None:
    kept = keep(yard.store, yard.run, yard.moves)
    yard.files[5].write_text("somebody else")
    with pytest.raises(CannotDecide, match="written to"):
        take_away([(path, seen) for (path, _), (_, seen) in zip(yard.moves, kept, strict=True)])
    assert [f.exists() for f in yard.files] == [i >= 5 for i in range(MANY)]
    assert yard.files[5].read_text() == "somebody else"


def test_a_place_that_cannot_be_written_leaves_what_is_there_and_nothing_half_done(yard: Yard) -> None:
    kept = keep(yard.store, yard.run, yard.moves)
    back = [Restore(path=p, digest=d) for (p, _), (d, _) in zip(yard.moves, kept, strict=True)]
    with pytest.raises(StoreError):
        put_back(yard.store, [*back, Restore(path=str(yard.files[0].parent / "gone"), digest="0" * 64)])
    names = {p.name for f in yard.files for p in f.parent.iterdir()}
    assert names == {f.name for f in yard.files}
