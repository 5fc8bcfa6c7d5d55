"""Serve a promoted chat model: OpenAI's chat completions, with streaming, and a page to try it.

    trainwarden run -- torchrun --nproc-per-node 2 workloads/chat/train.py --data data/chat --out out --steps 24 --alone
    trainwarden audit last
    trainwarden clear out/alone-000024 && trainwarden promote chat out/alone-000024
    python workloads/chat/serve.py --name chat

    POST /v1/chat/completions   messages, max_tokens, temperature, top_p, seed, stream
    GET  /v1/models             the name, and the digest that it is now

A reply is made from one version to its end, whatever happens to that version meanwhile; its digest is in the header
`x-trainwarden-digest` and in `system_fingerprint`. Only folders that stand alone can be served (export.py):
everything in them is verified.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import web
from chat import Message, Speaker
from model import Llama, Shape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer

from trainwarden import serving

LONGEST, MOST_MESSAGES, MOST_TEXT = 512, 64, 20_000
ROLES = ("system", "user", "assistant")


def build(files: serving.Files) -> Speaker:
    """A speaker out of the verified files of an exported checkpoint."""
    config = files.json("config.json")
    shape = Shape(
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        inner=config["intermediate_size"],
        theta=config["rope_theta"],
        eps=config["rms_norm_eps"],
    )
    weights = files.tensors("model.safetensors")
    with torch.device("meta"):
        model = Llama(shape)
    model.load_state_dict({name.removeprefix("model."): t.float() for name, t in weights.items()}, assign=True)
    tokenizer = Tokenizer.from_buffer(bytes(files.read("tokenizer.json")))
    return Speaker(model.eval(), tokenizer, files.json("state.json")["kind"])


def application(service: serving.Service[Speaker]) -> Starlette:
    """The chat server around an open name."""

    async def models(request: Request) -> Response:
        version = await run_in_threadpool(service.current)
        card = {
            "id": service.name,
            "object": "model",
            "created": 0,
            "owned_by": "trainwarden",
            "digest": version.digest,
        }
        return JSONResponse({"object": "list", "data": [card]}, headers={web.DIGEST: version.digest})

    async def completions(request: Request) -> Response:
        told = await web.json_of(request)
        question = Question(told, service.name)
        version = await run_in_threadpool(service.current)
        headers = {web.DIGEST: version.digest, "cache-control": "no-store"}
        if told.get("stream") is True:
            return StreamingResponse(question.events(version), media_type="text/event-stream", headers=headers)
        return JSONResponse(await run_in_threadpool(question.answer, version), headers=headers)

    routes = [Route("/v1/models", models), Route("/v1/chat/completions", completions, methods=["POST"])]
    return web.app(service, Path(__file__).with_name("page.html"), routes)


class Question:
    """One request for a completion, checked."""

    def __init__(self, told: dict[str, Any], name: str) -> None:
        if told.get("model", name) != name:
            raise web.BadRequest(f"this server has the model {name!r} only")
        self.messages = messages_of(told.get("messages"))
        self.temperature = web.number(told, "temperature", 0.7, 0, 2)
        self.top_p = web.number(told, "top_p", 0.9, 0, 1)
        self.longest = int(web.number(told, "max_tokens", 48, 1, LONGEST))
        self.draw = torch.Generator().manual_seed(int(web.number(told, "seed", secrets.randbits(48), 0, 2**63 - 1)))
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}

    def pieces(self, version: serving.Serving[Speaker]) -> Iterator[str]:
        return version.model.pieces(self.messages, self.temperature, self.top_p, self.longest, self.draw)

    def answer(self, version: serving.Serving[Speaker]) -> dict[str, Any]:
        """The whole reply as OpenAI has it."""
        said = "".join(self.pieces(version)).strip()
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return self.head | {
            "object": "chat.completion",
            "choices": [choice],
            "system_fingerprint": version.digest,
        }

    def events(self, version: serving.Serving[Speaker]) -> Iterator[str]:
        """The reply as server-sent events, one a piece."""
        head = self.head | {"object": "chat.completion.chunk", "system_fingerprint": version.digest}

        def event(delta: dict[str, str], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"

        yield event({"role": "assistant", "content": ""})
        for piece in self.pieces(version):
            yield event({"content": piece})
        yield event({}, "stop")
        yield "data: [DONE]\n\n"


def messages_of(told: object) -> list[Message]:
    """The messages of a request.

    Raises:
        BadRequest: they are not what OpenAI's interface has.
    """
    if not isinstance(told, list) or not 0 < len(told) <= MOST_MESSAGES:
        raise web.BadRequest(f"messages is a list of 1 to {MOST_MESSAGES} messages")
    messages = []
    for each in told:
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise web.BadRequest(f"a message has a role ({', '.join(ROLES)}) and a text as content")
        messages.append((role, content))
    if sum(len(text) for _, text in messages) > MOST_TEXT:
        raise web.BadRequest(f"the messages are longer than {MOST_TEXT:,} characters")
    return messages


if __name__ == "__main__":
    web.main("Serve a promoted chat model.", build, application)
