"""Witness and log over HTTP: a real server in its own process, the client that asks it, and hostile answers."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import loopback
import pytest

from trainwarden.cli import main
from trainwarden.errors import UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.ask import Behind, Contradicted, Cosigned, Unanswered, ask_witness, collect
from trainwarden.log.cosignature import cosign
from trainwarden.log.merkle import Tree, leaf_hash
from trainwarden.log.notes import sign_head, split_note
from trainwarden.log.vkeys import COSIGNATURE, VerifierKey, parse_vkey
from trainwarden.log.witness import MAX_BODY

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

KEY, OTHER = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
ORIGIN = "trainwarden/x"
TREE = Tree(leaf_hash(b"%d" % i) for i in range(20))
FORK = Tree(leaf_hash(b"x%d" % i) for i in range(20))


def head(size: int, tree: Tree = TREE) -> str:
    return sign_head(ORIGIN, size, tree.root(size), KEY).note


@contextmanager
def running(state: Path, *words: str) -> Iterator[tuple[str, VerifierKey, subprocess.Popen[str]]]:
    """A witness process on a port of its own."""
    command = [sys.executable, "-m", "trainwarden.cli", "log", "witness", "--name", "w/one", "--state", str(state)]
    process = subprocess.Popen(
        [*command, "--runs-of", KEY.public, "--port", "0", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield f"http://127.0.0.1:{told['port']}", parse_vkey(told["vkey"], COSIGNATURE), process
    finally:
        process.kill()
        process.communicate()


def test_a_log_and_its_witness_in_two_processes_through_a_kill(tmp_path: Path) -> None:
    with running(tmp_path) as (url, key, process):
        assert isinstance(ask_witness(url, key, 0, (), head(7)), Cosigned)
        assert ask_witness(url, key, 3, TREE.consistency_proof(3, 9), head(9)) == Behind(7)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with running(tmp_path) as (url, again, process):
        assert again == key, "the key outlives the process"
        assert isinstance(collect(url, key, head(9), lambda old: TREE.consistency_proof(old, 9)), Cosigned)
        rolled_back = collect(url, key, head(8), lambda old: TREE.consistency_proof(old, 8))
        assert isinstance(rolled_back, Contradicted)
        assert "at size 9, here it has 8" in rolled_back.reason
        split = collect(url, key, head(9, FORK), lambda old: FORK.consistency_proof(old, 9))
        assert isinstance(split, Contradicted)
        _raw(url)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert "SPLIT VIEW" in err
        assert TREE.root(9).hex() in err
        assert FORK.root(9).hex() in err


def _raw(url: str) -> None:
    """What curl would see."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def answer(method: str, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
        connection.request(method, path, body)
        got = connection.getresponse()
        return got.status, got.getheader("Content-Type", ""), got.read()

    assert answer("POST", "/add-checkpoint", b"old 3\n\n" + head(9).encode())[:2] == (409, "text/x.tlog.size")
    assert answer("POST", "/add-checkpoint", b"old 3\n\n" + head(9).encode())[2] == b"9\n"
    assert answer("POST", "/add-checkpoint", b"nonsense")[0] == 400
    unknown = sign_head("who/knows", 9, bytes(32), KEY).note.encode()
    assert answer("POST", "/add-checkpoint", b"old 0\n\n" + unknown)[0] == 404
    unsigned = sign_head(ORIGIN, 9, bytes(32), OTHER).note.encode()
    assert answer("POST", "/add-checkpoint", b"old 0\n\n" + unsigned)[0] == 403
    assert answer("GET", "/add-checkpoint")[0] == 405
    name = hashlib.sha256(ORIGIN.encode()).hexdigest()
    status, kind, note = answer("GET", f"/{name}/checkpoint")
    assert (status, kind) == (200, "text/plain; charset=utf-8")
    assert note.decode().startswith(head(9))
    assert answer("GET", f"/{'0' * 64}/checkpoint")[0] == 404
    assert answer("GET", "/..%2f..%2fkey/checkpoint")[0] == 404
    assert answer("POST", "/add-checkpoint", bytes(MAX_BODY + 1))[0] == 413


@contextmanager
def lying(code: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with loopback.serving(Handler) as url:
        yield f"{url}/"


WITNESS = VerifierKey("w/one", OTHER.public, COSIGNATURE)
TEXT = split_note(head(7).encode())[0]
GOOD = cosign(TEXT, "w/one", OTHER, 9)


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (200, GOOD.encode(), Cosigned),
        (200, cosign(TEXT, "w/two", KEY, 9).encode() + GOOD.encode(), Cosigned),
        (200, cosign(TEXT, "w/two", KEY, 9).encode(), Unanswered),
        (200, cosign("other\n1\nAA==\n", "w/one", OTHER, 9).encode(), Unanswered),
        (200, b"", Unanswered),
        (200, b"\xff" * 99, Unanswered),
        (200, GOOD.encode() * 4000, Unanswered),
        (302, b"", Unanswered),
        (409, b"3\n", Behind),
        (409, b"99\n", Behind),
        (409, b"-3\n", Unanswered),
        (409, b"many\n", Unanswered),
        (422, b"no\n", Contradicted),
        (403, b"no\n", Unanswered),
        (500, b"x" * 100_000, Unanswered),
    ],
)
def test_only_a_cosignature_that_verifies_counts(code: int, body: bytes, kind: type) -> None:
    with lying(code, body) as url:
        assert isinstance(ask_witness(url, WITNESS, 0, (), head(7)), kind)


def test_a_witness_that_names_another_size_every_time_is_given_up() -> None:
    with lying(409, b"3\n") as url:
        reply = collect(url, WITNESS, head(7), lambda old: TREE.consistency_proof(old, 7))
        assert isinstance(reply, Unanswered)
    assert isinstance(ask_witness(url, WITNESS, 0, (), head(7)), Unanswered), "and one that is away proves nothing"
    with pytest.raises(UsageError, match="not a web address"):
        ask_witness("file:///etc/passwd", WITNESS, 0, (), head(7))


def test_a_witness_that_knows_no_log_or_has_no_name_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["log", "witness", "--state", str(tmp_path), "--name"]
    for more, says in (
        (["w"], "needs to know a log"),
        (["a b", "--runs-of", KEY.public], "cannot name a witness"),
        (["w", "--runs-of", "xyz"], "not a public key"),
        (["w", "--log", "nonsense"], "not a verifier key"),
        (["w", "--runs-of", KEY.public, "--port", "99999"], "cannot listen"),
    ):
        assert main([*words, *more]) == 3
        err = capsys.readouterr().err
        assert says in err
        assert "hint:" in err
    assert set(os.listdir(tmp_path)) <= {"key", "lock"}
