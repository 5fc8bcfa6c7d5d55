"""The digest cache is quick, and is not fooled by restored times."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from blake3 import blake3

from trainwarden.errors import UsageError
from trainwarden.seal import cache as cache_module
from trainwarden.seal.cache import Digest, DigestCache, Item, digest_files, digest_open, item_of


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache" / "files.sqlite")


class Counting:
    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: str, fd: int) -> Digest:
        self.read.append(path)
        return digest_open(path, fd)


def item(path: Path) -> Item:
    found = item_of(str(path))
    assert found
    return found


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the files had been written long before they are hashed."""
    now_ns = time.time_ns
    monkeypatch.setattr(cache_module.time, "time_ns", lambda: now_ns() + 3 * cache_module.RACY_NS)


def test_second_time_nothing_is_read(tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    paths = [tmp_path / f"f{i}" for i in range(2000)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    counting = Counting()
    first = digest_files([item(p) for p in paths], cache, read=counting)
    assert len(counting.read) == len(paths)
    assert first[str(paths[7])].digest == blake3(b"7").hexdigest()
    assert digest_files([item(p) for p in paths], cache, read=counting) == first
    assert len(counting.read) == len(paths)


def test_edit_with_restored_mtime_is_read_again(
    tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    path = tmp_path / "f"
    path.write_bytes(b"honest")
    before = path.stat()
    digest_files([item(path)], cache)
    path.write_bytes(b"EVIL!!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert digest_files([item(path)], cache)[str(path)].digest == blake3(b"EVIL!!").hexdigest()


def test_file_just_written_is_not_cached(tmp_path: Path, cache: DigestCache) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    counting = Counting()
    digest_files([item(path)], cache, read=counting)
    digest_files([item(path)], cache, read=counting)
    assert len(counting.read) == 2


def test_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, cache: DigestCache) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    reads = 0

    def read(name: str, fd: int) -> Digest:
        nonlocal reads
        digest = digest_open(name, fd)
        reads += 1
        if reads == 1:
            path.write_bytes(b"three")
        return digest

    assert digest_files([item(path)], cache, read=read)[str(path)].digest == blake3(b"three").hexdigest()


def test_file_that_never_rests_or_goes_away_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")

    def grow(name: str, fd: int) -> Digest:
        with path.open("ab") as f:
            f.write(b"x")
        return digest_open(name, fd)

    with pytest.raises(UsageError, match="keeps changing"):
        digest_files([item(path)], None, read=grow)
    gone = item(path)
    path.unlink()
    with pytest.raises(UsageError, match="cannot read") as e:
        digest_files([gone], None)
    assert e.value.hint
    assert digest_files([gone], None, strict=False) == {}


def test_damaged_cache_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "files.sqlite"
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    (tmp_path / "f").write_bytes(b"x")
    with DigestCache(path) as cache:
        assert digest_files([item(tmp_path / "f")], cache)


def test_progress_ends_at_the_total(tmp_path: Path, cache: DigestCache) -> None:
    for i in range(10):
        (tmp_path / f"f{i}").write_bytes(b"x" * 1000)
    seen: list[tuple[int, int, str]] = []
    digest_files(
        [item(tmp_path / f"f{i}") for i in range(10)],
        cache,
        progress=lambda done, total, label: seen.append((done, total, label)),
        label="reading",
    )
    assert seen[-1] == (10_000, 10_000, "reading")
    assert seen == sorted(seen)


def test_folder_swapped_while_a_file_is_read_lends_its_digest_to_no_other(
    tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tampered file is at the path when it is looked at, before and after; the honest one when it is opened."""
    settle(monkeypatch)
    shown, hidden, aside = tmp_path / "package", tmp_path / "hidden", tmp_path / "aside"
    for folder, text in ((shown, "tampered"), (hidden, "honest")):
        folder.mkdir()
        (folder / "f").write_text(text)

    def swap(*_: object) -> None:
        shown.rename(aside)
        hidden.rename(shown)
        aside.rename(hidden)

    opened = os.open
    swaps = [swap]

    def open_swapped(path: str, flags: int, *rest: int, **more: int) -> int:
        if path == str(shown / "f") and swaps:
            swaps.pop()()
            fd = opened(path, flags, *rest, **more)
            swap()
            return fd
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(cache_module.os, "open", open_swapped)
    tampered = item(shown / "f")
    assert digest_files([tampered], cache)[str(shown / "f")].digest == blake3(b"tampered").hexdigest()
    assert digest_files([tampered], cache)[str(shown / "f")].digest == blake3(b"tampered").hexdigest()
