"""The witness as an HTTP service (C2SP tlog-witness): `POST /add-checkpoint`, `GET /<origin hash>/checkpoint`.

Rules
-----
* A body over the limit is refused before it is read to its end; nothing else is done for it.
* What the witness cannot decide (its folder is full or was changed) is 500: it never cosigns to be helpful.
* A split view is told to the operator at once, loudly, and to nobody else: the client may be the liar.

Trust: no request is believed but for the log's signature in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from trainwarden.errors import LogTampered, TrainWardenError
from trainwarden.log.witness import MAX_BODY, SIZE_TYPE, Accepted, Refused, SplitView, parse_submission
from trainwarden.log.witness_state import Answer, Witness

Tell = Callable[[str], None]


def witness_app(witness: Witness, alarm: Tell) -> Starlette:
    """The service; `alarm` is called with every proof of misbehaviour and every failure of the witness itself."""

    async def add_checkpoint(request: Request) -> Response:
        body = await _limited(request)
        if body is None:
            return PlainTextResponse(f"a request has at most {MAX_BODY} bytes\n", 413)
        try:
            submission = parse_submission(body)
        except LogTampered as e:
            return PlainTextResponse(f"{e}\n", 400)
        try:
            answer = await run_in_threadpool(witness.submit, submission)
        except TrainWardenError as e:
            alarm(f"the witness cannot decide: {e}")
            return PlainTextResponse("the witness cannot decide\n", 500)
        return _response(answer, alarm)

    async def checkpoint(request: Request) -> Response:
        note = await run_in_threadpool(witness.checkpoint, request.path_params["origin_hash"])
        if note is None:
            return PlainTextResponse("never cosigned\n", 404)
        return Response(note, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "max-age=5"})

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin_hash}/checkpoint", checkpoint, methods=["GET"]),
        ]
    )


def _response(answer: Answer, alarm: Tell) -> Response:
    match answer.decision:
        case Accepted():
            return Response(answer.line.encode(), media_type="text/plain; charset=utf-8")
        case SplitView(kept, head, refused):
            alarm(
                f"SPLIT VIEW of the log {head.origin!r} at size {head.size}: root {kept.root} was cosigned, "
                f"root {head.root} is signed by the log as well; both heads are kept as evidence"
            )
            return _refusal(refused)
        case Refused() as refused:
            return _refusal(refused)
        case _ as unreachable:
            assert_never(unreachable)


def _refusal(refused: Refused) -> Response:
    if refused.code == 409:
        return Response(f"{refused.size}\n".encode(), 409, headers={"Content-Type": SIZE_TYPE})
    return PlainTextResponse(f"{refused.reason}\n", refused.code)


async def _limited(request: Request) -> bytes | None:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return None
    except ClientDisconnect:
        return None
    return bytes(body)
