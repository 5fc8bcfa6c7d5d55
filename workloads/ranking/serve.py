"""Serve a promoted ranker: a batch of events in, how likely each is liked out, and a page to try it.

    trainwarden clear out/ranking/step-000477 && trainwarden promote ranking out/ranking/step-000477
    python workloads/ranking/serve.py --name ranking

    POST /v1/scores   events: a list of {fields: {name: number}, genres: [0 or 1, …], history: [[film, answer], …]}
                      → scores, one an event; the header `x-trainwarden-digest` says of which version they are
    GET  /v1/shape    the fields with how many values each has, genres, and how much of a history is looked at

A history is of all films rated before, the newest first: as many as the model looks at are read one by one, all are
counted. Its answers are 1 for not liked and 2 for liked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import web
from model import DISLIKED, ITEM, LIKED, Batch, Ranker, Shape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainwarden import serving

MOST_EVENTS = 4096
Served = tuple[Ranker, Shape]


def build(files: serving.Files) -> Served:
    """The ranker out of the verified files of a checkpoint, and its shape."""
    shape = Shape(**files.json("state.json")["shape"])
    model = Ranker(shape)
    model.load_state_dict(files.tensors("model.safetensors"))
    return model.eval(), shape


def batch_of(told: object, shape: Shape) -> Batch:
    """The events of a request.

    Raises:
        BadRequest: one of them is not an event of this shape.
    """
    if not isinstance(told, list) or not 0 < len(told) <= MOST_EVENTS:
        raise web.BadRequest(f"events is a list of 1 to {MOST_EVENTS:,} events")
    rows = [_event(place, event, shape) for place, event in enumerate(told)]
    fields, genres, films, answers, past = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Batch(fields, genres.float(), films, answers, past.float(), torch.zeros(len(rows)))


def _event(place: int, event: object, shape: Shape) -> tuple[list[int], ...]:
    sizes = dict(shape.fields)
    told = event if isinstance(event, dict) else {}
    fields, genres, history = told.get("fields"), told.get("genres"), told.get("history", [])
    if not isinstance(fields, dict) or fields.keys() != sizes.keys():
        raise web.BadRequest(f"event {place}: fields are {', '.join(sizes)}")
    values = [_whole(fields[name], size - 1, f"event {place}: {name}") for name, size in shape.fields]
    if not isinstance(genres, list) or len(genres) != shape.genres:
        raise web.BadRequest(f"event {place}: genres are {shape.genres} times 0 or 1")
    marks = [_whole(mark, 1, f"event {place}: a genre") for mark in genres]
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise web.BadRequest(f"event {place}: history is a list of pairs of film and answer")
    films = [_whole(film, sizes[ITEM] - 1, f"event {place}: a film of the history") for film, _ in history]
    answers = [_whole(answer, LIKED, f"event {place}: an answer", DISLIKED) for _, answer in history]
    past = [answers.count(DISLIKED), answers.count(LIKED)]
    films, answers = ((seen + [0] * shape.history)[: shape.history] for seen in (films, answers))
    return values, marks, films, answers, past


def _whole(value: Any, most: int, what: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise web.BadRequest(f"{what} is a whole number from {least} to {most}")
    return value


@torch.no_grad()
def scores(version: serving.Serving[Served], events: object) -> list[float]:
    """How likely each event is liked, 0 … 1, as this version has it."""
    model, shape = version.model
    return [round(chance, 6) for chance in torch.sigmoid(model.logits(batch_of(events, shape))).tolist()]


def application(service: serving.Service[Served]) -> Starlette:
    """The ranking server around an open name."""

    def answered(events: object) -> tuple[str, list[float]]:
        version = service.current()
        return version.digest, scores(version, events)

    async def score(request: Request) -> Response:
        told = await web.json_of(request)
        digest, found = await run_in_threadpool(answered, told.get("events"))
        return JSONResponse({"scores": found}, headers={web.DIGEST: digest, "cache-control": "no-store"})

    async def shape(request: Request) -> Response:
        version = await run_in_threadpool(service.current)
        return JSONResponse(version.model[1]._asdict(), headers={web.DIGEST: version.digest})

    routes = [Route("/v1/scores", score, methods=["POST"]), Route("/v1/shape", shape)]
    return web.app(service, Path(__file__).with_name("page.html"), routes)


if __name__ == "__main__":
    web.main("Serve a promoted ranker.", build, application)
