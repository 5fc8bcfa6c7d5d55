"""Files written beside training: told once, by who writes them, while the training thread looks for companions."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from trainwarden import wire
from trainwarden.record import saving
from trainwarden.record.folders import companions
from trainwarden.record.saving import SavedFiles


class FakeRecorder:
    done, seq, trainer, key = 3, 3, 0, bytes(32)

    def __init__(self) -> None:
        self.told: list[wire.Saved] = []

    def settle(self) -> None:
        """Nothing waits here."""

    def tell(self, message: Any) -> None:
        self.told.append(message)


class NoSnapshots:
    def beside(self) -> str:
        return ""


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


@pytest.fixture
def files(recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> SavedFiles:
    monkeypatch.setattr(saving, "companions", lambda folder, since: sorted(map(str, Path(folder).glob("*"))))
    return SavedFiles(recorder, NoSnapshots())  # type: ignore[arg-type]


def test_a_companion_is_told_and_what_is_being_written_is_left_to_its_writer(
    recorder: FakeRecorder, files: SavedFiles, tmp_path: Path
) -> None:
    for name in ("model.pt", "state.json", "next.pt.tmp"):
        (tmp_path / name).touch()
    files.saved(str(tmp_path / "model.pt"), "torch")
    with files.busy(str(tmp_path / "next.pt.tmp")):
        files.tell_companions()
        files.saved(str(tmp_path / "next.pt.tmp"), "torch")
    assert [Path(m.path).name for m in recorder.told] == ["model.pt", "state.json", "next.pt.tmp"]


def test_a_folder_being_renamed_is_told_by_who_renames_it(
    recorder: FakeRecorder, files: SavedFiles, tmp_path: Path
) -> None:
    old, new = tmp_path / "partial", tmp_path / "step-3"
    old.mkdir()
    for name in ("model.pt", "state.json"):
        (old / name).touch()
    files.saved(str(old / "model.pt"), "torch")
    with files.busy(str(old), str(new)):
        os.rename(old, new)
        files.tell_companions()
        files.renamed(str(old), str(new))
    files.tell_companions()
    assert [(f"{Path(m.path).parent.name}/{Path(m.path).name}", m.renamed_from != "") for m in recorder.told] == [
        ("partial/model.pt", False),
        ("step-3/model.pt", True),
        ("step-3/state.json", True),
    ]


def test_writing_the_same_path_twice_at_once_stays_busy_until_the_last_is_done(files: SavedFiles) -> None:
    with files.busy("/a"):
        with files.busy("/a", "/b"):
            pass
        assert files._is_busy("/a/below")
        assert not files._is_busy("/b")
    assert not files._is_busy("/a")


def test_savers_and_the_training_thread_tell_every_file_once(
    recorder: FakeRecorder, files: SavedFiles, tmp_path: Path
) -> None:
    def save(name: str) -> None:
        part, whole = str(tmp_path / f"{name}.tmp"), str(tmp_path / name)
        with files.busy(part):
            Path(part).write_bytes(b"x")
            time.sleep(0.001)
            files.saved(part, "torch")
        with files.busy(part, whole):
            os.rename(part, whole)
            time.sleep(0.001)
            files.renamed(part, whole)

    savers = [threading.Thread(target=save, args=(f"ck{i}",)) for i in range(40)]
    for saver in savers:
        saver.start()
        files.tell_companions()
    for saver in savers:
        saver.join()
    files.tell_companions()
    told = [Path(m.path).name for m in recorder.told if m.identity != (0, 0, 0)]
    assert sorted(told) == sorted(f"ck{i}{end}" for i in range(40) for end in ("", ".tmp"))


def test_a_rank_tells_what_it_wrote_and_the_first_of_a_host_also_what_it_finds(
    recorder: FakeRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "companions", lambda folder, since: sorted(map(str, Path(folder).glob("*"))))
    for name in ("mine.pt", "mine.json", "other.json"):
        (tmp_path / name).touch()
    for rank, expected in (("0", {"mine.pt", "mine.json", "other.json"}), ("1", {"mine.pt", "mine.json"})):
        monkeypatch.setenv("LOCAL_RANK", rank)
        recorder.told.clear()
        files = SavedFiles(recorder, NoSnapshots())  # type: ignore[arg-type]
        files.wrote(str(tmp_path / "mine.json"))
        files.saved(str(tmp_path / "mine.pt"), "torch")
        files.tell_companions()
        assert {Path(told.path).name for told in recorder.told} == expected


def test_a_log_beside_a_state_file_is_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    """It is another one by the time that it is hashed, and a job with such a log had a gap at every checkpoint."""
    for name in ("config.json", "vocab.txt", "metrics.jsonl", "train.log", "curves.csv"):
        (tmp_path / name).touch()
    assert [Path(p).name for p in companions(str(tmp_path), 0.0)] == ["config.json", "vocab.txt"]
