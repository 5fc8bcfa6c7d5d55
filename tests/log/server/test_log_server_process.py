"""A real server process: killed, flooded, starved. What it acknowledged is there, and the log verifies."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from logserver import (
    HOSTS,
    LOG_KEY,
    ORIGIN,
    append_of,
    appended,
    check_kept,
    fetch_log,
    post,
    serving,
    write_hosts,
)

from trainwarden.log.protocol import SIGNATURE_HEADER, append_path, sign_append


def send_until_it_dies(url: str, name: str, acked: dict[tuple[str, int], int], enough: threading.Event) -> None:
    """Append in small requests, from what was acknowledged on, until the server is gone."""
    first = 1 + max((seq for n, seq in acked if n == name), default=-1)
    with httpx.Client(timeout=30) as client:
        while True:
            try:
                answer = appended(post(client, url, append_of(name, first, 3)))
            except httpx.TransportError:
                return
            acked.update({(name, first + i): index for i, index in enumerate(answer.indexes)})
            first += 3
            if first > 30:
                enough.set()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_server_that_is_killed_loses_nothing_that_it_acknowledged(seed: int, tmp_path: Path) -> None:
    acked: dict[tuple[str, int], int] = {}
    draw = random.Random(seed)
    for _ in range(2):
        enough = threading.Event()
        with serving(tmp_path) as server:
            threads = [threading.Thread(target=send_until_it_dies, args=(server.url, n, acked, enough)) for n in HOSTS]
            for t in threads:
                t.start()
            assert enough.wait(60)
            for _ in range(draw.randrange(200_000)):
                pass  # a moment that no two runs share
            server.kill()
            for t in threads:
                t.join()
    with serving(tmp_path) as server, httpx.Client(timeout=30) as client:
        check_kept(fetch_log(client, server.url), dict(acked))
        for name in HOSTS:
            count = sum(n == name for n, _ in acked)
            again = appended(post(client, server.url, append_of(name, 0, count)))
            assert again.indexes == tuple(acked[(name, seq)] for seq in range(count))
    assert len(acked) > 30


def test_a_server_that_is_told_to_stop_answers_what_waits(tmp_path: Path) -> None:
    with serving(tmp_path) as server, httpx.Client(timeout=30) as client:
        answer = appended(post(client, server.url, append_of("node-1", 0, 5)))
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    with serving(tmp_path) as server, httpx.Client(timeout=30) as client:
        assert client.get(server.url + "/checkpoint").text == answer.head


def test_a_connection_that_never_finishes_its_request_is_closed_and_others_are_served(tmp_path: Path) -> None:
    with serving(tmp_path, head_seconds=0.5, body_seconds=0.5) as server, httpx.Client(timeout=30) as client:
        address = server.url.removeprefix("http://").split(":")
        body, header = sign_append(append_of("node-1", 0, 1), ORIGIN, HOSTS["node-1"])
        head = f"POST {append_path(ORIGIN)} HTTP/1.1\r\nhost: x\r\n"
        signed = f"{head}{SIGNATURE_HEADER}: {header}\r\ncontent-length: {len(body)}\r\n\r\n"
        starts = (b"", head.encode(), signed.encode(), signed.encode() + body[:3])
        slow = [socket.create_connection((address[0], int(address[1])), timeout=60) for _ in starts]
        for connection, start in zip(slow, starts, strict=True):
            connection.sendall(start)
        appended(post(client, server.url, append_of("node-2", 0, 1)))
        answers = [read_all(connection) for connection in slow]
        assert answers[:2] == [b"", b""]
        assert all(b"408" in answer for answer in answers[2:])
        assert len(fetch_log(client, server.url)) == 1


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes; a reset counts as closing."""
    parts = []
    with connection:
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def test_nothing_that_is_not_http_stops_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, head_seconds=2.0) as server, httpx.Client(timeout=30) as client:
        host, port = server.url.removeprefix("http://").split(":")
        for sent in (
            b"\x00" * 1000,
            b"GET / HTTP/x.y\r\n\r\n",
            b"A" * 70_000,
            b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                try:
                    connection.sendall(sent)
                except ConnectionError:
                    continue
                assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")
        appended(post(client, server.url, append_of("node-1", 0, 1)))


async def open_many(url: str, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """That many connections at once, each with half a request head."""
    host, port = url.removeprefix("http://").split(":")
    made = []
    for start in range(0, count, 200):
        some = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(min(200, count - start))))
        for _, writer in some:
            writer.write(b"GET /checkpoint HTTP/1.1\r\nhost: x\r\n")
        made += some
    return made


