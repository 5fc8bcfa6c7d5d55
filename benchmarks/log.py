"""What the log costs: durable appends, records a second, proofs, verification, bytes a record, and losses at crashes.

Everything runs against `trainwarden log serve`'s own process on a folder, over loopback, each answer after the batch is
durable and published. `records`: the clients of two hosts, as `trainwarden log ship` runs them, each from its journal
on disk to the checked answer; its limit is making the Parquet alone. `appends`: single small items from several
connections; its limit is an fsync for each.
`proofs`: over trees in memory. `crashes`: a death before and after every write (benchmarks/log_crashes.py).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from blake3 import blake3

from benchmarks.machine import merge
from trainwarden.keys import SigningKey
from trainwarden.log import merkle, tiles
from trainwarden.log.journal import LogWriter
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.notes import verify_head
from trainwarden.log.protocol import SIGNATURE_HEADER, Append, Appended, Item, append_path, read_entry, sign_append
from trainwarden.log.storage import HEAD, FolderStorage
from trainwarden.store import RunDir

ORIGIN = "log.bench"
LOG_KEY = SigningKey(b"\x31" * 32)
HOSTS = {f"node-{n}": SigningKey(bytes([n]) * 32) for n in range(1, 9)}
BATCH = 4096
RANKS = 8
RECORDS = 500_000  # of each of two hosts
LATENCY_APPENDS = 150  # of each of eight connections


def main(parts: Sequence[str] = ()) -> None:
    """Measure the named parts, all without a name; the other parts' figures stay as they are."""
    for part in parts or PARTS:
        summary, runs = PARTS[part]()
        print(merge("log", part, summary, runs))


def records() -> tuple[dict[str, Any], list[Any]]:
    """10^6 step records from the journals of two hosts, each sent by its client; then all fetched and verified."""
    with serving() as (url, folder):
        names = list(HOSTS)[:2]
        for name in names:
            begin_journal(folder, name)
        limit = 2 * RECORDS / together(encode, [(name,) for name in names])
        seconds = together(ship, [(url, folder, name) for name in names])
        count = len(names) * RECORDS
        stored = sum(p.stat().st_size for p in (folder / "tiles").rglob("*") if "sqlite" not in p.name and p.is_file())
        begin = time.perf_counter()
        verified = verify_records(url)
        took = time.perf_counter() - begin
    if verified != count:
        raise SystemExit(f"error: {verified} records verified of {count} sent")
    summary = {
        "records_per_s": round(count / seconds),
        "records_vs_encoding": round(count / seconds / limit, 2),
        "bytes_per_record": round(stored / count, 1),
        "verify_1e6_s": round(took * 1e6 / count, 2),
    }
    told = {"records": count, "batch": BATCH, "seconds": round(seconds, 2), "encoding_per_s": round(limit)}
    return summary, [told | {"verify_s": round(took, 2)}]


