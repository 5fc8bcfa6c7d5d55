"""Talks to a log server: requests in, answers of bounded size out, and the tiles of its log.

Rules
-----
* A request ends: connecting, every read and the whole of it have a time limit, and an answer has a limit in bytes.
  No redirect is followed and no proxy of the environment is used.
* Whatever goes wrong on the way is `LogUnreachable`; what a server answers is handed on as it is and judged by the
  caller.
* A tile of one width never changes and is kept; a partial tile that is gone is cut from the full one (tlog-tiles).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from trainwarden.errors import LogUnreachable, UsageError
from trainwarden.log.merkle import HASH_SIZE
from trainwarden.log.notes import MAX_NOTE
from trainwarden.log.protocol import MEDIA_TYPE, SIGNATURE_HEADER, append_url
from trainwarden.log.tiles import HASH_TILE, Tile

MAX_ANSWER = 1024 * 1024
MAX_RUNS = 64 * 1024 * 1024
_CONNECT_SECONDS, _READ_SECONDS, _WHOLE_SECONDS = 5.0, 20.0, 60.0
_KEPT_TILES = 256
_CHUNK = 64 * 1024


class Reply(msgspec.Struct, frozen=True):
    """A server's answer; header names are in lower case."""

    status: int
    body: bytes
    headers: dict[str, str] = {}


class Transport(Protocol):
    """Carries one request (`HttpTransport`, and the tests' simulator)."""

    def request(self, method: str, url: str, body: bytes, headers: Mapping[str, str], limit: int) -> Reply:
        """The answer, at most `limit` bytes of body.

        Raises:
            LogUnreachable: there is none, it is cut short, too late or too large.
        """
        ...


class HttpTransport:
    """HTTP and HTTPS by urllib3, one connection kept open."""

    def __init__(
        self, connect: float = _CONNECT_SECONDS, read: float = _READ_SECONDS, whole: float = _WHOLE_SECONDS
    ) -> None:
        import urllib3  # here, as below: a run without a log server need not wait for it

        self._errors = (urllib3.exceptions.HTTPError, OSError, ValueError)
        self._whole = whole
        self._pool = urllib3.PoolManager(maxsize=1, retries=False, timeout=urllib3.Timeout(connect=connect, read=read))

    def request(self, method: str, url: str, body: bytes, headers: Mapping[str, str], limit: int) -> Reply:
        """See `Transport`."""
        deadline = time.monotonic() + self._whole
        try:
            response = self._pool.request(
                method, url, body=body or None, headers=dict(headers), redirect=False, preload_content=False
            )
        except self._errors as e:
            raise _unreachable(url, e) from e
        whole = False
        try:
            parts: list[bytes] = []
            size = 0
            while part := response.read1(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise LogUnreachable(f"{url} answers with more than {limit} bytes", hint="is it a log server?")
                if time.monotonic() > deadline:
                    raise LogUnreachable(f"{url} takes more than {self._whole:g} s for an answer")
            announced = response.headers.get("content-length", "")
            if announced.isdigit() and int(announced) != size:
                raise LogUnreachable(f"{url} announces {announced} bytes and sends {size}")
            whole = True
            return Reply(response.status, b"".join(parts), {k.lower(): v for k, v in response.headers.items()})
        except self._errors as e:
            raise _unreachable(url, e) from e
        finally:
            if whole:
                response.release_conn()
            else:
                response.close()


class LogLink:
    """One log on one server."""

    def __init__(self, transport: Transport, url: str, origin: str) -> None:
        self._transport, self._url, self._origin = transport, url.rstrip("/"), origin
        self._tiles: dict[Tile, bytes] = {}

    def append(self, body: bytes, signature: str) -> Reply:
        """Post a signed request. Raises LogUnreachable."""
        headers = {SIGNATURE_HEADER: signature, "Content-Type": MEDIA_TYPE}
        return self._transport.request("POST", append_url(self._url, self._origin), body, headers, MAX_ANSWER)

    def checkpoint(self) -> bytes:
        """The newest published head, a signed note. Raises LogUnreachable."""
        return self._get("checkpoint", MAX_NOTE)

    def runs(self) -> bytes:
        """What the server says of the runs that it holds, as JSON. Raises LogUnreachable."""
        return self._get("v1/runs", MAX_RUNS)

    def _get(self, path: str, limit: int) -> bytes:
        reply = self._transport.request("GET", f"{self._url}/{path}", b"", {}, limit)
        if reply.status != 200:
            raise LogUnreachable(f"{self._url}/{path} answers with status {reply.status}")
        return reply.body

    def tile(self, tile: Tile) -> bytes:
        """The bytes of a hash tile, whatever they say. Raises LogUnreachable."""
        if (kept := self._tiles.get(tile)) is not None:
            return kept
        data = self._tile(tile)
        while len(self._tiles) >= _KEPT_TILES:
            del self._tiles[next(iter(self._tiles))]
        self._tiles[tile] = data
        return data

    def forget(self) -> None:
        """Drop the tiles that were kept: they led nowhere."""
        self._tiles.clear()

    def _tile(self, tile: Tile) -> bytes:
        limit = HASH_TILE * HASH_SIZE
        reply = self._transport.request("GET", f"{self._url}/{tile.path}", b"", {}, limit)
        if reply.status == 404 and tile.width < HASH_TILE:
            reply = self._transport.request("GET", f"{self._url}/{tile.full().path}", b"", {}, limit)
        if reply.status != 200:
            raise LogUnreachable(f"{self._url}/{tile.path} answers with status {reply.status}")
        return reply.body[: tile.width * HASH_SIZE]


def check_url(url: str) -> None:
    """Check that `url` can be a log server's address.

    Raises:
        UsageError: it has no scheme http or https, or no host, or more than a path.
    """
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        parsed = parse_url(url)
    except LocationParseError:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.auth:
        raise UsageError(f"{url[:200]!r} is no log server's address", hint="http://NAME:PORT or https://NAME")


def _unreachable(url: str, error: Exception) -> LogUnreachable:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return LogUnreachable(f"{url} cannot be reached: {reason[:300]}", hint="is the log server running there?")
