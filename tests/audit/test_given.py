"""Data that was opened and never sealed is given to a replay as it was read; changed since, it grounds no verdict."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from blake3 import blake3
from guarded_job import NOTHING, PlainRoom, PlainWorkspace, plain_seal

from trainwarden.audit import given
from trainwarden.model import DataOpened, canonical
from trainwarden.store import Store


class Case:
    """A file `job/tokens.bin` that a run opened; `kept`: the store has a copy."""

    def __init__(self, folder: Path, *, kept: bool = True, before_seal: bool = True) -> None:
        self.file = folder / "job" / "tokens.bin"
        self.file.parent.mkdir()
        self.file.write_bytes(b"as it was read")
        store = Store.open(folder / "store", create=True)
        for manifest in NOTHING:
            store.put_bytes(canonical(manifest))
        digest = store.put_file(self.file) if kept else blake3(b"as it was read").hexdigest()
        opened = DataOpened(
            attempt=0, rank=0, path=str(self.file), digest=digest, size=14, changed_ns=self.file.stat().st_ctime_ns
        )
        seal = plain_seal(self.file.parent, created_ns=time.time_ns() if before_seal else 0)
        self.recorded = SimpleNamespace(store=store, opened={opened.path: opened}, seal=seal)
        self.space = PlainWorkspace(PlainRoom(Path("/usr/bin/python3"), self.file.parent, seal.seal))
        self.there = Path(self.space.map_path(str(self.file)))

    def place(self) -> None:
        given.place(self.recorded, self.space)  # type: ignore[arg-type]


def test_a_replay_finds_what_the_run_opened_even_when_it_was_changed_since(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.file.write_bytes(b"changed")
    case.place()
    assert case.there.read_bytes() == b"as it was read"


def test_what_the_job_wrote_itself_is_not_there_before_it_writes_it(tmp_path: Path) -> None:
    case = Case(tmp_path, before_seal=False)
    case.place()
    assert not case.there.exists()


def test_a_changed_file_without_a_copy_is_left_out(tmp_path: Path) -> None:
    case = Case(tmp_path, kept=False)
    case.file.write_bytes(b"changed")
    case.place()
    assert not case.there.exists()


@pytest.mark.parametrize("now", [b"changed", None])
def test_a_replay_that_read_a_changed_original_decides_nothing(tmp_path: Path, now: bytes | None) -> None:
    case = Case(tmp_path)
    read = [str(case.file), str(case.there)]
    assert list(given.strayed(case.recorded, case.space, read)) == []  # type: ignore[arg-type]
    case.file.unlink() if now is None else case.file.write_bytes(now)
    (reason,) = given.strayed(case.recorded, case.space, read)  # type: ignore[arg-type]
    assert f"reads {case.file} by its absolute path" in reason
