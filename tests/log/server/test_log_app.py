"""The HTTP face: who is admitted, what is refused with which words, what readers get."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from logserver import HOSTS, LOG_KEY, ORIGIN, append_of, appended, fetch_log, post, write_hosts
from starlette.types import ASGIApp

from trainwarden.errors import UsageError
from trainwarden.keys import SigningKey
from trainwarden.log import merkle, tiles
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.notes import verify_head
from trainwarden.log.protocol import (
    MAX_BODY,
    SIGNATURE_HEADER,
    Append,
    Refusal,
    append_path,
    entry_bytes,
    parse_signature,
    sign_append,
)
from trainwarden.log.server import app as app_module
from trainwarden.log.server.app import Service, build_app
from trainwarden.log.server.hosts import HostsFile, read_hosts
from trainwarden.log.server.serve import Settings, default_index, running

STRANGER = SigningKey(b"\x66" * 32)


class InProcess(httpx.BaseTransport):
    """httpx against an ASGI application, each request in a loop of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._transport = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def handle() -> tuple[int, httpx.Headers, bytes]:
            asking = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            response = await self._transport.handle_async_request(asking)
            return response.status_code, response.headers, await response.aread()

        status, headers, content = asyncio.run(handle())
        return httpx.Response(status, headers=headers, content=content, request=request)


class Here(NamedTuple):
    """A server in this process and a client of it."""

    client: httpx.Client
    service: Service
    hosts: Path

    def post(self, append: Append, key: SigningKey | None = None) -> httpx.Response:
        return post(self.client, "http://log", append, key)

    def get(self, path: str) -> httpx.Response:
        return self.client.get("http://log" + path)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    write_hosts(tmp_path / "hosts.toml")
    settings = Settings(origin=ORIGIN, store=str(tmp_path / "tiles"), hosts=tmp_path / "hosts.toml")
    with running(settings, LOG_KEY) as service:
        yield Here(httpx.Client(transport=InProcess(build_app(service))), service, tmp_path / "hosts.toml")


def told(response: httpx.Response, status: int) -> Refusal:
    assert response.status_code == status, response.text
    refusal = msgspec.json.decode(response.content, type=Refusal)
    assert refusal.error
    return refusal


def test_an_append_is_answered_with_indexes_under_a_signed_head_that_readers_can_check(here: Here) -> None:
    append = append_of("node-1", 0, 300)
    answer = appended(here.post(append))
    assert answer.indexes == tuple(range(300))
    head = verify_head(answer.head.encode(), LOG_KEY.public)
    assert (head.size, answer.acknowledged) == (300, 300)
    assert here.get("/checkpoint").text == answer.head

    def read(tile: tiles.Tile) -> bytes:
        return here.get("/" + tile.path).content

    proof = merkle.inclusion_proof(tiles.nodes(read, 300), 299, 300)
    entry = entry_bytes("node-1", "run-1", 299, append.items[299])
    merkle.verify_inclusion(leaf_hash(entry), 299, 300, proof, bytes.fromhex(head.root))
    digest = json.loads(entry.partition(b"\n")[0])["object"]
    assert here.get(f"/objects/{digest}").content == append.items[299].object


def test_tiles_are_immutable_to_caches_and_the_checkpoint_is_not(here: Here) -> None:
    appended(here.post(append_of("node-1", 0, 3)))
    assert "no-cache" in here.get("/checkpoint").headers["cache-control"]
    partial = here.get("/tile/0/000.p/3")
    assert "immutable" in partial.headers["cache-control"]
    appended(here.post(append_of("node-1", 3, 300)))
    assert here.get("/tile/0/000.p/3").content == partial.content, "cut from the full tile"
    assert tiles.read_bundle(here.get("/tile/entries/000.p/2").content, 2)
    bundle = here.get("/entries?first=254&last=258").content
    assert tiles.read_bundle(bundle, 4)[0] == entry_bytes("node-1", "run-1", 254, append_of("node-1", 254, 1).items[0])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tile/0/000", 404),
        ("/tile/0/000.p/4", 404),
        ("/tile/0/0.p/1", 404),
        ("/tile/%2e%2e/head", 404),
        ("/tile/1/000.p/1", 404),
        ("/entries?first=0&last=4", 400),
        ("/entries?first=2&last=2", 400),
        ("/entries?first=-1&last=2", 400),
        ("/entries", 400),
        ("/objects/" + "0" * 64, 404),
        ("/objects/..%2Fhead", 404),
        ("/head", 404),
        ("/nothing", 404),
    ],
)
def test_what_is_not_there_is_told_apart_from_what_was_asked_wrongly(here: Here, path: str, status: int) -> None:
    appended(here.post(append_of("node-1", 0, 3)))
    told(here.get(path), status)


