"""Both places for tiles keep the same promises: a folder, and a bucket of a real S3-compatible server process."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.log_crashes import KEY, ORIGIN, new_index, request
from trainwarden.errors import LogFenced, LogLocked, RequestRefused, UsageError
from trainwarden.log.protocol import Appended
from trainwarden.log.server.index import RunIndex
from trainwarden.log.server.metrics import Metrics
from trainwarden.log.server.sequencer import Sequencer
from trainwarden.log.server.stores import BucketTiles, FolderTiles, TileStore, open_store
from trainwarden.log.server.tilelog import TileLog

_S3 = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app = DomainDispatcherApplication(create_backend_app)
make_server("127.0.0.1", 0, app, threaded=True, fd=int(sys.argv[1])).serve_forever()
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of an S3-compatible server that runs as a process of its own, with one bucket."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", _S3, str(sock.fileno())],
            pass_fds=[sock.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        for _ in range(600):
            try:
                make = urllib.request.Request(url + "/tiles", method="PUT", headers={"Authorization": _AUTHORIZATION})
                urllib.request.urlopen(make, timeout=20).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, "the S3 server did not start"
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@pytest.fixture(params=["folder", "bucket"])
def again(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], TileStore]:
    """Opens the same place each time."""
    if request.param == "folder":
        return lambda: open_store(str(tmp_path / "tiles"))
    url = request.getfixturevalue("s3")
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    return lambda: open_store(f"s3://tiles/{tmp_path.name}", url)


def test_bytes_are_read_back_by_another_who_opens_the_place(again: Callable[[], TileStore]) -> None:
    store = again()
    assert store.read("tile/0/000") is None
    assert store.names("tile/0") == []
    for name, data in (("tile/0/000.p/1", b"x"), ("tile/0/000", b"y" * 9000), ("head", b"h"), ("tile/0/001", b"")):
        store.put(name, data)
    store.put("head", b"i")
    store.close()
    store = again()
    assert [store.read(n) for n in ("head", "tile/0/000", "tile/0/000.p/1", "tile/0/001")] == [
        b"i",
        b"y" * 9000,
        b"x",
        b"",
    ]
    assert store.names("tile/0") == ["tile/0/000", "tile/0/001"]
    assert store.names("tile/0/000.p") == ["tile/0/000.p/1"]
    store.remove(["tile/0/000.p/1", "tile/0/never"])
    assert store.names("tile/0/000.p") == []
    store.close()


def test_of_two_swaps_of_one_version_one_is_fenced(again: Callable[[], TileStore]) -> None:
    store = again()
    first = store.swap("head", b"one", "")
    with pytest.raises(LogFenced, match="head"):
        store.swap("head", b"other", "")
    second = store.swap("head", b"two", first)
    with pytest.raises(LogFenced) as e:
        store.swap("head", b"three", first)
    assert e.value.hint
    found = store.current("head")
    assert found is not None
    assert (found.data, found.version) == (b"two", second)
    with pytest.raises(LogFenced):
        store.swap("never", b"x", second)
    store.close()


def test_a_log_goes_on_after_reopening(again: Callable[[], TileStore]) -> None:
    index = new_index()
    for first in (0, 250, 500):
        log = TileLog.open(again(), ORIGIN, KEY)
        sequencer = Sequencer(log, index, Metrics())
        answer = sequencer.submit(request("a", "r", first, 250), 1)
        sequencer.step()
        assert answer.result(timeout=0).indexes == tuple(range(first, first + 250))
        log.close()
    log = TileLog.open(again(), ORIGIN, KEY)
    rebuilt = new_index()
    assert rebuilt.catch_up(log) == 750
    assert rebuilt.runs() == index.runs()
    assert rebuilt.position() == index.position()
    log.close()


def test_two_servers_on_one_bucket_cannot_both_go_on(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    where = f"s3://tiles/{tmp_path.name}"
    logs = [TileLog.open(open_store(where, s3), ORIGIN, KEY) for _ in range(2)]
    sequencers = [Sequencer(log, new_index(), Metrics()) for log in logs]
    results: list[object] = []
    for sequencer, name in zip(sequencers, "ab", strict=True):
        answer = sequencer.submit(request(name, "r", 0, 1), 1)
        sequencer.step()
        results.append(answer.exception(timeout=0) or answer.result(timeout=0))
    assert isinstance(results[0], Appended)
    assert isinstance(results[1], RequestRefused)
    assert "another writer" in str(results[1])
    for log in logs:
        log.close()
    log = TileLog.open(open_store(where, s3), ORIGIN, KEY)
    assert log.head.note == results[0].head
    log.close()


def test_two_servers_on_one_folder_are_told_apart_at_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(LogLocked, match=str(os.getpid())) as e:
        open_store(str(tmp_path))
    assert e.value.hint
    store.close()
    open_store(str(tmp_path)).close()


@pytest.mark.parametrize("url", ["s3://", "s3:///x"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="names no bucket"):
        BucketTiles.open(url)


def test_an_object_store_that_is_away_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        gone = f"http://127.0.0.1:{sock.getsockname()[1]}"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    from datetime import timedelta

    from obstore.store import S3Store

    store = BucketTiles(
        S3Store(
            "tiles",
            endpoint=gone,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )
    )
    for call in (lambda: store.read("x"), lambda: store.put("x", b""), lambda: store.swap("x", b"", "")):
        with pytest.raises(OSError) as e:
            call()
        assert e.value.errno == errno.EREMOTEIO


def test_a_folder_on_a_full_disk_refuses_and_works_again(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        store = FolderTiles(tmp_path / "tiles")
        log, index = TileLog.open(store, ORIGIN, KEY), new_index()
        sequencer = Sequencer(log, index, Metrics())
        acked = 0
        (tmp_path / "ballast").write_bytes(bytes(100_000))
        for first in range(0, 400, 10):
            answer = sequencer.submit(request("a", "r", first, 10), 1)
            sequencer.step()
            if (error := answer.exception(timeout=0)) is not None:
                assert "No space" in str(error)
                break
            acked = first + 10
        assert 0 < acked < 400
        (tmp_path / "ballast").unlink()
        answer = sequencer.submit(request("a", "r", acked, 10), 1)
        sequencer.step()
        assert answer.result(timeout=0).indexes == tuple(range(acked, acked + 10))
        assert sum(1 for _ in log.entries(0, log.head.size)) == acked + 10
        log.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_index_of_another_log_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'i.sqlite'}"
    RunIndex.open(url, "one").close()
    with pytest.raises(Exception, match="'one', expected 'two'"):
        RunIndex.open(url, "two")
