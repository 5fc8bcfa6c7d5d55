"""A log server in memory behind the client's own seam, and every way in which one can fail or lie."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from trainwarden.errors import LogUnreachable, RequestRefused
from trainwarden.keys import SigningKey
from trainwarden.log.client.link import Reply
from trainwarden.log.merkle import Tree, leaf_hash
from trainwarden.log.notes import sign_head
from trainwarden.log.protocol import (
    SIGNATURE_HEADER,
    Appended,
    Item,
    Refusal,
    append_path,
    entry_bytes,
    parse_signature,
    read_append,
    verify_append,
)
from trainwarden.log.tiles import ENTRIES, entry_bundle, parse_tile_path, tiles_from_hashes
from trainwarden.model import TreeHead

ORIGIN = "log.example/main"
SERVER_KEY = SigningKey(b"s" * 32)
HOST_KEY = SigningKey(b"h" * 32)


class LogServer:
    """The real rules: signed requests, items numbered per host and run, idempotent, one tree."""

    def __init__(self) -> None:
        self.hosts = {"node1": HOST_KEY.public}
        self.entries: list[bytes] = []
        self.tree = Tree()
        self.items: dict[tuple[str, str], list[int]] = {}
        self.objects: dict[int, bytes] = {}
        self.requests = 0

    def head(self, size: int | None = None) -> TreeHead:
        size = self.tree.size if size is None else size
        return sign_head(ORIGIN, size, self.tree.root(size), SERVER_KEY)

    def append(self, body: bytes, header: str) -> Appended:
        signed = parse_signature(header)
        if signed.host not in self.hosts:
            raise RequestRefused(f"host {signed.host} is not admitted", status=403)
        verify_append(signed, ORIGIN, self.hosts[signed.host])
        asked = read_append(body, signed)
        known = self.items.setdefault((asked.host, asked.run), [])
        if asked.first > len(known):
            raise RequestRefused("a gap", status=409, expected=len(known))
        indexes = [self._item(asked.host, asked.run, asked.first + i, item) for i, item in enumerate(asked.items)]
        return Appended(indexes=tuple(indexes), head=self.head().note, acknowledged=len(known))

    def _item(self, host: str, run: str, seq: int, item: Item) -> int:
        known = self.items[host, run]
        entry = entry_bytes(host, run, seq, item)
        if seq < len(known):
            logged, given = leaf_hash(self.entries[known[seq]]).hex(), leaf_hash(entry).hex()
            if logged != given:
                raise RequestRefused(f"item {seq} is another", status=409, logged=logged, given=given)
            return known[seq]
        self.add(entry, item.object)
        known.append(len(self.entries) - 1)
        return known[-1]

    def add(self, entry: bytes, object: bytes = b"") -> None:
        self.entries.append(entry)
        self.tree.extend([leaf_hash(entry)])
        if object:
            self.objects[len(self.entries) - 1] = object

    def tile(self, path: str) -> bytes:
        tile = parse_tile_path(path)
        if tile.level == ENTRIES:
            return entry_bundle(self.entries[tile.index * 256 :][: tile.width])
        return tiles_from_hashes(self.tree.node, tile)

    def request(self, method: str, url: str, body: bytes, headers: Mapping[str, str], limit: int) -> Reply:
        self.requests += 1
        path = unquote(urlsplit(url).path)
        if path == append_path(ORIGIN) and method == "POST":
            try:
                return Reply(200, msgspec.msgpack.encode(self.append(body, headers.get(SIGNATURE_HEADER, ""))))
            except RequestRefused as e:
                told = Refusal(error=str(e), hint=e.hint, expected=e.expected, logged=e.logged, given=e.given)
                return Reply(e.status, msgspec.json.encode(told))
        if path == "/checkpoint":
            return Reply(200, self.head().note.encode())
        if path == "/v1/runs":
            rows = [{"host": host, "run": run, "items": len(known)} for (host, run), known in self.items.items()]
            return Reply(200, msgspec.json.encode(rows))
        if re.fullmatch(r"/tile/.*", path):
            try:
                return Reply(200, self.tile(path[1:]))
            except IndexError:
                return Reply(404, b"")
        return Reply(404, b"")

    def copy(self) -> LogServer:
        """The server as it was, restored from a backup."""
        other = LogServer()
        other.hosts = dict(self.hosts)
        for i, entry in enumerate(self.entries):
            other.add(entry, self.objects.get(i, b""))
        other.items = {where: list(known) for where, known in self.items.items()}
        return other


Fault = Callable[["FaultyServer", str, str, bytes, Mapping[str, str], int], Reply]


class FaultyServer:
    """A `LogServer` whose next answers are faulted, one fault a request of the kind that the fault is for."""

    def __init__(self, server: LogServer | None = None) -> None:
        self.server = server or LogServer()
        self.faults: list[tuple[str, Fault]] = []  # ("append" | "tile", what happens instead)
        self.last_append: Reply | None = None

    def request(self, method: str, url: str, body: bytes, headers: Mapping[str, str], limit: int) -> Reply:
        kind = "append" if method == "POST" else "tile"
        if self.faults and self.faults[0][0] == kind:
            _, fault = self.faults.pop(0)
            return fault(self, method, url, body, headers, limit)
        return self.honest(method, url, body, headers, limit)

    def honest(self, method: str, url: str, body: bytes, headers: Mapping[str, str], limit: int) -> Reply:
        reply = self.server.request(method, url, body, headers, limit)
        if method == "POST" and reply.status == 200:
            self.last_append = reply
        return reply


def changed(reply: Reply, **fields: object) -> Reply:
    """A good answer with other fields."""
    answer = msgspec.msgpack.decode(reply.body, type=Appended)
    return Reply(200, msgspec.msgpack.encode(msgspec.structs.replace(answer, **fields)))


def away(f: FaultyServer, *request: object) -> Reply:
    raise LogUnreachable("away")


def answer_lost(f: FaultyServer, *request: object) -> Reply:
    f.honest(*request)  # type: ignore[arg-type]
    raise LogUnreachable("timed out")


def status(code: int, body: bytes = b"oops", **headers: str) -> Fault:
    return lambda f, *request: Reply(code, body, headers)


def cut_short(f: FaultyServer, *request: object) -> Reply:
    reply = f.honest(*request)  # type: ignore[arg-type]
    return Reply(reply.status, reply.body[: len(reply.body) // 2])


def earlier_answer(f: FaultyServer, *request: object) -> Reply:
    """The answer to the request before, once more: duplicated or reordered on the way."""
    before = f.last_append
    reply = f.honest(*request)  # type: ignore[arg-type]
    return before if before is not None else reply


def for_another_host(f: FaultyServer, *request: object) -> Reply:
    """The indexes of somebody else's entries."""
    f.server.add(b"of another host")
    reply = f.honest(*request)  # type: ignore[arg-type]
    indexes = msgspec.msgpack.decode(reply.body, type=Appended).indexes
    return changed(reply, indexes=tuple(i - 1 for i in indexes))


