"""Serving under attack: does a request fail, does an uncleared version answer, and what does the gate cost?

    python -m benchmarks.gate_serving      writes the serving part of results/gate.json (about 90 s on two cores)

* Verification: a file of 512 MiB in the page cache, read and verified into private memory, against BLAKE3 (the fastest
  safe hash) over the same file, which it maps and neither copies nor keeps; both with all cores, in turn. The limit of
  any reader that keeps what it reads stands beside: the file read into the same kind of memory, in the same pieces,
  nothing hashed. Where the host of a virtual machine takes free memory back, touching it again can cost
  more than reading: before each of these two as much memory is taken, touched and freed, so that both find it there.
* Latency: the ranking server with the gate and the same server without, loaded in turn by the same connections.
* Attack: while the server is loaded, checkpoints are poisoned, truncated, exchanged while they are read, retagged and
  deleted, incidents are opened and closed, versions are refused and rolled back, and the gate's log is put back to an
  older state. A request fails if its answer is not 200. An answer is uncleared if its digest was not cleared at any
  time between the request's first byte and the answer's last, or if its scores are not those of that digest's bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from blake3 import blake3

from benchmarks.machine import ROOT, merge
from trainwarden.model import CheckpointFile
from trainwarden.serving.reading import PIECE, private, read_verified

if TYPE_CHECKING:
    from tests.serving.assault import Attacker
    from tests.serving.gated import Gated

MIB = 512
CONNECTIONS = 8
RANKING = ROOT / "workloads" / "ranking"
NAME = "ranking"
FIELDS, GENRES, HISTORY = [("user", 944), ("item", 1683), ("hour", 25), ("weekday", 8)], 19, 50


class Answer(NamedTuple):
    """One request as its client saw it; times in seconds of `time.monotonic`."""

    begun: float
    ended: float
    status: int
    digest: str
    scores: tuple[float, ...]


def main() -> None:
    """Measure all three and write them."""
    with tempfile.TemporaryDirectory(prefix="tw-gate-serving-") as name:
        folder = Path(name)
        summary, runs = verification(folder)
        more, details = serving_measured(folder)
    print(merge("gate", "serving", summary | more, [*runs, *details]))


# --------------------------------------------------------------------------- verification


def verification(folder: Path, mib: int = MIB, rounds: int = 7) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """GB/s of verified reading, and its share of BLAKE3 over the same file; medians of rounds in turn."""
    path, data = folder / "weights", np.random.default_rng(0).bytes(mib << 20)
    path.write_bytes(data)
    file = CheckpointFile(path=path.name, size=len(data), digest=blake3(data).hexdigest(), sha256="")
    once_each: dict[str, Callable[[], object]] = {
        "verified": lambda: read_verified(path, file),
        "plain_read": lambda: read_plainly(path),
        "blake3_file": lambda: blake3(max_threads=blake3.AUTO).update_mmap(path).digest(),
        "blake3_memory": lambda: blake3(data, max_threads=blake3.AUTO).digest(),
        "sha256_memory": lambda: hashlib.sha256(data).digest(),
    }
    if find_spec("model_signing"):  # extra `test`
        once_each["model_signing"] = signing_hash(path)
    taken: dict[str, list[float]] = {kind: [] for kind in once_each}
    for _ in range(rounds):
        for kind, once in once_each.items():
            if kind in _INTO_MEMORY:
                touch(len(data))
            began = time.perf_counter()
            once()
            taken[kind].append(time.perf_counter() - began)
    path.unlink()
    rates = {kind: len(data) / statistics.median(seconds) / 1e9 for kind, seconds in taken.items()}
    summary = {
        "verify_gb_s": round(rates["verified"], 2),
        "plain_read_gb_s": round(rates["plain_read"], 2),
        "verify_vs_plain_read": round(rates["verified"] / rates["plain_read"], 3),
        **(
            {"verify_vs_model_signing": round(rates["verified"] / rates["model_signing"], 2)}
            if "model_signing" in rates
            else {}
        ),
        "verify_vs_fastest_safe_hash": round(rates["verified"] / rates["blake3_file"], 3),
    }
    return summary, [{"mib": mib} | {f"{kind}_gb_s": round(rate, 2) for kind, rate in rates.items()} | summary]


_INTO_MEMORY = ("verified", "plain_read")


def touch(size: int) -> None:
    """Take so much memory, write to each page of it, and give it back."""
    np.frombuffer(private(size), np.uint8)[:: mmap.PAGESIZE] = 1


def read_plainly(path: Path) -> mmap.mmap:
    """The file in fresh memory of this process, in huge pages where there are any, read by one thread."""
    with path.open("rb", buffering=0) as file:
        memory = private(os.fstat(file.fileno()).st_size)
        view, at = memoryview(memory), 0
        while got := os.preadv(file.fileno(), [view[at : at + PIECE]], at):
            at += got
    return memory


def signing_hash(path: Path) -> Callable[[], object]:
    """What OpenSSF's model-signing does to verify a file before it looks at the signature."""
    from model_signing import hashing

    return lambda: hashing.Config().hash(path)


