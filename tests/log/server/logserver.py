"""A log server for tests: as its own process, with a client that speaks its protocol."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec

from trainwarden.keys import SigningKey
from trainwarden.log import merkle, tiles
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.notes import verify_head
from trainwarden.log.protocol import SIGNATURE_HEADER, Append, Appended, Item, append_path, entry_bytes, sign_append

ORIGIN = "log.test/served"
LOG_KEY = SigningKey(b"\x21" * 32)
HOSTS = {name: SigningKey(bytes([n]) * 32) for n, name in enumerate(("node-1", "node-2", "node-3"), 1)}

_SERVE = """
import json, sys
from pathlib import Path
from trainwarden.keys import SigningKey
from trainwarden.log.server.serve import Settings, serve
import msgspec
settings = msgspec.json.decode(sys.argv[1], type=Settings, dec_hook=lambda kind, value: kind(value))
serve(settings, SigningKey(b"\\x21" * 32), lambda url, head: print(url, flush=True))
"""


def write_hosts(path: Path, extra: str = "") -> None:
    """`hosts.toml` with the three hosts."""
    text = "".join(f'[[host]]\nname = "{name}"\nkey = "{key.public}"\n' for name, key in HOSTS.items())
    path.write_text(text + extra, encoding="utf-8")


class Process:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def kill(self) -> None:
        """SIGKILL, as a crash does it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Process]:
    """A server process over `folder`; stopped at the end."""
    hosts = folder / "hosts.toml"
    if not hosts.exists():
        write_hosts(hosts)
    told = {"origin": ORIGIN, "store": str(folder / "tiles"), "hosts": str(hosts), "port": 0} | settings
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, json.dumps(told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http"), process.stderr.read()
        yield Process(process, url)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def items_of(name: str, first: int, count: int) -> tuple[Item, ...]:
    """Small items, every second with an object."""
    return tuple(
        Item(leaf=b'{"type":"step","n":"%s %d"}' % (name.encode(), n), object=b"object %d" % n if n % 2 else b"")
        for n in range(first, first + count)
    )


def append_of(name: str, first: int, count: int, run: str = "run-1") -> Append:
    """A request of that host."""
    return Append(host=name, run=run, first=first, items=items_of(name, first, count))


def post(client: httpx.Client, url: str, append: Append, key: SigningKey | None = None) -> httpx.Response:
    """Sign and send it; the raw answer."""
    body, header = sign_append(append, ORIGIN, key or HOSTS[append.host])
    return client.post(url + append_path(ORIGIN), content=body, headers={SIGNATURE_HEADER: header})


def appended(response: httpx.Response) -> Appended:
    """The good answer in a response."""
    assert response.status_code == 200, response.text
    return msgspec.msgpack.decode(response.content, type=Appended)


def fetch_log(client: httpx.Client, url: str) -> list[bytes]:
    """Every entry over HTTP, checked against the signed checkpoint."""
    head = verify_head(client.get(url + "/checkpoint").content, LOG_KEY.public)
    entries: list[bytes] = []
    for first in range(0, head.size, tiles.HASH_TILE):
        tile = tiles.tile_of(head.size, tiles.ENTRIES, first // tiles.HASH_TILE)
        response = client.get(f"{url}/{tile.path}")
        assert response.status_code == 200
        entries += tiles.read_bundle(response.content, tile.width)
    assert merkle.root([leaf_hash(e) for e in entries]).hex() == head.root
    return entries


def check_kept(entries: Sequence[bytes], acked: dict[tuple[str, int], int], run: str = "run-1") -> None:
    """Every acknowledged item of a host is at its index, and there once."""
    for (name, seq), index in acked.items():
        assert entries[index] == entry_bytes(name, run, seq, items_of(name, seq, 1)[0])
    assert len(set(entries)) == len(entries)
