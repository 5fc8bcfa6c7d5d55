"""A server under load while everything is tried against it: no request fails, and no uncleared version answers."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from workload import listening

from benchmarks.gate_serving import Load, uncleared
from tests.serving.assault import Attacker
from tests.serving.gated import NAME, Gated, safetensors, weight
from trainwarden import serving


def make(number: int, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.safetensors").write_bytes(safetensors(number, extra=2 << 20))


def application(service: serving.Service[float]) -> Starlette:
    async def scores(request: Request) -> Response:
        version = await run_in_threadpool(service.current)
        return JSONResponse({"scores": [version.model]}, headers={"x-trainwarden-digest": version.digest})

    return Starlette(routes=[Route("/v1/scores", scores, methods=["POST"])])


def test_no_request_fails_and_no_uncleared_version_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = Gated(tmp_path)
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    attacker = Attacker(gated, make, NAME)
    attacker.begin()
    with serving.open(NAME, weight, store=gated.store.path, config=gated.config) as service:
        with listening(application(service)) as url, Load(url, b"{}", connections=4) as load:
            attacker.attack(3.0)
            attacker.promote()
            until_answered_by(load, attacker.versions[-1].digest)
        assert len(load.answers) > 100
        assert [a for a in load.answers if a.status != 200] == []
        expected = {v.digest: (struct.unpack("<f", struct.pack("<f", v.number))[0],) for v in attacker.versions}
        assert uncleared(load.answers, attacker, expected) == []
        assert set(attacker.acts) >= {"poison", "exchange_while_read", "found", "incident", "put_back"}


def test_the_load_would_tell_of_an_uncleared_answer(tmp_path: Path) -> None:
    """Its own twin: a server that goes on with what was refused is found."""
    gated = Gated(tmp_path)
    attacker = Attacker(gated, make, NAME)
    attacker.begin()
    attacker.promote()
    digest = attacker.versions[1].digest
    with serving.open(NAME, weight, store=gated.store.path, config=gated.config) as service:
        stuck = service.current()
        assert stuck.digest == digest
        expected = {v.digest: (float(v.number),) for v in attacker.versions}
        with listening(application(Stuck(stuck))) as url:
            with Load(url, b"{}", connections=1) as load:
                attacker.refuse()
                more(load, 5)
            wrong = uncleared(load.answers, attacker, expected)
            assert {a.digest for a in wrong} == {digest}
            poisoned = serving.Serving(attacker.versions[0].digest, 666.0)
            with listening(application(Stuck(poisoned))) as other, Load(other, b"{}", connections=1) as load:
                more(load, 5)
            assert len(uncleared(load.answers, attacker, expected)) == len(load.answers)


def until_answered_by(load: Load, digest: str) -> None:
    """Wait until a newer version was taken up."""
    deadline = time.monotonic() + 60
    while load.answers[-1].digest != digest:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def more(load: Load, count: int) -> None:
    """Wait for so many more answers."""
    before = len(load.answers)
    while len(load.answers) < before + count:
        time.sleep(0.01)


class Stuck:
    """A service that always hands out the same."""

    def __init__(self, version: serving.Serving[float]) -> None:
        self.version = version

    def current(self) -> serving.Serving[float]:
        return self.version


@pytest.mark.parametrize(
    ("begun", "ended", "cleared"),
    [(0.0, 0.5, False), (0.5, 1.5, True), (1.5, 1.6, True), (1.5, 2.5, True), (2.1, 2.9, False), (2.1, 3.1, True)],
)
def test_what_was_cleared_when(tmp_path: Path, begun: float, ended: float, cleared: bool) -> None:
    attacker = Attacker(Gated(tmp_path), make, NAME)
    for moment, state in ((1.0, True), (2.0, False), (3.0, True)):
        attacker._note("d", moment, cleared=state)
    assert attacker.cleared_between("d", begun, ended) is cleared
    assert not attacker.cleared_between("never", begun, ended)