# --------------------------------------------------------------------------- the servers


def serving_measured(folder: Path, quiet: float = 12.0, attacked: float = 20.0) -> tuple[dict[str, Any], list[Any]]:
    """Load both servers in turn, then the one with the gate while everything is tried against it."""
    from tests.serving.assault import Attacker
    from tests.serving.gated import Gated

    gated = Gated(folder)
    os.environ["TRAINWARDEN_KEY"] = str(folder / "key")  # incidents without an actor are signed by it
    make = ranker_maker(gated)
    attacker = Attacker(gated, make, NAME)
    attacker.begin()
    base = attacker.versions[0]
    gated.write_config()
    with server("--store", gated.store.path) as url, server("--ungated", base.place) as bare:
        answers = in_turn({"gated": url, "ungated": bare}, quiet)
        with loaded(url) as load:
            attacker.attack(attacked)
    wrong = uncleared(load.answers, attacker, expected_scores(attacker))
    failed = [a for a in load.answers if a.status != 200]
    summary = {
        "requests": len(load.answers),
        "failed_requests": len(failed),
        "uncleared_answers": len(wrong),
        "versions_served": len({a.digest for a in load.answers}),
        "acts": sum(attacker.acts.values()),
        "p99_ms_gated": p99(answers["gated"]),
        "p99_ms_ungated": p99(answers["ungated"]),
        "p99_ms_attacked": p99(load.answers),
    }
    medians = {f"p50_ms_{kind}": milliseconds(found, 50) for kind, found in answers.items()}
    return summary, [summary | medians | {"acts": dict(attacker.acts), "quiet_requests": len(answers["gated"])}]


def ranker_maker(gated: Gated) -> Callable[[int, Path], None]:
    """Writes a ranker with weights of its own for each number."""
    import torch
    from safetensors.torch import save_file

    with ranking_modules() as code:
        shape = code["model"].Shape(FIELDS, GENRES, width=8, history=HISTORY, layers=1, inner=16, dropout=0.0)
        ranker = code["model"].Ranker

    def make(number: int, place: Path) -> None:
        torch.manual_seed(number)
        weights = {name: p.detach() for name, p in ranker(shape).named_parameters()}
        place.mkdir(parents=True, exist_ok=True)
        save_file(weights, place / "model.safetensors")
        (place / "state.json").write_text(json.dumps({"shape": shape._asdict(), "number": number}))

    return make


@contextlib.contextmanager
def ranking_modules() -> Iterator[Mapping[str, Any]]:
    """The workload's modules, imported as its scripts import them."""
    import importlib

    sys.path.insert(0, str(RANKING))
    try:
        yield {name: importlib.import_module(name) for name in ("model", "serve")}
    finally:
        sys.path.remove(str(RANKING))


EVENTS = [
    {"fields": {"user": 5 + i, "item": 7 * i + 1, "hour": 12, "weekday": 3}, "genres": [0, 1] * 9 + [0], "history": []}
    for i in range(8)
]


def expected_scores(attacker: Attacker) -> dict[str, tuple[float, ...]]:
    """What each version says to EVENTS, by its digest, made from files that nobody touched."""
    from trainwarden.model import CheckpointManifest
    from trainwarden.serving import Files, Serving, Version

    found = {}
    with ranking_modules() as code:
        for version in attacker.versions:
            pristine = attacker.pristine(version)
            files = Files(Version(digest="", manifest=CheckpointManifest(files=pristine[1]), place=str(pristine[0])))
            found[version.digest] = tuple(code["serve"].scores(Serving("", code["serve"].build(files)), EVENTS))
    return found


