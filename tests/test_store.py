"""The store: bytes come back as they went in or not at all; runs are found by what a person remembers."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

import trainwarden.store as store_module
from trainwarden.errors import StoreError, StoreTampered, UsageError
from trainwarden.store import RunDir, Store

MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def visible(store: Store) -> list[str]:
    """The digests of all objects that another process could see."""
    return sorted(p.name + q.name for p in store.objects.iterdir() if len(p.name) == 2 for q in p.iterdir())


# --------------------------------------------------------------------------- opening


def test_the_nearest_store_upwards_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINWARDEN_STORE", raising=False)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    made = Store.open(tmp_path / "a" / ".trainwarden", create=True)
    monkeypatch.chdir(deep)
    assert Store.open().path == made.path
    monkeypatch.setenv("TRAINWARDEN_STORE", str(tmp_path / "named"))
    assert Store.open(create=True).path == tmp_path / "named"


def test_a_new_store_is_made_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINWARDEN_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Store.open(create=True).path == tmp_path / ".trainwarden"


def test_no_store_is_an_error_with_a_hint_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store") as e:
        Store.open(tmp_path / "none")
    assert "trainwarden run" in e.value.hint
    assert not (tmp_path / "none").exists()


def test_a_folder_of_something_else_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for create in (True, False):
        with pytest.raises(StoreError, match="not a store"):
            Store.open(tmp_path, create=create)
    with pytest.raises(StoreError):
        Store.open(tmp_path / "thesis.tex", create=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_that_was_being_made_when_the_power_failed_is_completed(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    store = Store.open(tmp_path, create=True)
    assert store.get(store.put_bytes(b"x")) == b"x"


# --------------------------------------------------------------------------- objects


@pytest.mark.parametrize("size", [0, 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB])
@pytest.mark.parametrize("fsync", [True, False])
def test_a_file_comes_back_byte_for_byte(store: Store, tmp_path: Path, size: int, fsync: bool) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    digest = store.put_file(tmp_path / "f", fsync=fsync)
    assert digest == blake3(data).hexdigest()
    assert store.get(digest) == data
    store.sync()
    assert store.get(digest) == data
    store.check(digest)
    assert stat.S_IMODE(store.object_path(digest).stat().st_mode) == 0o444
    assert visible(store) == [digest]


def test_an_object_is_written_once(store: Store, tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    (tmp_path / "f").write_bytes(data)
    digest = store.put_bytes(data)
    before = store.object_path(digest).stat()
    assert store.put_bytes(data) == store.put_file(tmp_path / "f") == store.put_file(tmp_path / "f", fsync=False)
    store.sync()
    after = store.object_path(digest).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("size", [10, 5 * MIB])
def test_every_changed_byte_is_noticed_on_reading(store: Store, size: int) -> None:
    data = os.urandom(size)
    digest = store.put_bytes(data)
    path = store.object_path(digest)
    for position in range(0, size, max(1, size // 10)):
        path.chmod(0o644)
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        for read in (store.get, store.check):
            with pytest.raises(StoreTampered) as e:
                read(digest)
            assert digest in str(e.value)
            assert blake3(path.read_bytes()).hexdigest() in str(e.value)
    path.write_bytes(data[:-1])
    with pytest.raises(StoreTampered):
        store.get(digest)
    path.write_bytes(data)
    assert store.get(digest) == data


def test_a_removed_object_is_an_error_that_names_it(store: Store) -> None:
    digest = store.put_bytes(b"x")
    assert store.has(digest)
    store.object_path(digest).unlink()
    assert not store.has(digest)
    for read in (store.get, store.check, store.object_path):
        with pytest.raises(StoreError, match=digest):
            read(digest)


@pytest.mark.parametrize("name", ["", "..", "../../../etc/passwd", "ab/cd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_a_name_that_is_no_digest_reaches_no_file(store: Store, name: str) -> None:
    for use in (store.get, store.check, store.object_path, store.has):
        with pytest.raises(StoreError, match="not a digest"):
            use(name)


def test_an_unreadable_source_is_the_callers_mistake(store: Store, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            store.put_file(path)


def test_threads_may_put_the_same_and_different_objects(store: Store) -> None:
    def put(i: int) -> str:
        return store.put_bytes(bytes([i % 10]) * 1000, fsync=i % 3 == 0)

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(put, range(200)))
    store.sync()
    assert visible(store) == sorted(set(digests))
    assert len(set(digests)) == 10
    store.close()
    assert list((store.objects / "staging").iterdir()) == []


# --------------------------------------------------------------------------- crashes and full disks


def test_staged_objects_are_seen_by_others_only_after_sync(store: Store) -> None:
    other = Store.open(store.path)
    digest = store.put_bytes(b"x", fsync=False)
    assert store.get(digest) == b"x"
    assert not other.has(digest)
    store.sync()
    assert other.get(digest) == b"x"
    assert store.get(digest) == b"x"


KILLED = """
import os, signal, sys
from pathlib import Path
from trainwarden.store import Store
store = Store.open(Path(sys.argv[1]))
store.put_bytes(b"durable")
store.put_bytes(b"staged", fsync=False)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_half_object_and_its_staging_is_removed(store: Store) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.path)])
    assert done.returncode == -signal.SIGKILL
    mine = store.put_bytes(b"mine", fsync=False)
    assert len(list((store.objects / "staging").iterdir())) == 2
    again = Store.open(store.path, create=True)
    assert visible(again) == [blake3(b"durable").hexdigest()]
    assert len(list((store.objects / "staging").iterdir())) == 1, "only the dead process's folder goes"
    assert store.get(mine) == b"mine"
    store.sync()
    assert again.get(mine) == b"mine"


