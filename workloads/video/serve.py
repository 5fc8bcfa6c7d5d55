"""Serve a promoted text-to-video model: a prompt in, a GIF out, and a page to try it.

trainwarden clear out/video/step-002000 && trainwarden promote video out/video/step-002000
python workloads/video/serve.py --name video

POST /v1/clips   prompt, seed → image/gif; the header `x-trainwarden-digest` says of which version it is
GET  /v1/words   the words that the model knows, by role
"""

from __future__ import annotations

import io
import secrets
import threading
from pathlib import Path

import web
from checkpoint import AVERAGED
from flow import sample
from model import VideoDiT
from sample import write_gif
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from words import ROLES

from trainwarden import serving

LONGEST = 500  # characters of a prompt
AT_ONCE = threading.Semaphore(2)  # clips that are made; others wait, since they would only slow one another down


def build(files: serving.Files) -> VideoDiT:
    """The averaged model out of the verified files of a checkpoint."""
    model: VideoDiT = VideoDiT.from_config(files.json("config.json"))
    averaged = files.tensors("averaged.safetensors")
    model.load_state_dict({name.removeprefix(AVERAGED): tensor for name, tensor in averaged.items()})
    return model.eval()


def clip(version: serving.Serving[VideoDiT], prompt: str, seed: int) -> bytes:
    """The GIF that this version makes of the prompt."""
    made = io.BytesIO()
    with AT_ONCE:
        write_gif(sample(version.model, [prompt], seed)[0], made, larger=10)
    return made.getvalue()


def application(service: serving.Service[VideoDiT]) -> Starlette:
    """The video server around an open name."""

    async def clips(request: Request) -> Response:
        told = await web.json_of(request)
        prompt = told.get("prompt")
        if not isinstance(prompt, str) or not 0 < len(prompt.strip()) <= LONGEST:
            raise web.BadRequest(f"prompt is a text of 1 to {LONGEST} characters")
        seed = int(web.number(told, "seed", secrets.randbits(31), 0, 2**63 - 1))
        version = await run_in_threadpool(service.current)
        made = await run_in_threadpool(clip, version, prompt, seed)
        headers = {web.DIGEST: version.digest, "cache-control": "no-store"}
        return Response(made, media_type="image/gif", headers=headers)

    async def words(request: Request) -> Response:
        version = await run_in_threadpool(service.current)
        known = version.model.role_of
        by_role = [[word for word, role in known.items() if role == wanted] for wanted in range(ROLES)]
        told = dict(zip(("objects", "motions", "backgrounds"), by_role, strict=True))
        return JSONResponse(told, headers={web.DIGEST: version.digest})

    routes = [Route("/v1/clips", clips, methods=["POST"]), Route("/v1/words", words)]
    return web.app(service, Path(__file__).with_name("page.html"), routes)


if __name__ == "__main__":
    web.main("Serve a promoted text-to-video model.", build, application)
