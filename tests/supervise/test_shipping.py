"""`trainwarden run` with a log server: the log is shipped while the run goes on, and the run never waits for it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from supervised import Place, until

sys.path.insert(0, str(Path(__file__).parents[1] / "log"))
from http_log_server import serving
from log_server import ORIGIN, SERVER_KEY, LogServer
from test_shipper import arrived

from trainwarden.keys import SigningKey
from trainwarden.log.client.state import read_receipts, targets
from trainwarden.log.merkle import leaf_hash
from trainwarden.model import Finding, RunEnded, canonical
from trainwarden.store import RunDir

STEPS = ("start", "join:0/1", "steps:5", "until_acked")


def configure(job: Path, url: str, **more: object) -> None:
    values = {"server": url, "origin": ORIGIN, "server_key": SERVER_KEY.public, "host": "node1", **more}
    lines = [f"{k} = {v!r}".replace("'", '"') for k, v in values.items()]
    (job / "trainwarden.toml").write_text("[log]\n" + "\n".join(lines) + "\n")


def admitted(place: Place) -> LogServer:
    server = LogServer()
    server.hosts["node1"] = SigningKey.load_or_create(place.key).public
    return server


def test_every_entry_of_a_run_is_on_the_server_when_it_ends(place: Place, job: Path) -> None:
    server = admitted(place)
    with serving(server) as url:
        configure(job, url)
        ended = place.run(job, str(place.python), "fake_rank.py", *STEPS, options=("--json",))
    assert ended.code == 0
    assert arrived(server, ended.run_id) == [(i, leaf_hash(canonical(e))) for i, e in enumerate(ended.entries)]
    assert any(isinstance(e, RunEnded) for e in ended.entries)
    assert f"all {len(ended.entries)} entries are on the log server" in ended.err
    assert ended.json()["shipped"] == {"type": "shipped", "entries": len(ended.entries), "of": len(ended.entries)}


def test_a_server_that_is_away_stops_nothing_and_the_command_that_ships_later_is_named(place: Place, job: Path) -> None:
    with serving(admitted(place)) as url:
        pass
    configure(job, url, drain_seconds=0.0)
    ended = place.run(job, str(place.python), "fake_rank.py", *STEPS)
    assert ended.code == 0
    assert "The log is not being sent" in ended.err
    assert f"trainwarden log ship {ended.run_id}" in ended.err
    folder = RunDir(ended.run_id, place.store / "runs" / ended.run_id)
    (target,) = targets(folder.shipping)
    assert read_receipts(folder.shipping, target) == []


def test_the_shipper_killed_during_the_run_is_a_finding(place: Place, job: Path) -> None:
    server = admitted(place)
    with serving(server) as url:
        configure(job, url)
        (job / "wait.py").write_text("import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)\n")
        process = place.start(job, str(place.python), "wait.py")
        until(lambda: server.requests > 0, "the first request")
        (shipper,) = [
            int(pid.name)
            for pid in Path("/proc").iterdir()
            if pid.name.isdigit() and str(process.pid) == parent(pid) and b"--follow" in command(pid)
        ]
        os.kill(shipper, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{shipper}").exists(), "the shipper's end")
        (job / "go").touch()
        ended = place.ended(process)
    assert ended.code == 0
    found = [e for e in ended.entries if isinstance(e, Finding) and e.detector == "shipping"]
    assert [f"signal {signal.SIGKILL}" in f.seen for f in found] == [True]


def test_settings_that_cannot_be_used_stop_the_run_before_its_start(place: Place, job: Path) -> None:
    configure(job, "http://127.0.0.1:9", host_key="/nowhere/key")
    ended = place.run(job, str(place.python), "-c", "open('started', 'w')")
    assert ended.code == 3
    assert "cannot read the signing key" in ended.err
    assert not (job / "started").exists()


def parent(pid: Path) -> str:
    try:
        return (pid / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""


def command(pid: Path) -> bytes:
    try:
        return (pid / "cmdline").read_bytes()
    except OSError:
        return b""