def older_head(f: FaultyServer, *request: object) -> Reply:
    size = f.server.tree.size
    return changed(f.honest(*request), head=f.server.head(size // 2).note)  # type: ignore[arg-type]


def other_key(f: FaultyServer, *request: object) -> Reply:
    reply = f.honest(*request)  # type: ignore[arg-type]
    head = f.server.head()
    return changed(reply, head=sign_head(ORIGIN, head.size, bytes.fromhex(head.root), HOST_KEY).note)


def other_origin(f: FaultyServer, *request: object) -> Reply:
    reply = f.honest(*request)  # type: ignore[arg-type]
    head = f.server.head()
    return changed(reply, head=sign_head("log.other", head.size, bytes.fromhex(head.root), SERVER_KEY).note)


def bad_tile(f: FaultyServer, *request: object) -> Reply:
    reply = f.honest(*request)  # type: ignore[arg-type]
    return Reply(200, bytes(b ^ 1 for b in reply.body))


def fewer_items(f: FaultyServer, *request: object) -> Reply:
    reply = f.honest(*request)  # type: ignore[arg-type]
    return changed(reply, indexes=())


def garbage(f: FaultyServer, *request: object) -> Reply:
    return Reply(200, hashlib.sha256(b"x").digest() * 10)


FAULTS: dict[str, tuple[str, Fault]] = {
    "away": ("append", away),
    "answer lost": ("append", answer_lost),
    "429": ("append", status(429, **{"retry-after": "7"})),
    "500": ("append", status(500)),
    "503": ("append", status(503, b'{"error":"full"}')),
    "404": ("append", status(404)),
    "cut short": ("append", cut_short),
    "earlier answer": ("append", earlier_answer),
    "for another host": ("append", for_another_host),
    "older head": ("append", older_head),
    "other key": ("append", other_key),
    "other origin": ("append", other_origin),
    "fewer items": ("append", fewer_items),
    "garbage": ("append", garbage),
    "tiles away": ("tile", away),
    "tile 404": ("tile", status(404)),
    "tile 500": ("tile", status(500)),
    "tile cut short": ("tile", cut_short),
    "bad tile": ("tile", bad_tile),
}
