"""A client that shares no code with ours, Go's own sumdb/note and sumdb/tlog, verifies our logs, and ours its logs."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from recorded_rows import KEY, make_run, step_records

sys.path.insert(0, str(Path(__file__).parent / "server"))
from logserver import LOG_KEY, ORIGIN, append_of, appended, fetch_log, post, serving

from trainwarden.errors import SignatureInvalid
from trainwarden.keys import SigningKey
from trainwarden.log.merkle import Tree, leaf_hash
from trainwarden.log.notes import parse_head
from trainwarden.log.publish import publish
from trainwarden.log.reader import LogReader
from trainwarden.log.tilelog import TileLog, from_folder
from trainwarden.log.tiles import tiles_for
from trainwarden.log.vkeys import VerifierKey

_PACKAGE = Path("/usr/share/gocode/src/golang.org/x/mod/sumdb/tlog")
_SOURCE = Path(__file__).parent / "independent" / "main.go"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled Go program."""
    go = shutil.which("go")
    if go is None or not _PACKAGE.is_dir():
        pytest.skip("needs Go's own log client: apt-get install golang-go golang-golang-x-mod-dev")
    made = tmp_path_factory.mktemp("go")
    environment = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(made / "cache")}
    program = made / "client"
    subprocess.run([go, "build", "-o", program, _SOURCE], check=True, env=os.environ | environment, cwd=made)
    return program


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True)


def check(program: Path, where: Path, key: VerifierKey, sizes: list[int], entries: list[bytes]) -> None:
    """The Go client finds these entries, and these sizes' roots, under the log's head."""
    done = run(program, "check", where, key.text, *sizes)
    assert done.returncode == 0, done.stderr
    tree = Tree(map(leaf_hash, entries))
    roots = [f"{n} {base64.b64encode(tree.root(n)).decode()}" for n in [len(entries), *sizes]]
    assert done.stdout.split("\n")[:-1] == roots + [hashlib.sha256(e).hexdigest() for e in entries]


def test_go_verifies_the_log_that_our_server_serves_and_its_growth(client: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server, httpx.Client(timeout=30) as http:
        heads = [parse_head(appended(post(http, server.url, append_of("node-1", 0, 3))).head.encode())]
        for first, count in ((3, 252), (255, 1), (256, 1), (257, 343)):
            heads.append(parse_head(appended(post(http, server.url, append_of("node-1", first, count))).head.encode()))
        entries = fetch_log(http, server.url)
        for name in ["checkpoint", *(tile.path for tile in tiles_for(0, len(entries)))]:
            path = tmp_path / "fetched" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(http.get(f"{server.url}/{name}").content)
        key = VerifierKey(ORIGIN, LOG_KEY.public)
        check(client, tmp_path / "fetched", key, [h.size for h in heads], entries)
        tree = Tree(map(leaf_hash, entries))
        assert [h.root for h in heads] == [tree.root(h.size).hex() for h in heads]


def test_go_verifies_a_run_that_was_published(client: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path, [list(step_records(300)), list(step_records(40, seed=1))])
    with LogReader.open(folder.log) as log:
        publish(log, tmp_path / "site")
        entries, origin = [data for _, data in log.entries()], log.head.origin
    check(client, tmp_path / "site", VerifierKey(origin, KEY.public), [1, 255, 256, 300, 340], entries)


def test_go_refuses_our_log_when_a_byte_of_it_was_changed(client: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path, [list(step_records(20))])
    with LogReader.open(folder.log) as log:
        publish(log, tmp_path / "site")
        key = VerifierKey(log.head.origin, KEY.public).text
    for name, at in (("tile/0/000.p/20", 40), ("tile/entries/000.p/20", 60), ("checkpoint", 40)):
        path = tmp_path / "site" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert run(client, "check", tmp_path / "site", key).returncode == 1
        path.write_bytes(whole)
    assert run(client, "check", tmp_path / "site", key).returncode == 0


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700])
def test_our_client_verifies_the_log_that_go_made(client: Path, tmp_path: Path, size: int) -> None:
    key = SigningKey(b"\x0b" * 32)
    name = "example.com/made-by-go"
    made = VerifierKey(name, key.public)
    secret = base64.b64encode(b"\x01" + b"\x0b" * 32).decode()
    done = run(client, "make", tmp_path, f"PRIVATE+KEY+{name}+{made.id.hex()}+{secret}", size)
    assert done.returncode == 0, done.stderr
    log = TileLog.open(from_folder(tmp_path), made)
    assert [e for _, e in log.entries()] == [b"record %d" % n for n in range(size)]
    forged = (tmp_path / "checkpoint").read_text().replace(f"\n{size}\n", f"\n{size + 1}\n")
    (tmp_path / "checkpoint").write_text(forged)
    with pytest.raises(SignatureInvalid, match="not the key's"):
        TileLog.open(from_folder(tmp_path), made)