def test_nobody_is_admitted_without_the_key_of_an_admitted_host(here: Here) -> None:
    append = append_of("node-1", 0, 1)
    body, header = sign_append(append, ORIGIN, HOSTS["node-1"])
    url = "http://log" + append_path(ORIGIN)
    told(here.client.post(url, content=body), 401)
    told(here.client.post(url, content=body, headers={SIGNATURE_HEADER: "nonsense"}), 401)
    told(here.post(append, STRANGER), 401)
    told(here.post(append, HOSTS["node-2"]), 401)
    told(here.post(msgspec.structs.replace(append, host="node-9"), STRANGER), 401)
    forged = header[:-4] + ("AA==" if not header.endswith("AA==") else "QQ==")
    told(here.client.post(url, content=body, headers={SIGNATURE_HEADER: forged}), 401)
    told(here.client.post(url, content=body[:-1] + b"!", headers={SIGNATURE_HEADER: header}), 400)
    told(here.client.post(url, content=body + b"!", headers={SIGNATURE_HEADER: header}), 400)
    assert here.service.log.head.size == 0


def test_an_append_for_another_log_is_refused(here: Here) -> None:
    append = append_of("node-1", 0, 1)
    body, header = sign_append(append, "log.test/other", HOSTS["node-1"])
    headers = {SIGNATURE_HEADER: header}
    assert (
        "log.test/other"
        in told(
            here.client.post("http://log" + append_path("log.test/other"), content=body, headers=headers), 404
        ).error
    )
    told(here.client.post("http://log" + append_path(ORIGIN), content=body, headers=headers), 401)
    assert here.service.log.head.size == 0


def test_an_oversized_body_is_refused_from_its_header_alone(here: Here) -> None:
    append = append_of("node-1", 0, 1)
    body, header = sign_append(append, ORIGIN, HOSTS["node-1"])
    size = parse_signature(header).size
    large = header.replace(f"size={size}", f"size={MAX_BODY + 1}")
    url = "http://log" + append_path(ORIGIN)

    def never() -> Iterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    told(here.client.post(url, content=body, headers={SIGNATURE_HEADER: large}), 413)
    lying = {SIGNATURE_HEADER: header, "content-length": str(MAX_BODY * 2)}
    told(here.client.post(url, content=body, headers=lying), 400)