def together(work: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> float:
    """Seconds from when every process is ready until all have done their work."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(len(calls) + 1)
    processes = [context.Process(target=work, args=(*call, ready)) for call in calls]
    for process in processes:
        process.start()
    ready.wait(120)
    begin = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - begin
    if any(process.exitcode for process in processes):
        raise SystemExit("error: a client failed")
    return seconds


class Quick(FolderStorage):
    """A journal's folder that is never synced: how it came about is not measured."""

    def sync(self) -> None:
        pass

    def write_head(self, note: bytes) -> None:
        (self._folder / HEAD).write_bytes(note)


def begin_journal(folder: Path, name: str) -> None:
    """A host's run of `RECORDS` step records, each step's in a batch of its own, under signed heads."""
    journal = [entry for n in range(16) for entry in entries_of(name, n * BATCH)]
    log = LogWriter.create(Quick.for_writing(run_of(folder, name).log, create=True), f"trainwarden/{name}", HOSTS[name])
    for first in range(0, RECORDS, RANKS):
        log.append([journal[n % len(journal)] for n in range(first, first + RANKS)])
    log.close()


def run_of(folder: Path, name: str) -> RunDir:
    """A host's run."""
    return RunDir("bench", folder / name)


def encode(name: str, ready: Any) -> None:
    """The limit: the same entries only decoded, hashed and written as Parquet, without journal, network or disk."""
    from trainwarden.log.records import batch
    from trainwarden.model import decode_entry

    journal = [entries_of(name, n * BATCH) for n in range(16)]
    ready.wait(120)
    for n, first in enumerate(range(0, RECORDS, BATCH)):
        entries = journal[n % len(journal)][: RECORDS - first]
        found = [decode_entry(entry) for entry in entries]
        batch(found, [leaf_hash(e) for e in entries], host=name, run="bench", first=first)  # type: ignore[arg-type]


def ship(url: str, folder: Path, name: str, ready: Any) -> None:
    """One host's client, as `trainwarden log ship` runs it."""
    from trainwarden.log.client.session import Shipping
    from trainwarden.log.client.shipper import Limits
    from trainwarden.log.client.state import Target

    key = folder / f"{name}.key"
    key.touch(mode=0o600)
    key.write_text((bytes([list(HOSTS).index(name) + 1]) * 32).hex())
    target = Target(url=url, origin=ORIGIN, server_key=LOG_KEY.public, host=name, host_key=str(key))
    shipping = Shipping.open(
        run_of(folder, name), target, lambda event: None, public_key=HOSTS[name].public, limits=Limits(records=BATCH)
    )
    ready.wait(120)
    whole = shipping.drain(600)
    shipping.close()
    if not whole:
        raise SystemExit(f"error: {name}: {shipping.shipper.trouble}")


def entries_of(name: str, first: int) -> list[bytes]:
    """A host's journal entries of a job of 8 ranks, with the spread that a real one's figures have."""
    from trainwarden.model import STAGES, StageDigest, StepRecord, canonical

    draw = random.Random(f"{name} {first}")
    made = []
    for n in range(first, first + BATCH):
        step, rank = divmod(n, RANKS)
        record = StepRecord(
            attempt=0,
            rank=rank,
            world=RANKS,
            step=step,
            optimizer=0,
            seq=step,
            wall_ns=1_700_000_000_000_000_000 + step * 366_000_000 + draw.randrange(2_000_000),
            duration_ns=366_000_000 + draw.randrange(9_000_000),
            cpu_ns=340_000_000 + draw.randrange(9_000_000),
            recorder_ns=9_000_000 + draw.randrange(900_000),
            loss=3.0 + draw.random(),
            hyper=({"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},),
            micro_batches=1,
            stages={stage: StageDigest(root=draw.randbytes(32).hex(), tensors=40) for stage in STAGES},
        )
        made.append(canonical(record))
    return made


def verify_records(url: str) -> int:
    """Fetch the log, check its root, every object's digest and every Parquet batch; how many records there are."""
    from trainwarden.log.records import read_batch
    from trainwarden.model import RecordBatch, decode_leaf

    count = 0
    with httpx.Client(timeout=60) as client:
        head = verify_head(client.get(url + "/checkpoint").content, LOG_KEY.public)
        frontier = merkle.Frontier()
        for first in range(0, head.size, tiles.HASH_TILE):
            tile = tiles.tile_of(head.size, tiles.ENTRIES, first // tiles.HASH_TILE)
            for entry in tiles.read_bundle(client.get(f"{url}/{tile.path}").content, tile.width):
                frontier = frontier.extend([leaf_hash(entry)])
                bound, leaf = read_entry(entry)
                data = client.get(f"{url}/objects/{bound.object}").content
                batch = decode_leaf(leaf)
                if blake3(data).hexdigest() != bound.object or not isinstance(batch, RecordBatch):
                    raise SystemExit("error: an entry does not bind its object")
                count += read_batch(data, batch).num_rows
        if frontier.root().hex() != head.root:
            raise SystemExit("error: the entries do not give the root")
    return count


def appends() -> tuple[dict[str, Any], list[Any]]:
    """Single items from eight connections: time from the request to the durable answer, beside a bare fsync."""
    times: list[float] = []
    with serving() as (url, folder):
        bare = fsyncs(folder)
        threads = [threading.Thread(target=append_singly, args=(url, name, times)) for name in HOSTS]
        begin = time.perf_counter()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        seconds = time.perf_counter() - begin
        bare += fsyncs(folder)
    if len(times) != len(HOSTS) * LATENCY_APPENDS:
        raise SystemExit(f"error: {len(times)} appends were answered")
    cuts, limit = statistics.quantiles(times, n=100), statistics.quantiles(bare, n=100)
    summary = {
        "append_p99_ms": round(1000 * cuts[98], 1),
        "append_p50_ms": round(1000 * cuts[49], 1),
        "appends_per_s": round(len(times) / seconds),
        "appends_vs_fsync": round(len(times) / seconds * sum(bare) / len(bare), 2),
    }
    told = {"connections": len(HOSTS), "appends": len(times), "seconds": round(seconds, 2)}
    return summary, [told | {"fsync_p50_ms": round(1000 * limit[49], 2), "fsync_p99_ms": round(1000 * limit[98], 2)}]


def fsyncs(folder: Path) -> list[float]:
    """The limit: how long one file on this disk takes to be longer by one such item, durably, by one writer alone."""
    times, item = [], b"%d" % 7 * 100
    with open(folder / "bare", "ab", buffering=0) as file:
        for _ in range(LATENCY_APPENDS):
            begin = time.perf_counter()
            file.write(item)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begin)
    return times


def append_singly(url: str, name: str, times: list[float]) -> None:
    """Append one item after the other."""
    with httpx.Client(timeout=60) as client:
        client.get(url + "/healthz")
        for n in range(LATENCY_APPENDS):
            begin = time.perf_counter()
            send(client, url, Append(host=name, run="bench", first=n, items=(Item(leaf=b"%d" % n * 50),)))
            times.append(time.perf_counter() - begin)


def proofs() -> tuple[dict[str, Any], list[Any]]:
    """Making and checking an inclusion proof over 10^5 and 10^7 leaves."""
    runs = [proof_times(size) for size in (10**5, 10**7)]
    made = {f"proof_us_1e{len(str(r['leaves'])) - 1}": r["make_us"] for r in runs}
    return made | {"proof_check_us_1e7": runs[-1]["check_us"]}, runs


def proof_times(size: int) -> dict[str, Any]:
    """The median over random leaves of a tree of random leaf hashes."""
    levels = [os.urandom(32 * size)]
    while len(levels[-1]) > 32:
        below, sha = levels[-1], hashlib.sha256
        levels.append(b"".join(sha(b"\x01" + below[i : i + 64]).digest() for i in range(0, len(below) - 63, 64)))

    def node(level: int, index: int) -> bytes:
        return levels[level][32 * index : 32 * index + 32]

    root = merkle.range_root(node, 0, size)
    draw, make, check = random.Random(size), list[float](), list[float]()
    for index in (draw.randrange(size) for _ in range(2000)):
        begin = time.perf_counter()
        proof = merkle.inclusion_proof(node, index, size)
        middle = time.perf_counter()
        merkle.verify_inclusion(node(0, index), index, size, proof, root)
        make.append(middle - begin)
        check.append(time.perf_counter() - middle)
    micro = {"make_us": statistics.median(make) * 1e6, "check_us": statistics.median(check) * 1e6}
    return {"leaves": size, **{name: round(value, 1) for name, value in micro.items()}}


def crashes() -> tuple[dict[str, Any], list[Any]]:
    """Deaths before and after every write."""
    from benchmarks import log_crashes

    found = list(log_crashes.crashes())
    lost = sum(n for _, n in found)
    return {"crash_points": len(found), "crash_losses": lost}, [{"writes": 1 + max(p for p, _ in found)}]


PARTS: dict[str, Callable[[], tuple[dict[str, Any], list[Any]]]] = {
    "records": records,
    "appends": appends,
    "proofs": proofs,
    "crashes": crashes,
}


def send(client: httpx.Client, url: str, append: Append) -> Appended:
    """Sign, send, and read the durable answer."""
    body, header = sign_append(append, ORIGIN, HOSTS[append.host])
    response = client.post(url + append_path(ORIGIN), content=body, headers={SIGNATURE_HEADER: header})
    if response.status_code != 200:
        raise SystemExit(f"error: {response.status_code} {response.text}")
    return msgspec.msgpack.decode(response.content, type=Appended)


@contextmanager
def serving() -> Iterator[tuple[str, Path]]:
    """`trainwarden log serve` on a fresh folder: its URL, and the folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key").write_text("31" * 32)
        (folder / "key").chmod(0o600)
        hosts = "".join(f'[[host]]\nname = "{host}"\nkey = "{key.public}"\n' for host, key in HOSTS.items())
        (folder / "hosts.toml").write_text(hosts)
        command = [sys.executable, "-m", "trainwarden.cli", "log", "serve", "--json", "--port", "0", "--origin", ORIGIN]
        places = ["--tiles", name + "/tiles", "--hosts", name + "/hosts.toml", "--key", name + "/key"]
        process = subprocess.Popen([*command, *places], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], folder
        finally:
            process.terminate()
            process.communicate()


if __name__ == "__main__":
    main(sys.argv[1:])
