"""The HTTP face of a log server: signed appends in, static tiles out.

    POST /v1/logs/ORIGIN/append    see `log.protocol`
    GET  /checkpoint, /tile/…      C2SP tlog-tiles; a tile of the published log is immutable and cached as such
    GET  /entries?first=&last=     entries first … last − 1 as one bundle (at most 256), uint16 length · bytes each
    GET  /objects/DIGEST           an object that an entry binds
    GET  /v1/runs                  the run index
    GET  /healthz, /metrics        for whoever watches the server

Rules
-----
* An append is refused as early as it can be: the signature is checked from the header, before a byte of the body
  is read. A body is read up to the size that was signed, within a time, and within the memory for all of them.
* Every refusal is JSON {error, hint} and is counted by status.
* Reading needs no key: a log is there to be checked. Who must not read it must not reach the port.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeAlias, TypeVar

import msgspec
from blake3 import blake3
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from trainwarden.errors import LogTampered, RequestRefused, TrainWardenError, UsageError
from trainwarden.log import tiles
from trainwarden.log.protocol import (
    MAX_BODY,
    MEDIA_TYPE,
    SIGNATURE_HEADER,
    Append,
    Refusal,
    Signed,
    parse_signature,
    read_append,
    verify_append,
)
from trainwarden.log.server.hosts import HostsFile, check_run
from trainwarden.log.server.index import RunIndex
from trainwarden.log.server.metrics import CONTENT_TYPE, Metrics
from trainwarden.log.server.sequencer import Sequencer
from trainwarden.log.server.stores import TileStore
from trainwarden.log.server.tilelog import CHECKPOINT, TileLog, object_name, read_tile

BODY_SECONDS = 30.0  # for the whole body: 16 MiB at 0.5 MiB/s
COMMIT_SECONDS = 60.0
MAX_READING = 16 * MAX_BODY  # bytes of all bodies that are being read
MAX_EVIDENCE = 64  # requests kept whole for each host; further ones are only counted
_OFF_LOOP = 256 * 1024  # bodies above it are hashed in a thread
_IMMUTABLE = {"cache-control": "public, max-age=31536000, immutable"}
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)

P = ParamSpec("P")
T = TypeVar("T")
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Service(msgspec.Struct, frozen=True, eq=False):
    """The parts that the endpoints stand on."""

    origin: str
    store: TileStore
    log: TileLog
    index: RunIndex
    sequencer: Sequencer
    hosts: HostsFile
    metrics: Metrics
    body_seconds: float = BODY_SECONDS


def build_app(service: Service) -> Starlette:
    """The ASGI application."""
    appends, reads = _Appends(service), _Reads(service)
    routes = [
        Route("/v1/logs/{origin:path}/append", _told(service, appends.append), methods=["POST"]),
        Route("/checkpoint", _told(service, reads.checkpoint)),
        Route("/tile/{path:path}", _told(service, reads.tile)),
        Route("/entries", _told(service, reads.entries)),
        Route("/objects/{digest}", _told(service, reads.object)),
        Route("/v1/runs", _told(service, reads.runs)),
        Route("/healthz", _told(service, reads.health)),
        Route("/metrics", _told(service, reads.metrics)),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})


class _Appends:
    """The writing endpoint, with what it counts over all requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reading = 0
        self._evidence: dict[str, int] = {}

    async def append(self, request: Request) -> Response:
        try:
            response = await self._append(request)
        except RequestRefused as e:
            self._service.metrics.answers.labels(e.status).inc()
            raise
        self._service.metrics.answers.labels(200).inc()
        return response

    async def _append(self, request: Request) -> Response:
        service = self._service
        if request.path_params["origin"] != service.origin:
            raise RequestRefused(
                f"this is the log {service.origin!r}, not {request.path_params['origin'][:255]!r}", status=404
            )
        header = request.headers.get(SIGNATURE_HEADER, "")
        signed = parse_signature(header)
        try:
            host = service.hosts.current().admit(signed)
        except UsageError as e:
            raise RequestRefused(f"the server admits nobody now: {e}", hint=e.hint, status=503) from e
        verify_append(signed, service.origin, host.key)
        body = await self._body(request, signed)
        append = await _maybe_in_thread(len(body), read_append, body, signed)
        check_run(host, append.run)
        return await self._commit(append, header, body)

    async def _body(self, request: Request, signed: Signed) -> bytes:
        announced = request.headers.get("content-length", str(signed.size))
        if announced != str(signed.size):
            raise RequestRefused(f"a body of {announced[:20]} bytes is announced, {signed.size} are signed")
        if self._reading and self._reading + signed.size > MAX_READING:
            raise RequestRefused(f"bodies of {self._reading} bytes are being read", hint="send it later", status=429)
        self._reading += signed.size
        body = bytearray()
        try:
            async with asyncio.timeout(self._service.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > signed.size:
                        raise RequestRefused(f"the body is longer than the {signed.size} bytes that are signed")
        except TimeoutError:
            seconds = self._service.body_seconds
            raise RequestRefused(
                f"{len(body)} of {signed.size} bytes came in {seconds:g} s", hint="send smaller batches", status=408
            ) from None
        except ClientDisconnect:
            raise RequestRefused(f"the connection ended after {len(body)} of {signed.size} bytes") from None
        finally:
            self._reading -= signed.size
        return bytes(body)

    async def _commit(self, append: Append, header: str, body: bytes) -> Response:
        answer = asyncio.wrap_future(self._service.sequencer.submit(append, len(body)))
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                appended = await asyncio.shield(answer)
        except TimeoutError:
            raise RequestRefused(
                f"not committed within {COMMIT_SECONDS:g} s; it may still be", hint="send it again", status=503
            ) from None
        except RequestRefused as e:
            if e.logged:
                await self._keep(append.host, header, body)
            raise
        return Response(msgspec.msgpack.encode(appended), media_type=MEDIA_TYPE)

    async def _keep(self, host: str, header: str, body: bytes) -> None:
        """Keep a request that contradicts the log: its signature convicts whoever has the host's key."""
        self._service.metrics.refused.labels("conflict").inc()
        kept = self._evidence[host] = self._evidence.get(host, 0) + 1
        if kept <= MAX_EVIDENCE:
            evidence = header.encode() + b"\n" + body
            try:
                await run_in_threadpool(self._service.store.put, f"evidence/{blake3(evidence).hexdigest()}", evidence)
            except OSError:
                self._service.metrics.refused.labels("evidence not kept").inc()


class _Reads:
    """The reading endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def checkpoint(self, request: Request) -> Response:
        note = await run_in_threadpool(self._service.store.read, CHECKPOINT)
        return _bytes(note, {"cache-control": "no-cache"}, "text/plain; charset=utf-8", "the checkpoint")

    async def tile(self, request: Request) -> Response:
        path = f"tile/{request.path_params['path']}"
        try:
            tile = tiles.parse_tile_path(path)
        except UsageError as e:
            raise RequestRefused(str(e), hint=e.hint, status=404) from e
        self._check_within(tile)
        data = await run_in_threadpool(read_tile, self._service.store, tile)
        return _bytes(data, _IMMUTABLE, "application/octet-stream", path)

    def _check_within(self, tile: tiles.Tile) -> None:
        size = self._service.log.head.size
        below = tiles.HEIGHT * max(tile.level, 0)
        if (tile.index * tiles.HASH_TILE + tile.width) > size >> below:
            raise RequestRefused(f"the log has {size} entries and no tile {tile.path} yet", status=404)

    async def entries(self, request: Request) -> Response:
        first, last = (_number(request, name) for name in ("first", "last"))
        size = self._service.log.head.size
        if not 0 <= first < last <= size or last - first > tiles.HASH_TILE:
            raise RequestRefused(f"entries {first} to {last} are not 1 to {tiles.HASH_TILE} of the log's {size}")
        found = await run_in_threadpool(lambda: [data for _, data in self._service.log.entries(first, last)])
        return Response(tiles.entry_bundle(found), headers=_IMMUTABLE, media_type="application/octet-stream")

    async def object(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        if not _DIGEST.fullmatch(digest):
            raise RequestRefused(f"not a digest: {digest[:80]!r}", hint="64 hex digits", status=404)
        data = await run_in_threadpool(self._service.store.read, object_name(digest))
        if data is not None and (found := await _maybe_in_thread(len(data), _blake3, data)) != digest:
            raise LogTampered(f"the object {digest} has digest {found}")
        return _bytes(data, _IMMUTABLE, "application/octet-stream", f"object {digest}")

    async def runs(self, request: Request) -> Response:
        return Response(msgspec.json.encode(await run_in_threadpool(self._service.index.runs)), media_type=_JSON)

    async def health(self, request: Request) -> Response:
        failure = self._service.sequencer.failure
        told = {"origin": self._service.origin, "size": self._service.log.head.size, "failure": str(failure or "")}
        return Response(msgspec.json.encode(told), status_code=503 if failure else 200, media_type=_JSON)

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={"content-type": CONTENT_TYPE})


_JSON = "application/json"


def _told(service: Service, handler: Handler) -> Handler:
    """Errors of ours as JSON with their status."""

    async def handle(request: Request) -> Response:
        begin = time.perf_counter()
        try:
            response = await handler(request)
        except RequestRefused as e:
            service.metrics.refused.labels(f"{e.status}").inc()
            response = refusal(e)
        except (TrainWardenError, OSError) as e:
            service.metrics.refused.labels("500").inc()
            response = refusal(RequestRefused(str(e), hint=getattr(e, "hint", ""), status=500))
        if request.method == "POST":
            service.metrics.requests.observe(time.perf_counter() - begin)
        return response

    return handle


def refusal(e: RequestRefused) -> Response:
    """The answer that says why a request was not admitted; its connection ends, as its body may not have been read."""
    told = Refusal(error=str(e), hint=e.hint, expected=e.expected, logged=e.logged, given=e.given)
    headers = {"retry-after": "1"} if e.status in (429, 503) else {}
    if e.status not in (404, 409, 429, 503):
        headers["connection"] = "close"
    return Response(msgspec.json.encode(told), status_code=e.status, headers=headers, media_type=_JSON)


async def _http_error(request: Request, e: Exception) -> Response:
    status = e.status_code if isinstance(e, HTTPException) else 500
    return refusal(RequestRefused(f"{request.method} {request.url.path[:200]}: no such endpoint", status=status))


async def _maybe_in_thread(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Large bytes are worked on in a thread, so that the others need not wait."""
    if size < _OFF_LOOP:
        return function(*args, **kwargs)
    return await run_in_threadpool(function, *args, **kwargs)


def _blake3(data: bytes) -> str:
    return blake3(data).hexdigest()


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise RequestRefused(f"{name} is {text[:40]!r}, not a number", hint="/entries?first=0&last=256")
    return int(text)


def _bytes(data: bytes | None, headers: dict[str, str], kind: str, what: str) -> Response:
    if data is None:
        raise RequestRefused(f"{what} is not there", status=404)
    return Response(data, headers=headers, media_type=kind)
