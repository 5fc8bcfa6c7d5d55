"""A log is followed: every entry is handed out once, and a log that does not go on as it began is told."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from trainwarden.errors import LogError, LogTampered, SignatureInvalid
from trainwarden.keys import SigningKey
from trainwarden.log.following import LogFollower
from trainwarden.log.journal import LogWriter

KEY, OTHER = SigningKey(b"k" * 32), SigningKey(b"o" * 32)


def begun(folder: Path, *entries: bytes, key: SigningKey = KEY) -> Path:
    with closing(LogWriter.create(folder, "a/log", key)) as log:
        for entry in entries:
            log.append([entry])
    return folder


def added(folder: Path, *entries: bytes) -> None:
    with closing(LogWriter.open(folder, KEY)) as log:
        log.append(list(entries))


def new(follower: LogFollower) -> list[bytes]:
    return [frame.data for batch in follower.new() for frame in batch.entries]


def test_each_entry_is_handed_out_once_and_the_roots_of_kept_heads_are_known(tmp_path: Path) -> None:
    follower = LogFollower(begun(tmp_path / "log", b"a", b"b"), KEY.public)
    assert new(follower) == [b"a", b"b"]
    assert new(follower) == []
    added(tmp_path / "log", b"c", b"d")
    assert new(follower) == [b"c", b"d"]
    from_the_start = LogFollower(tmp_path / "log", KEY.public, "a/log")
    assert len(new(from_the_start)) == follower.size == 4
    assert [follower.root(n) for n in range(6)] == [from_the_start.root(n) for n in range(6)]
    assert [bool(follower.root(n)) for n in range(6)] == [True, True, True, False, True, False]  # c and d came at once


def test_an_entry_that_its_reader_could_not_take_is_handed_out_again(tmp_path: Path) -> None:
    follower = LogFollower(begun(tmp_path / "log", b"a"), KEY.public)
    for _ in follower.new():
        break
    assert new(follower) == [b"a"]


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ("put back", "it has 1 entries, 2 were seen"),
        ("put back and grown", "was rewritten"),
        ("another history", "root"),
        ("cut", "its journal has"),
        ("gone", "No such file"),
        ("another log", "is the log 'b/log'"),
        ("an old head", "rolled back"),
    ],
)
def test_a_log_that_does_not_go_on_as_it_began_is_told_until_it_is_mended(
    tmp_path: Path, attack: str, told: str
) -> None:
    folder = begun(tmp_path / "log", b"a")
    shutil.copytree(folder, tmp_path / "old")
    added(folder, b"b")
    follower = LogFollower(folder, KEY.public, "a/log")
    assert len(new(follower)) == 2
    shutil.copytree(folder, tmp_path / "whole")
    journal, head = folder / "journal", folder / "head"
    match attack:
        case "put back" | "put back and grown":
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "old", folder)
            if attack != "put back":
                added(folder, b"x")
                added(folder, b"y")
        case "another history":
            shutil.rmtree(folder)
            begun(folder, b"a", b"c")
        case "cut":
            journal.write_bytes(journal.read_bytes()[:-1])
        case "gone":
            shutil.rmtree(folder)
        case "another log":
            shutil.rmtree(folder)
            with closing(LogWriter.create(folder, "b/log", KEY)) as log:
                log.append([b"a"])
                log.append([b"b"])
        case _:
            kept = head.read_bytes()
            added(folder, b"c")
            added(folder, b"d")
            head.write_bytes(kept)
    for _ in range(2):
        with pytest.raises(LogError, match=told):
            new(follower)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "whole", folder)
    assert new(follower) == []


def test_a_log_of_another_key_is_not_followed(tmp_path: Path) -> None:
    begun(tmp_path / "log", b"a", key=OTHER)
    with pytest.raises((SignatureInvalid, LogTampered)):
        new(LogFollower(tmp_path / "log", KEY.public))