async def finish(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
    """Complete every request; how many were answered with 200."""
    for _, writer in connections:
        writer.write(b"connection: close\r\n\r\n")
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))
    for _, writer in connections:
        writer.close()
    return sum(answer.startswith(b"HTTP/1.1 200") for answer in answers)


CONNECTIONS = 10_000


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have as many open files as it may; a connection is one here and one in the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 500:
        pytest.skip(f"a process may have {hard} open files here; to run this: ulimit -Hn {CONNECTIONS + 500}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_while_ten_thousand_connections_are_held_an_honest_append_goes_through(
    tmp_path: Path, many_files: None
) -> None:
    async def hold(url: str) -> int:
        connections = await open_many(url, CONNECTIONS)
        with httpx.Client(timeout=60) as client:
            answer = await asyncio.to_thread(post, client, url, append_of("node-1", 0, 2))
            assert appended(answer).indexes == (0, 1)
        return await finish(connections)

    with serving(tmp_path, head_seconds=300.0) as server:
        assert asyncio.run(hold(server.url)) == CONNECTIONS


def test_the_command_serves_and_says_where(tmp_path: Path) -> None:
    write_hosts(tmp_path / "hosts.toml")
    key = tmp_path / "key"
    key.write_text("21" * 32)
    key.chmod(0o600)
    command = [sys.executable, "-m", "trainwarden.cli", "log", "serve", "--origin", ORIGIN, "--port", "0", "--json"]
    told = ["--tiles", str(tmp_path / "t"), "--hosts", str(tmp_path / "hosts.toml"), "--key", str(key)]
    process = subprocess.Popen([*command, *told], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        import json

        listening = json.loads(process.stdout.readline())
        assert (listening["key"], listening["size"]) == (LOG_KEY.public, 0)
        with httpx.Client(timeout=30) as client:
            appended(post(client, listening["url"], append_of("node-1", 0, 1)))
        second = subprocess.run([*command, *told], capture_output=True, text=True)
        assert second.returncode == 3
        assert f"held by process {process.pid}" in second.stderr
        assert "hint:" in second.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--origin", "two words"], "cannot name a log"),
        (["--hosts", "/no/such/file"], "cannot read"),
        (["--port", "99999"], "cannot listen"),
        (["--tls-key", "x"], "go together"),
        (["--tls-key", "/no/such", "--tls-certificate", "/no/such"], "cannot use the certificate"),
        (["--tiles", "s3://bucket"], "run index"),
        (["--index", "nonsense"], "run index"),
    ],
)
def test_a_wrong_call_is_one_error_with_exit_code_3(arguments: list[str], words: str, tmp_path: Path) -> None:
    from trainwarden.cli import main

    write_hosts(tmp_path / "hosts.toml")
    (tmp_path / "key").write_text("21" * 32)
    (tmp_path / "key").chmod(0o600)
    base = {
        "--origin": ORIGIN,
        "--tiles": str(tmp_path / "t"),
        "--hosts": str(tmp_path / "hosts.toml"),
        "--key": str(tmp_path / "key"),
        "--port": "0",
    } | dict(zip(arguments[::2], arguments[1::2], strict=True))
    import contextlib
    import io

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert main(["log", "serve", *(word for pair in base.items() for word in pair)]) == 3
    assert words in errors.getvalue()
    assert errors.getvalue().count("error:") == errors.getvalue().count("hint:") == 1