@contextlib.contextmanager
def server(*words: object) -> Iterator[str]:
    """A server in a process of its own; its URL."""
    command = [sys.executable, "-m", "benchmarks.gate_serving", "serve", *map(str, words)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit("error: the server did not start")
        yield url
    finally:
        process.terminate()
        process.wait()


class Ungated:
    """In place of a service: one version, read from where it lies."""

    name = NAME

    def __init__(self, place: Path, build: Callable[[Any], Any]) -> None:
        from trainwarden.gate.manifest import manifest_of
        from trainwarden.serving import Files, Serving, Version

        self._serving = Serving(
            "0" * 64, build(Files(Version(digest="", manifest=manifest_of(place), place=str(place))))
        )

    def current(self) -> Any:
        return self._serving

    def __enter__(self) -> Ungated:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def serve(given: argparse.Namespace) -> None:
    """Run the ranking server, with the gate of a store or without any."""
    import torch
    import uvicorn

    from trainwarden import serving
    from trainwarden.config import load_config

    torch.set_num_threads(1)
    with ranking_modules() as code:
        build, application = code["serve"].build, code["serve"].application
    if given.ungated:
        service: Any = Ungated(given.ungated, build)
    else:
        service = serving.open(NAME, build, store=given.store, config=load_config(None, given.store.parent))
    server = uvicorn.Server(uvicorn.Config(application(service), port=0, log_level="warning", access_log=False))

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
        await task

    asyncio.run(run())


# --------------------------------------------------------------------------- the load


class Load:
    """Connections that ask one question after the other; `answers` in the order in which they ended."""

    def __init__(self, url: str, body: bytes, path: str = "/v1/scores", connections: int = CONNECTIONS) -> None:
        self.answers: list[Answer] = []
        host, _, port = url.removeprefix("http://").partition(":")
        self._where, self._connections, self._stop = (host, int(port)), connections, threading.Event()
        head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self._request = f"{head}\r\n\r\n".encode() + body
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _all(self) -> None:
        await asyncio.gather(*(self._ask() for _ in range(self._connections)))

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection(*self._where)
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                writer.write(self._request)
                status, digest, body = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                self.answers.append(Answer(begun, time.monotonic(), 0, "", ()))
                reader, writer = await asyncio.open_connection(*self._where)
                continue
            ended = time.monotonic()
            scores = json.loads(body)["scores"] if status == 200 else ()
            self.answers.append(Answer(begun, ended, status, digest, tuple(scores)))
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
    body = await reader.readexactly(int(fields["content-length"]))
    return int(head[0].split()[1]), fields.get("x-trainwarden-digest", ""), body


def loaded(url: str) -> Load:
    """The ranking server under load."""
    return Load(url, json.dumps({"events": EVENTS}).encode())


def in_turn(urls: Mapping[str, str], seconds: float, slice_seconds: float = 1.0) -> dict[str, list[Answer]]:
    """Load each server for `seconds` altogether, in slices in turn, after one that does not count."""
    found: dict[str, list[Answer]] = {kind: [] for kind in urls}
    for turn in range(round(seconds / slice_seconds) + 1):
        for kind, url in urls.items():
            with loaded(url) as load:
                time.sleep(slice_seconds)
            found[kind] += load.answers if turn else []
    return found


def uncleared(answers: Sequence[Answer], attacker: Attacker, expected: Mapping[str, tuple[float, ...]]) -> list[Answer]:
    """Answers that no cleared version can have given."""
    return [
        a
        for a in answers
        if a.status == 200
        and (
            not attacker.cleared_between(a.digest, a.begun, a.ended)
            or any(abs(x - y) > 2e-5 for x, y in zip(a.scores, expected[a.digest], strict=True))
        )
    ]


ROWS = (
    ("verify_gb_s", "verified reading, GB/s"),
    ("verify_vs_plain_read", "against reading the same file into fresh memory without hashing, ×"),
    ("verify_vs_fastest_safe_hash", "against BLAKE3 over the same file, ×"),
    ("verify_vs_model_signing", "against model-signing's hashing of it, ×"),
    ("requests", "requests while everything was tried"),
    ("failed_requests", "failed requests"),
    ("uncleared_answers", "answers of uncleared versions"),
    ("versions_served", "versions that answered"),
    ("acts", "acts of the attacker"),
    ("p99_ms_gated", "p99 with the gate, ms"),
    ("p99_ms_ungated", "p99 without, ms"),
    ("p99_ms_attacked", "p99 with the gate under attack, ms"),
)


def block(result: Mapping[str, Any] | None) -> str:
    """The table of docs/serving.md."""
    told = result["summary"] if result else {}
    if result is None or "failed_requests" not in told:
        return "Not measured yet."
    rows = [f"| {meaning} | {told[key]:,} |" for key, meaning in ROWS if key in told]
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join(["| figure | measured |", "|---|---|", *rows]) + (
        f"\n\n{where}; commit `{result['commit']}`, {result['date']}. Server, clients and attacker share the cores."
    )


def milliseconds(answers: Sequence[Answer], percent: float) -> float:
    """The percentile of what requests took."""
    taken = sorted(a.ended - a.begun for a in answers)
    return round(1000 * taken[min(len(taken) - 1, int(len(taken) * percent / 100))], 2)


def p99(answers: Sequence[Answer]) -> float:
    return milliseconds(answers, 99)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Measure serving with the gate.")
    options.add_argument("what", nargs="?", choices=("serve",), help="only a server, for the benchmark itself")
    options.add_argument("--store", type=Path)
    options.add_argument("--ungated", type=Path)
    given = options.parse_args()
    serve(given) if given.what else main()