def test_bodies_beyond_the_memory_for_them_are_put_off(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_READING", 10)
    appends = app_module._Appends(here.service)
    appends._reading = 5
    signed = parse_signature(sign_append(append_of("node-1", 0, 1), ORIGIN, HOSTS["node-1"])[1])
    with pytest.raises(app_module.RequestRefused) as e:
        asyncio.run(appends._body(Request_of({}), signed))
    assert e.value.status == 429
    assert app_module.refusal(e.value).headers["retry-after"]


def Request_of(headers: dict[str, str]) -> app_module.Request:
    return app_module.Request({"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})


def test_a_body_that_comes_too_slowly_is_given_up(here: Here) -> None:
    service = msgspec.structs.replace(here.service, body_seconds=0.01)
    signed = parse_signature(sign_append(append_of("node-1", 0, 1), ORIGIN, HOSTS["node-1"])[1])

    async def slow() -> None:
        async def receive() -> dict[str, object]:
            await asyncio.sleep(3600)
            return {}

        request = app_module.Request({"type": "http", "headers": []}, receive)  # type: ignore[arg-type]
        await app_module._Appends(service)._body(request, signed)

    with pytest.raises(app_module.RequestRefused) as e:
        asyncio.run(slow())
    assert e.value.status == 408


def test_a_replayed_request_changes_nothing_and_a_contradiction_is_kept_as_evidence(here: Here) -> None:
    append = append_of("node-1", 0, 2)
    first = appended(here.post(append))
    assert appended(here.post(append)) == first
    other = msgspec.structs.replace(append, items=append_of("node-2", 0, 2).items)
    refusal = told(here.post(other), 409)
    assert refusal.logged
    assert refusal.given
    (name,) = here.service.store.names("evidence")
    kept = here.service.store.read(name)
    assert kept is not None
    header, _, body = kept.partition(b"\n")
    assert (body, header.decode()) == sign_append(other, ORIGIN, HOSTS["node-1"])
    assert here.service.log.head.size == 2


def test_a_clock_that_jumps_changes_nothing_of_what_is_admitted(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(4)
    monkeypatch.setattr(time, "time", lambda: draw.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: draw.randrange(4 * 10**18))
    monkeypatch.setattr(time, "perf_counter", lambda: draw.uniform(-1e6, 1e6))
    for first in (0, 4, 8):
        asked = msgspec.structs.replace(append_of("node-1", first, 4), sent_ns=draw.randrange(4 * 10**18))
        assert appended(here.post(asked)).indexes == tuple(range(first, first + 4))
    assert appended(here.post(append_of("node-1", 0, 12))).indexes == tuple(range(12))
    assert len(fetch_log(here.client, "http://log")) == 12


def test_a_gap_is_told_with_the_number_to_go_on_with(here: Here) -> None:
    assert told(here.post(append_of("node-1", 5, 1)), 409).expected == 0


def test_hosts_are_read_again_when_the_file_changes(here: Here) -> None:
    here.hosts.write_text("", encoding="utf-8")
    told(here.post(append_of("node-1", 0, 1)), 401)
    write_hosts(here.hosts, 'revoked = true\nruns = ["run-*"]\n')
    appended(here.post(append_of("node-1", 0, 1)))
    assert "revoked" in told(here.post(append_of("node-3", 0, 1)), 403).error
    write_hosts(here.hosts, 'runs = ["a*"]\n')
    assert "a*" in told(here.post(append_of("node-3", 0, 1)), 403).error
    here.hosts.write_text("nonsense", encoding="utf-8")
    assert "admits nobody" in told(here.post(append_of("node-1", 1, 1)), 503).error
    here.hosts.unlink()
    told(here.post(append_of("node-1", 1, 1)), 503)
    write_hosts(here.hosts)
    appended(here.post(append_of("node-1", 1, 1)))


@pytest.mark.parametrize(
    "text",
    [
        '[[host]]\nname = "a"\nkey = "00"\n',
        '[[host]]\nname = "a"\n',
        '[[host]]\nname = "a"\nkey = "' + "0" * 64 + '"\nrevokd = true\n',
        ('[[host]]\nname = "a"\nkey = "' + "0" * 64 + '"\n') * 2,
        '[[host]]\nname = "a"\nkey = "' + "0" * 64 + '"\n[[host]]\nname = "b"\nkey = "' + "0" * 64 + '"\n',
        "x =",
    ],
)
def test_a_list_of_hosts_that_is_wrong_admits_nobody(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as e:
        read_hosts(text)
    assert e.value.hint
    (tmp_path / "hosts.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        HostsFile(tmp_path / "hosts.toml").current()


def test_health_metrics_and_runs_tell_how_the_server_is(here: Here) -> None:
    appended(here.post(append_of("node-1", 0, 3)))
    told(here.post(append_of("node-1", 0, 1), STRANGER), 401)
    health = here.get("/healthz")
    assert (health.status_code, health.json()["size"], health.json()["failure"]) == (200, 3, "")
    text = here.get("/metrics").text
    assert "trainwarden_log_size 3.0" in text
    assert 'trainwarden_log_answers_total{status="200"} 1.0' in text
    assert 'trainwarden_log_refused_total{reason="401"} 1.0' in text
    (run,) = here.get("/v1/runs").json()
    assert (run["host"], run["run"], run["items"], run["records"]) == ("node-1", "run-1", 3, 3)


def test_a_failing_store_is_a_503_and_shows_in_health(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(here.service.store, "put", full)
        response = here.post(append_of("node-1", 0, 1))
        assert "No space" in told(response, 503).error
        assert response.headers["retry-after"]
        assert here.get("/healthz").status_code == 503
    appended(here.post(append_of("node-1", 0, 1)))
    assert here.get("/healthz").status_code == 200


def test_an_object_store_needs_its_index_named() -> None:
    with pytest.raises(UsageError, match="no place for the run index"):
        default_index("s3://bucket/x")


_PIECES = st.sampled_from(
    [
        "/",
        "tile",
        "entries",
        "objects",
        "v1",
        "logs",
        ORIGIN,
        "append",
        "000",
        ".p/",
        "x001",
        "..",
        "%2e",
        "%00",
        "?",
        "first=",
        "last=",
        "&",
        "-1",
        "9" * 25,
        "0" * 64,
        "\xe9",
        "//",
        "checkpoint",
        "metrics",
        "healthz",
        "runs",
        "\x7f",
        "+",
        "#",
    ]
)


@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS", "X"]),
    pieces=st.lists(_PIECES, max_size=9),
    header=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=80),
    body=st.binary(max_size=60),
)
@example(method="GET", pieces=["/", "entries", "?", "first=", "9" * 25, "&", "last=", "0"], header="", body=b"")
@example(method="GET", pieces=["/", "objects", "/", "%00"], header="", body=b"")
@example(method="GET", pieces=["/", "tile", "/", "0", "/", "x001", "/", "000"], header="", body=b"")
@example(method="POST", pieces=["/", "v1", "/", "logs", "/", ORIGIN, "/", "append"], header="host=a", body=b"x")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_answered_or_refused_with_a_reason_and_admits_nothing(
    here: Here, method: str, pieces: list[str], header: str, body: bytes
) -> None:
    try:
        url = httpx.URL("http://log/" + "".join(pieces).lstrip("/"))
    except httpx.InvalidURL:
        return
    named = {SIGNATURE_HEADER: header.strip().encode("latin-1")}
    response = here.client.request(method, url, headers=named, content=body)
    assert response.status_code < 500
    if response.status_code >= 400 and method != "HEAD":
        assert msgspec.json.decode(response.content, type=Refusal).error
    assert here.service.log.head.size == 0
