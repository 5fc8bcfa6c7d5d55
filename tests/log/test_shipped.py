"""`trainwarden log ship` and `trainwarden verify --log-server` over real HTTP, and what each fault of it becomes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import log_server as sim
import pytest
from http_log_server import serving
from log_server import HOST_KEY, ORIGIN, SERVER_KEY, FaultyServer, LogServer
from recorded_rows import KEY, make_run, step_records
from test_shipper import ENDED, FOUND, SEALED, check_all_there

from trainwarden.cli import main
from trainwarden.errors import LogUnreachable, UsageError
from trainwarden.log.client.link import HttpTransport, check_url
from trainwarden.log.client.state import targets
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.model import Entry, Finding, canonical, decode_entry
from trainwarden.store import RunDir, Store


class Here:
    """A store with one run, the keys, and a configuration that names the server."""

    def __init__(self, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp = tmp
        Store.open(tmp / "store", create=True).close()
        rows: list[Entry] = list(step_records(60))
        self.run = make_run(tmp / "store", [[SEALED], rows[:30], [FOUND, *rows[30:]], [ENDED]])
        for name, seed in (("key", bytes(range(32))), ("hostkey", b"h" * 32)):
            (tmp / name).write_text(seed.hex())
            (tmp / name).chmod(0o600)
        monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp / "key"))
        monkeypatch.chdir(tmp)

    def configure(self, url: str, **more: object) -> None:
        lines = [f'server = "{url}"', f'origin = "{ORIGIN}"', f'server_key = "{SERVER_KEY.public}"', 'host = "node1"']
        lines += [f'host_key = "{self.tmp / "hostkey"}"', *(f"{k} = {json.dumps(v)}" for k, v in more.items())]
        (self.tmp / "trainwarden.toml").write_text("[log]\n" + "\n".join(lines) + "\n")

    def ship(self, *options: str) -> int:
        return main(["log", "ship", self.run.id, "--store", str(self.tmp / "store"), *options])

    def verify(self, *options: str) -> int:
        return main(["verify", self.run.id, "--store", str(self.tmp / "store"), "--json", *options])

    def append(self, *entries: Entry) -> None:
        log = LogWriter.open(self.run.log, KEY)
        log.append([canonical(e) for e in entries])
        log.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(tmp_path, monkeypatch)


def checks_of(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {check["name"]: check["result"] for check in told["checks"] if check["name"].startswith("log server")}


def test_shipped_run_verifies_against_the_server_with_its_key_from_outside(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    server = LogServer()
    with serving(server) as url:
        here.configure(url)
        assert here.ship() == 0
        check_all_there(server, here.run)
        assert "63 of 63 entries" in capsys.readouterr().out
        here.verify("--log-server", "--log-key", SERVER_KEY.public)
        found = checks_of(capsys)
        assert {name: result["type"] for name, result in found.items()} == {
            "log server": "passed",
            "log server, sent": "passed",
        }
        here.verify("--log-server", "--log-key", HOST_KEY.public)
        assert checks_of(capsys)["log server"]["type"] == "failed"
    here.verify()
    assert checks_of(capsys)["log server"]["type"] == "not checked"


def test_what_was_not_sent_is_told_and_is_no_pass(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(LogServer()) as url:
        here.configure(url)
        here.ship()
        here.append(FOUND, FOUND)
        capsys.readouterr()
        assert here.verify("--log-server") in (1, 2)
        found = checks_of(capsys)
        assert found["log server"]["type"] == "passed"
        assert found["log server, sent"]["type"] == "not checked"
        assert "63 to 64" in found["log server, sent"]["reason"]
        assert here.ship() == 0  # where to is known from the run itself
        capsys.readouterr()
        here.verify("--log-server")
        assert checks_of(capsys)["log server, sent"]["type"] == "passed"


def test_a_server_that_is_away_leaves_it_undecided(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(LogServer()) as url:
        here.configure(url)
    assert here.ship("--seconds", "0", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["shipped"], told["entries"], told["exit_code"]) == (0, 63, 2)
    assert "cannot be reached" in told["trouble"]
    here.verify("--log-server")
    assert checks_of(capsys)["log server"]["type"] == "not checked"


def rewrite(run: RunDir, store: Path, old: bytes, new: bytes) -> None:
    """What the owner of the signing key can do: the same log with another past, properly signed."""
    with LogReader.open(run.log) as reader:
        entries = [data.replace(old, new) for _, data in reader.entries()]
    for file in run.log.iterdir():
        file.unlink()
    log = LogWriter.create(run.log, f"trainwarden/{run.id}", KEY)
    log.append(entries)
    log.close()


def test_log_rewritten_and_signed_again_after_it_was_sent(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(LogServer()) as url:
        here.configure(url)
        here.ship()
        capsys.readouterr()
        rewrite(here.run, here.tmp / "store", b'"step":1003,', b'"step":1002,')
        assert here.verify("--log-server") == 1
        result = checks_of(capsys)["log server"]
        assert result["type"] == "failed"
        assert "are not those that were sent" in result["reason"]


def test_log_cut_short_and_signed_again_after_it_was_sent(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(LogServer()) as url:
        here.configure(url)
        here.ship()
        with LogReader.open(here.run.log) as reader:
            entries = [data for _, data in reader.entries()][:20]
        for file in here.run.log.iterdir():
            file.unlink()
        log = LogWriter.create(here.run.log, f"trainwarden/{here.run.id}", KEY)
        log.append(entries)
        log.close()
        capsys.readouterr()
        here.verify("--log-server")
        assert checks_of(capsys)["log server"]["type"] == "failed"


def test_receipts_removed_to_hide_what_was_sent(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(LogServer()) as url:
        here.configure(url)
        here.ship()
        state = next(here.run.shipping.iterdir())
        (state / "receipts").write_bytes(b"")
        (state / "outbox").unlink()
        capsys.readouterr()
        here.verify("--log-server")
        result = checks_of(capsys)["log server"]
        assert result["type"] == "failed"
        assert "receipts for 0" in result["reason"]


def test_server_that_forgot_or_forked_fails_verification(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    server = FaultyServer()
    with serving(server) as url:
        here.configure(url)
        here.ship()
        capsys.readouterr()
        whole = server.server
        server.server = LogServer()
        for i in range(len(whole.entries) + 3):
            server.server.add(b"another history %d" % i)
        here.verify("--log-server")
        assert "begins with a tree" in checks_of(capsys)["log server"]["reason"]
        server.server = LogServer()
        here.verify("--log-server")
        assert "it signed one of size" in checks_of(capsys)["log server"]["reason"]


def test_split_view_is_a_finding_in_the_run_and_fails_verification_for_good(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultyServer()
    with serving(server) as url:
        here.configure(url)
        here.ship()
        honest = server.server
        server.server = LogServer()
        server.server.items = {k: list(v) for k, v in honest.items.items()}
        for i, entry in enumerate(honest.entries):
            server.server.add(entry if i else b"another beginning", honest.objects.get(i, b""))
        here.append(FOUND)
        assert here.ship("--seconds", "0") == 1
        assert "split-view" in capsys.readouterr().out
        with LogReader.open(here.run.log) as log:
            found = [e for _, data in log.entries() if isinstance(e := decode_entry(data), Finding)]
        assert [f.detector for f in found] == ["split-view"]
        server.server = honest
        here.verify("--log-server")
        assert "an alarm was kept" in checks_of(capsys)["log server"]["reason"]


@pytest.mark.parametrize(
    ("fault", "trouble"),
    [
        (sim.status(200, b"x" * 10, **{"content-length": "100"}), "cannot be reached"),
        (sim.status(200, b"x" * 2_000_000), "more than"),
        (sim.status(302, b"", location="http://127.0.0.1:9/"), "302"),
        (sim.status(500, b"<html>"), "without a reason"),
        (sim.status(403, b'{"error":"host node1 is not admitted","hint":"ask"}'), "node1 is not admitted"),
        (sim.status(200, b"garbage"), "cannot be read"),
        (sim.away, "cannot be reached"),
    ],
)
def test_what_http_can_do_wrong_is_one_clear_sentence(
    fault: sim.Fault, trouble: str, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultyServer()
    server.faults = [("append", fault)]
    with serving(server) as url:
        here.configure(url)
        assert here.ship("--seconds", "0", "--json") == 2
        assert trouble in json.loads(capsys.readouterr().out)["trouble"]
        assert here.ship() == 0
        check_all_there(server.server, here.run)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts and drips one byte of a header for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    stop.set()
    listener.close()
    thread.join()


def test_an_answer_that_drips_has_an_end(silent: str) -> None:
    with pytest.raises(LogUnreachable, match="takes more than"):
        HttpTransport(whole=0.3).request("GET", silent, b"", {}, 1 << 20)


@pytest.mark.parametrize("url", ["", "log.example", "ftp://x", "http://", "http://[::1", "http://u:p@x", "http://x?y"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError):
        check_url(url)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"server_key": "12"}, "not a public key"),
        ({"origin": ""}, "does not say origin"),
        ({"host": "no de"}, "cannot name a host"),
        ({"server": "nowhere"}, "no log server's address"),
        ({"batch_records": 0}, "batch_records = 0"),
        ({"spool_mib": -1}, "spool_mib = -1"),
        ({"host_key": "/nowhere/key"}, "cannot read the signing key"),
        ({"servers": 1}, "unknown field"),
    ],
)
def test_settings_that_cannot_be_used_are_one_error_with_a_hint(
    change: dict[str, object], told: str, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, object] = {
        "server": "http://127.0.0.1:9",
        "origin": ORIGIN,
        "server_key": SERVER_KEY.public,
        "host": "node1",
    }
    lines = [f"{k} = {json.dumps(v)}" for k, v in (values | change).items()]
    (here.tmp / "other.toml").write_text("[log]\n" + "\n".join(lines))
    assert here.ship("--config", str(here.tmp / "other.toml"), "--seconds", "0") == 3
    err = capsys.readouterr().err
    assert told in err
    assert err.count("error:") == 1
    assert "hint:" in err


def test_a_run_that_was_never_sent(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    assert here.ship() == 3
    assert "never sent" in capsys.readouterr().err
    here.verify("--log-server")
    assert checks_of(capsys)["log server"]["type"] == "not checked"


def test_shipper_killed_for_real_again_and_again_loses_and_doubles_nothing(here: Here) -> None:
    server = LogServer()
    with serving(server) as url:
        here.configure(url, batch_records=4)
        command = [sys.executable, "-m", "trainwarden.cli", "log", "ship", here.run.id, "--store"]
        command += [str(here.tmp / "store"), "--config", str(here.tmp / "trainwarden.toml")]
        for requests in (1, 4, 9):
            reached = server.requests + requests
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while server.requests < reached and process.poll() is None:
                threading.Event().wait(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert here.ship() == 0
    check_all_there(server, here.run)
    assert [t.origin for t in targets(here.run.shipping)] == [ORIGIN]