@pytest.mark.parametrize("fsync", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["write_all", "os.fsync", "os.replace", "os.fchmod", "fsync_folder"])
def test_a_failing_disk_is_an_error_with_a_hint_and_leaves_nothing_half_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, fsync: bool
) -> None:
    earlier = store.put_bytes(b"earlier")
    (tmp_path / "big").write_bytes(os.urandom(5 * MIB))

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for put in (
        lambda: store.put_bytes(b"x", fsync=fsync),
        lambda: store.put_file(tmp_path / "big", fsync=fsync),
    ):
        with monkeypatch.context() as patch:
            owner, _, name = call.rpartition(".")
            patch.setattr(getattr(store_module, owner) if owner else store_module, name, fail)
            with contextlib.suppress(StoreError):  # not every call is made on every path
                put()
                store.sync()
        for digest in visible(store):
            store.check(digest)
        digest = put()
        store.sync()
        store.check(digest)
    assert store.get(earlier) == b"earlier"


def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        store = Store.open(tmp_path / "store", create=True)
        earlier = store.put_bytes(b"earlier")
        with pytest.raises(StoreError) as e:
            store.put_bytes(os.urandom(MIB))
        assert "full" in e.value.hint
        assert visible(store) == [earlier]
        assert store.get(store.put_bytes(b"small again")) == b"small again"
        store.close()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


# --------------------------------------------------------------------------- runs


def test_a_run_has_its_folders_and_the_private_one_is_private(store: Store) -> None:
    run = store.create_run()
    for folder in (run.log, run.details, run.private, run.snapshots, run.quarantine):
        assert folder.is_dir()
        assert folder.parent == run.path
    assert stat.S_IMODE(run.private.stat().st_mode) == 0o700
    assert run.seal_file == run.path / "seal.json"
    assert store.runs() == [run.id]


def test_runs_made_at_once_are_all_there(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: store.create_run().id, range(40)))
    assert store.runs() == sorted(made)
    assert len(set(made)) == 40


def test_a_run_is_found_by_id_by_its_ends_and_as_last(store: Store) -> None:
    for name in ("20261123-125301-k3f9", "20261123-125302-aaaa", "20261124-000000-zzzz"):
        (store.path / "runs" / name).mkdir()
    (store.path / "runs" / "notes").mkdir()
    assert store.run("20261123-125301-k3f9").id == "20261123-125301-k3f9"
    assert store.run("20261124").id == store.run("last").id == store.run("zzzz").id == "20261124-000000-zzzz"
    assert store.run("k3f9").path == store.path / "runs" / "20261123-125301-k3f9"


def test_last_is_the_one_made_last(store: Store) -> None:
    names: list[str] = []
    for i in range(3):
        names.append(store_module._new_run_id(1_800_000_000_000_000_000 + i * 1_000_000))
    assert names == sorted(names)
    assert names[0].startswith("20270115-080000-00")


def test_an_unknown_run_names_the_close_ones(store: Store) -> None:
    with pytest.raises(UsageError) as e:
        store.run("last")
    assert "no run in" in e.value.hint
    (store.path / "runs" / "20261123-125301-k3f9").mkdir()
    with pytest.raises(UsageError, match="20261123-125301-k3g9") as e:
        store.run("20261123-125301-k3g9")
    assert "20261123-125301-k3f9" in e.value.hint
    for name in ("", "../runs", "notes", "/etc"):
        with pytest.raises(UsageError):
            store.run(name)


def test_an_ambiguous_prefix_lists_what_it_could_mean(store: Store) -> None:
    for name in ("20261123-125301-k3f9", "20261123-125302-aaaa"):
        (store.path / "runs" / name).mkdir()
    with pytest.raises(UsageError, match="2 runs") as e:
        store.run("20261123")
    assert "k3f9" in e.value.hint
    assert "aaaa" in e.value.hint


def test_a_run_folder_is_a_frozen_noun(tmp_path: Path) -> None:
    run = RunDir("x", tmp_path)
    with pytest.raises(AttributeError):
        run.id = "y"  # type: ignore[misc]
