"""The run index says the same in SQLite and in a real PostgreSQL, and can be made again from the log."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.log_crashes import GROUPS, Faults, Server, read_log, run_until, running
from trainwarden.errors import LogError, LogTampered, UsageError
from trainwarden.log.protocol import Append, Item
from trainwarden.log.server import index as index_module
from trainwarden.log.server.index import RunIndex, RunRow, logged

ORIGIN = "log.test/crash"


def _programs() -> Path | None:
    """Where PostgreSQL's programs lie."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb and shutil.which("postgres") else None


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of our own: a fresh cluster in a temporary folder, on a Unix socket only."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; to run this: apt-get install postgresql")
    user = pwd.getpwnam("postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name)
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="tw-pg-") as folder:
        if as_user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data = f"{folder}/data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-A", "trust", "-U", "tester", "--no-sync", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
            **as_user,
        )
        told = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, *told],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **as_user,
        )
        try:
            subprocess.run(
                [programs / "pg_isready", "-h", folder, "-U", "tester", "-t", "60"], capture_output=True, cwd=folder
            )
            _wait(programs, folder, process)
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            process.terminate()
            process.wait(60)


def _wait(programs: Path, folder: str, process: subprocess.Popen[bytes]) -> None:
    while subprocess.run(
        [programs / "pg_isready", "-h", folder, "-U", "tester"], capture_output=True, cwd=folder
    ).returncode:
        assert process.poll() is None, "PostgreSQL did not start"


@pytest.fixture(params=["sqlite", "postgres"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], RunIndex]]:
    """Opens the same database each time."""
    if request.param == "sqlite":
        yield lambda: RunIndex.open(f"sqlite:///{tmp_path / 'index.sqlite'}", ORIGIN)
        return
    url = request.getfixturevalue("postgres")
    yield lambda: RunIndex.open(url, ORIGIN)
    index = RunIndex.open(url, ORIGIN)
    with index._connection() as connection:
        index_module._tables.drop_all(connection)
    index.close()


def filled(files: dict[str, bytes], index: RunIndex) -> None:
    with running(files, index, Faults()) as server:
        run_until(server, {}, GROUPS)


def test_the_index_lists_runs_hosts_numbers_records_and_findings(again: Callable[[], RunIndex]) -> None:
    index = again()
    files: dict[str, bytes] = {}
    filled(files, index)
    leaves = (
        b'{"type":"finding"}',
        b'{"type":"records","count":1000}',
        b"\xff not json",
        b'{"type":"entry","entry":"{}"}',
    )
    nested = b'{"type":"entry","entry":"{\\"type\\":\\"finding\\"}"}'
    append = Append(host="c", run="r", first=0, items=tuple(Item(leaf=leaf) for leaf in (*leaves, nested)))
    with running(files, index, Faults()) as server:
        run_until(server, {}, [(append,)])
    assert index.runs() == [
        RunRow("a", "r", 6, 0, 260, 6, 0),
        RunRow("b", "r", 260, 3, 269, 260, 0),
        RunRow("c", "r", 5, 270, 274, 1000, 2),
        RunRow("a", "s", 4, 256, 259, 4, 0),
    ]
    assert index.next_number("b", "r") == 260
    assert index.next_number("nobody", "r") == 0
    entries = read_log(files)
    assert index.known("b", "r", 250, 252) == {
        seq: (i, logged(i, entries[i]).leaf_hash)
        for i, e in enumerate(entries)
        if (seq := logged(i, e).seq) in (250, 251) and logged(i, e).host == "b"
    }
    index.close()


def test_it_outlives_its_process_and_can_be_made_again_from_the_log(
    again: Callable[[], RunIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_BATCH", 100)
    files: dict[str, bytes] = {}
    index = again()
    filled(files, index)
    before = (index.position(), index.runs())
    index.close()
    index = again()
    assert (index.position(), index.runs()) == before
    index.rebuild()
    assert (index.position(), index.runs()) == ((0, ""), [])
    with running(files, index, Faults()) as server:
        assert index.catch_up(server.log) == before[0][0]
        assert index.catch_up(server.log) == 0
    assert (index.position(), index.runs()) == before
    index.close()


def test_a_transaction_that_fails_adds_nothing(again: Callable[[], RunIndex]) -> None:
    files: dict[str, bytes] = {}
    index = again()
    filled(files, index)
    before = (index.position(), index.runs())
    entries = read_log(files)
    rows = [logged(len(entries), entries[0].replace(b'"seq":0', b'"seq":9000')), logged(0, entries[0])]
    with running(files, index, Faults()) as server, pytest.raises(LogError, match="run index fails") as e:
        index.add(rows, server.log.head)
    assert e.value.hint
    assert (index.position(), index.runs()) == before
    index.close()


def test_a_log_that_was_put_back_is_an_alarm(again: Callable[[], RunIndex]) -> None:
    index = again()
    files: dict[str, bytes] = {}
    with running(files, index, Faults()) as server:
        run_until(server, {}, GROUPS[:1])
        earlier = dict(files)
        run_until(server, {}, GROUPS[1:])
    with running(earlier, index, Faults()) as server, pytest.raises(LogTampered):
        index.catch_up(server.log)
    index.close()


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite:///" + "/no/such/folder/x.sqlite", "mongodb://x"])
def test_a_url_that_is_no_database_is_an_error_with_a_hint(url: str) -> None:
    with pytest.raises((UsageError, LogError)) as e:
        RunIndex.open(url, ORIGIN)
    assert e.value.hint


def test_a_run_index_that_lacks_a_known_item_admits_nothing(again: Callable[[], RunIndex]) -> None:
    index = again()
    files: dict[str, bytes] = {}
    filled(files, index)
    with index._connection() as connection:
        connection.execute(index_module._items.delete().where(index_module._items.c.seq == 1))
    with running(files, index, Faults()) as server:
        (answer,) = send(server, msgspec.structs.replace(GROUPS[0][0]))
    assert "lacks item 1" in str(answer)
    index.close()


def send(server: Server, append: Append) -> list[object]:
    return list(server.send(append))
