"""Publishing a journal: readers see the old log or the new one, whole, wherever it is stopped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainwarden.errors import LogError, LogTampered, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log import LogReader, LogWriter
from trainwarden.log import publish as publishing
from trainwarden.log.publish import Published, publish
from trainwarden.log.tilelog import TileLog, from_folder
from trainwarden.log.tiles import tiles_for
from trainwarden.log.vkeys import VerifierKey

KEY, ORIGIN = SigningKey(b"\x01" * 32), "trainwarden/run/x"
VKEY = VerifierKey(ORIGIN, KEY.public)


def grown(folder: Path, size: int, word: bytes = b"entry", origin: str = ORIGIN) -> None:
    """Bring the journal in `folder` to `size` entries."""
    writer = LogWriter.open(folder, KEY) if folder.exists() else LogWriter.create(folder, origin, KEY)
    writer.append([b"%s %d" % (word, i) for i in range(writer.size, size)])
    writer.close()


def published(journal: Path, to: Path) -> Published:
    with LogReader.open(journal, KEY.public) as log:
        return publish(log, to)


def check(to: Path, size: int) -> TileLog:
    log = TileLog.open(from_folder(to), VKEY)
    assert [e for _, e in log.entries()] == [b"entry %d" % i for i in range(size)]
    return log


def test_a_journal_is_published_in_steps_and_each_writes_only_what_is_new(tmp_path: Path) -> None:
    journal, to, heads = tmp_path / "log", tmp_path / "site", []
    old = 0
    for size in (0, 1, 2, 255, 256, 257, 600, 600):
        grown(journal, size)
        done = published(journal, to)
        assert (done.before, done.size) == (old, size)
        assert done.tiles == len(list(tiles_for(old, size)))
        log = check(to, size)
        for head in heads:
            log.check_grown_from(head)
        heads.append(log.head)
        old = size
    with LogReader.open(journal, KEY.public) as reader:
        assert reader.head == heads[-1], "the head that the run signed, byte for byte"
    assert not list(to.rglob("*.tmp"))


class Stop(BaseException):
    """The process died here."""


@pytest.mark.parametrize("step", range(0, 14))
def test_stopped_at_any_write_the_old_log_holds_and_the_next_one_goes_on(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, to = tmp_path / "log", tmp_path / "site"
    grown(journal, 300)
    published(journal, to)
    grown(journal, 800)
    real, left = os.replace, [step]

    def dying(a: object, b: object) -> None:
        if not left[0]:
            raise Stop
        left[0] -= 1
        real(a, b)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", dying)
    try:
        published(journal, to)
        died = False
    except Stop:
        died = True
    monkeypatch.undo()
    assert died == (step < len(list(tiles_for(300, 800))) + 1)
    check(to, 300 if died else 800)
    assert published(journal, to).size == 800
    check(to, 800)


def test_the_checkpoint_waits_until_the_tiles_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, to = tmp_path / "log", tmp_path / "site"
    grown(journal, 3)

    def failing(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "sync_file_system", failing)
    with pytest.raises(LogError, match="No space left") as e:
        published(journal, to)
    assert "disk is full" in e.value.hint
    assert not (to / "checkpoint").exists()


def test_another_log_or_another_history_is_not_written_over(tmp_path: Path) -> None:
    to = tmp_path / "site"
    grown(tmp_path / "log", 300)
    published(tmp_path / "log", to)
    before = {p: p.read_bytes() for p in to.rglob("*") if p.is_file()}
    for name, size, word, origin, says in (
        ("other", 600, b"entry", "trainwarden/run/y", "has the log"),
        ("fork", 600, b"another", ORIGIN, "split view"),
        ("fork of the same size", 300, b"another", ORIGIN, "split view"),
        ("shorter", 299, b"entry", ORIGIN, "of size 299"),
    ):
        grown(tmp_path / name, size, word, origin)
        with pytest.raises(LogTampered, match=says):
            published(tmp_path / name, to)
        assert {p: p.read_bytes() for p in to.rglob("*") if p.is_file()} == before


def test_an_entry_too_large_for_a_bundle_is_named_and_nothing_is_signed_for(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "log", ORIGIN, KEY)
    writer.append([b"small", bytes(65_535)])
    writer.close()
    assert published(tmp_path / "log", tmp_path / "site").size == 2
    writer = LogWriter.open(tmp_path / "log", KEY)
    writer.append([bytes(65_536)])
    writer.close()
    with pytest.raises(UsageError, match="entry 2 has 65536 bytes"):
        published(tmp_path / "log", tmp_path / "site")
    assert TileLog.open(from_folder(tmp_path / "site"), VKEY).head.size == 2


def test_a_changed_journal_is_not_published(tmp_path: Path) -> None:
    grown(tmp_path / "log", 300)
    data = (tmp_path / "log" / "journal").read_bytes()
    (tmp_path / "log" / "journal").write_bytes(data.replace(b"entry 7", b"entry 8", 1))
    with pytest.raises(LogTampered):
        published(tmp_path / "log", tmp_path / "site")
    assert not (tmp_path / "site" / "checkpoint").exists()


def test_what_lies_in_the_way_is_an_error_with_its_path(tmp_path: Path) -> None:
    grown(tmp_path / "log", 3)
    (tmp_path / "site").write_bytes(b"a file")
    with pytest.raises(LogError, match="cannot publish"):
        published(tmp_path / "log", tmp_path / "site")
