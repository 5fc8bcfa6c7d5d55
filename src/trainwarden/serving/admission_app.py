"""The validating webhook as an ASGI application, and what runs it: POST /validate, GET /healthz.

Rules
-----
* It fails closed: a request that cannot be read, a log that does not verify or does not answer, a defect of ours, each
  is a pod that is not made. (And `failurePolicy: Fail` where it does not answer at all.)
* Each answer stands on logs that were looked at for it: what is unchanged by its stamp is not read again.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainwarden.config import Config
from trainwarden.errors import GateTampered, UsageError
from trainwarden.gate.ledger import check_name
from trainwarden.serving.admission import Served, review
from trainwarden.serving.catalogue import GateCatalogue
from trainwarden.serving.offers import Offer
from trainwarden.store import Store

MOST_BODY = 4 << 20  # the API server's own limit for an object is below it
_MOST_NAMES = 1000
_MOST_VERSIONS = 64  # of a name that a pod may ask for, the newest


class Lookup:
    """What may be served under any name of a store's gate, as its logs are now; safe from several threads."""

    def __init__(self, store: Store, config: Config) -> None:
        self._store, self._config, self._guard = store, config, threading.Lock()
        self._known: dict[str, tuple[GateCatalogue, Offer]] = {}

    def __call__(self, name: str) -> Served:
        """Digest → what is against it.

        Raises:
            TrainWardenError: it cannot be known.
        """
        check_name(name)
        with self._guard:
            catalogue, offer = self._known.get(name) or (self._catalogue(name), None)
            if offer is None or catalogue.stamp() != offer.stamp:
                self._known.pop(name, None)
                offer = catalogue.look()
            if offer.trouble:  # a server goes on with what it has; nothing new is begun
                raise GateTampered(offer.trouble, hint="make the gate's log readable again")
            if offer.versions and len(self._known) < _MOST_NAMES:
                self._known[name] = catalogue, offer
            return {version.digest: version.open for version in offer.versions}

    def _catalogue(self, name: str) -> GateCatalogue:
        return GateCatalogue(self._store, name, self._config, least=_MOST_VERSIONS)


def application(lookup: Callable[[str], Served], ignored: Collection[str] = ()) -> Starlette:
    """The webhook; volumes named in `ignored` are never models."""

    async def validate(request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BODY:
                return JSONResponse({"error": f"a review is at most {MOST_BODY:,} bytes"}, 413)
        try:
            asked = json.loads(bytes(body))
        except (ValueError, RecursionError) as e:
            return JSONResponse({"error": f"not JSON: {e}"}, 400)
        return JSONResponse(await run_in_threadpool(review, asked, lookup, ignored))

    async def health(request: Request) -> Response:
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route("/validate", validate, methods=["POST"]), Route("/healthz", health)])


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """Where the webhook listens, and with which certificate; without one it speaks plain HTTP."""

    bind: str = "127.0.0.1"
    port: int = 8443
    certificate: Path | None = None
    key: Path | None = None


def run(app: Starlette, where: Listening, listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `listening` is told the URL once it answers.

    Raises:
        UsageError: the address cannot be bound, or certificate and key cannot be used.
    """
    family = socket.AF_INET6 if ":" in where.bind else socket.AF_INET
    try:
        sock = socket.create_server((where.bind, where.port), family=family)
    except (OSError, OverflowError) as e:
        raise UsageError(
            f"cannot listen on {where.bind} port {where.port}: {e}", hint="choose another --bind or --port"
        ) from e
    with sock:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ssl_certfile=where.certificate,
            ssl_keyfile=where.key,
        )
        try:
            config.load()
        except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
            raise UsageError(
                f"cannot use the certificate {where.certificate} with the key {where.key}: {e}",
                hint="both are PEM files that this user can read; the key is the certificate's and has no password",
            ) from e
        scheme = "https" if where.certificate else "http"
        host = f"[{where.bind}]" if family == socket.AF_INET6 else where.bind
        listening(f"{scheme}://{host}:{sock.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[sock])
