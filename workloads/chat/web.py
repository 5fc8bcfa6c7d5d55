"""What the three servers share: a Starlette app around a served name, its page, its errors, and how it is started.

* Every answer of a model carries the digest of the version that it came from: header `x-trainwarden-digest`.
* /healthz says what is served, what is not and why. It is 503 when there is nothing to serve.
* The page asks nobody but this server: style and script are allowed by their hashes, and nothing else is.

workloads/video and workloads/ranking have links to this file; web.css and web.js lie beside it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import html
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from trainwarden import serving
from trainwarden.config import load_config
from trainwarden.errors import TrainWardenError

DIGEST = "x-trainwarden-digest"
MOST_BODY = 1 << 20
STYLE = (Path(__file__).resolve().parent / "web.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).resolve().parent / "web.js").read_text(encoding="utf-8")


class BadRequest(Exception):
    """The request is not one that can be answered; the message says why."""


def app(service: serving.Service[Any], page: Path, routes: Sequence[Route]) -> Starlette:
    """The application: `routes`, the page in the file `page` at /, and /healthz."""
    shown, policy = page_of(service.name, page)
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

    async def index(request: Request) -> Response:
        return HTMLResponse(shown, headers=headers)

    async def health(request: Request) -> Response:
        status = await run_in_threadpool(service.status)
        return JSONResponse(msgspec.to_builtins(status), 200 if status.digest else 503, {"cache-control": "no-store"})

    @contextlib.asynccontextmanager
    async def open_until_the_end(_: Starlette) -> AsyncIterator[None]:
        with service:
            yield

    return Starlette(
        routes=[Route("/", index), Route("/healthz", health), *routes],
        exception_handlers={BadRequest: _bad_request, TrainWardenError: _not_served},
        lifespan=open_until_the_end,
    )


def page_of(name: str, page: Path) -> tuple[str, str]:
    """The whole page for the fragment in `page`, which may end with a script, and the policy that allows just it."""
    body, _, own = page.read_text(encoding="utf-8").partition("<script>")
    script = SCRIPT + own.removesuffix("\n").removesuffix("</script>")
    title = re.findall(r"<h1>(.*?)</h1>", body)[0].replace("NAME", html.escape(name))
    shown = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{HEADER}"
        f"<main>\n{body.replace('NAME', html.escape(name))}{SERVED}</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )
    policy = (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(script)}; connect-src 'self'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return shown, policy


HEADER = """<header><svg width="18" height="20" viewBox="0 0 18 20" aria-hidden="true"><path d="M9 1 1.5 4v6c0 4.4 3 7.6
7.5 9 4.5-1.4 7.5-4.6 7.5-9V4z"/><path class="tick" d="m5.5 10 2.6 2.6 4.6-5"/></svg>TrainWarden</header>
"""
SERVED = """<section id="served" aria-live="polite">
<h2>What is served</h2>
<p class="state" id="state">asking…</p>
<dl>
<div><dt>Name</dt><dd id="served-name"></dd></div>
<div><dt>Version</dt><dd><code id="served-digest"></code></dd></div>
<div><dt>At hand</dt><dd id="served-standby"></dd></div>
<div><dt>Not served</dt><dd id="served-over"></dd></div>
<div><dt>Gate's log</dt><dd id="served-log"></dd></div>
</dl>
</section>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON object that the request carries.

    Raises:
        BadRequest: it is too long, or none.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise BadRequest(f"the request is longer than {MOST_BODY:,} bytes")
    try:
        told = json.loads(bytes(body))
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"the request is not JSON: {e}") from e
    if not isinstance(told, dict):
        raise BadRequest("the request is not a JSON object")
    return told


def number(told: dict[str, Any], key: str, otherwise: float, least: float, most: float) -> float:
    """The number under `key`, `otherwise` when there is none.

    Raises:
        BadRequest: it is no number from `least` to `most`.
    """
    value = told.get(key)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadRequest(f"{key} is a number from {least:g} to {most:g}")
    return value


async def _bad_request(_: Request, e: Exception) -> Response:
    return JSONResponse({"error": {"message": str(e), "type": "invalid_request_error"}}, 400)


async def _not_served(_: Request, e: Exception) -> Response:
    told = {"message": str(e), "hint": getattr(e, "hint", ""), "type": type(e).__name__}
    return JSONResponse({"error": told}, 503, {"retry-after": "5"})


def main(what: str, build: Callable[[serving.Files], Any], make: Callable[[serving.Service[Any]], Starlette]) -> None:
    """Read the command line, open the name, and serve it until told to stop."""
    options = argparse.ArgumentParser(description=what)
    options.add_argument("--name", required=True, help="the serving name, as `trainwarden promote` has it")
    options.add_argument("--store", type=Path, help="the store whose gate decides (default: the nearest .trainwarden)")
    options.add_argument("--config", type=Path, help="trainwarden.toml, for its [gate] and [serving]")
    options.add_argument("--bind", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    given = options.parse_args()
    torch.set_num_threads(1)
    try:
        config = load_config(given.config, Path.cwd())
        service = serving.open(given.name, build, store=given.store, config=config)
    except TrainWardenError as e:
        raise SystemExit(f"error: {e}\nhint: {e.hint}") from e
    with _listening(given.bind, given.port) as sock:
        url = f"http://{given.bind}:{sock.getsockname()[1]}"
        print(f"serving {given.name} as {service.current().digest}\nlistening on {url}", flush=True)
        how = uvicorn.Config(make(service), log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(how).run(sockets=[sock])


def _listening(bind: str, port: int) -> socket.socket:
    try:
        return socket.create_server((bind, port))
    except (OSError, OverflowError) as e:
        why = getattr(e, "strerror", None) or e
        raise SystemExit(f"error: cannot listen: {why}\nhint: --bind and --port say where; port 0 is a free one") from e
