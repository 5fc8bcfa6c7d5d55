"""Is every changed byte of a dossier found and named? And how long does it take to check one?

A scripted incident (benchmarks/incidents.py) with a run, its log, records of its host and a respondent's statement, in
a folder of its own. Bytes of its dossier's zip file are flipped one at a time: all of the zip file's own structure, and
some of every member. A flip counts as found where a check fails and says which member, or that it is the zip file.

    python -m benchmarks.dossier [--every N] [--no-time]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.incidents import insider_alone
from benchmarks.machine import merge
from benchmarks.world import BEGIN, DAY, HOUR, LIBRARY, UIDS
from trainwarden import model as m
from trainwarden.attribute.gathering import bring_up_to_date
from trainwarden.checks import Failed
from trainwarden.custody import ledger
from trainwarden.custody.taking import Told, take_in
from trainwarden.dossier.container import pack
from trainwarden.dossier.gathering import Given
from trainwarden.dossier.making import Made, Options, make
from trainwarden.dossier.nouns import Audience
from trainwarden.dossier.verifying import verify_zip
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import canonical
from trainwarden.seal.seal import sign_seal, write_seal
from trainwarden.store import Store

PART = "dossier"
SECOND = 1_000_000_000
_STEPS, _RANKS, _BAD = 30, 2, 17
_STATEMENT = "I was away that week.\nMy account was open on a machine that others of the team use; ask vera.\n"


@contextmanager
def scene(folder: Path) -> Iterator[tuple[Store, m.Incident, ledger.Signer]]:
    """A store in `folder` with a run that was interfered with, records of its host, and an open incident of them."""
    before = os.environ.get("TRAINWARDEN_KEY")
    os.environ["TRAINWARDEN_KEY"] = str(folder / "key")
    store = Store.open(folder / "store", create=True)
    try:
        run = _run(store, SigningKey.load_or_create())
        by = ledger.signer(store)
        users = {uid: name for name, uid in UIDS.items()}
        for records in insider_alone().records:
            (folder / records.name).write_bytes(records.data)
            told = Told(
                kind=records.kind,
                host="node3",
                account=records.account,
                editors=records.editors,
                users=users,
                year=2026,
            )
            take_in(store, by, folder / records.name, told)
        (folder / "answer.txt").write_text(_STATEMENT, encoding="utf-8")
        opened = ledger.open_incident(store, by, "weights that nobody changed")
        incident = bring_up_to_date(store, by, opened, [run], users)
        yield store, ledger.take_statement(store, by, incident.id, "respondent", folder / "answer.txt"), by
    finally:
        store.close()
        os.environ.pop("TRAINWARDEN_KEY")
        if before is not None:
            os.environ["TRAINWARDEN_KEY"] = before


def _run(store: Store, key: SigningKey) -> str:
    """A run whose library was changed four times, that a replay diverged from, and of which a rank was killed."""
    run = store.create_run()
    refs = {k: m.ManifestRef(kind=k, digest=k[0] * 64, files=1, bytes=1) for k in ("code", "environment", "data")}
    seal = sign_seal(m.Seal(created_ns=1, argv=("python", "train.py"), cwd="/w", interpreter="/p", **refs), key)
    write_seal(run.seal_file, seal)
    with closing(LogWriter.create(run.log, f"trainwarden/{run.id}", key)) as log:
        log.append([canonical(e) for e in _entries(run.id, seal.digest, key.public)])
    return run.id


def _entries(run: str, seal: str, key: str) -> list[m.Entry]:
    at = m.Location(step=_BAD, rank=0, stage=m.Stage.WEIGHTS, tensor="fc.weight", recorded="a" * 32, replayed="b" * 32)
    changes = [
        m.FileChanged(
            path=f"{LIBRARY}part{n}.py", kind="environment", sealed="a" * 64, found=f"{n + 1:02x}" * 32,
            wall_ns=int((BEGIN + day * DAY + 23 * HOUR) * SECOND), uid=UIDS["omar"],
        )
        for n, day in enumerate((6, 8, 10, 13))
    ]  # fmt: skip
    begun = int((BEGIN + 14 * DAY) * SECOND)
    return [
        m.Sealed(run=run, seal=seal, key=key, wall_ns=begun),
        *(_started(rank, begun) for rank in range(_RANKS)),
        *(_step(step, rank, begun) for step in range(_STEPS) for rank in range(_RANKS)),
        *changes,
        m.ProcessExited(
            attempt=0, rank=1, pid=8000, code=-9, wall_ns=begun + 40 * SECOND, told_by="audit",
            sender=m.Writer(pid=4320, uid=0, login_uid=UIDS["omar"], program="/usr/bin/kill"),
        ),
        m.Finding(
            detector="environment", severity=m.Severity.HIGH, confidence=m.Confidence.HIGH, seen="a file was changed",
            expected="the environment stays as sealed", evidence=(63,), benign=("somebody upgraded a package",),
            wall_ns=begun + 41 * SECOND,
        ),
        m.Diverged(
            segment=m.Segment(attempt=0, first=10, last=19), at=at, coverage=m.Coverage(records=20, digests=900)
        ),
        m.Explanation(
            at=at, cause="swapped file", file=changes[0].path,
            hypotheses=(m.Hypothesis(name="swapped file", sentence="the file", outcome=m.Outcome.REPRODUCED),),
        ),
        m.RunEnded(code=1, records=_STEPS * _RANKS, wall_ns=begun + 50 * SECOND),
    ]  # fmt: skip


def _started(rank: int, begun: int) -> m.ProcessStarted:
    numerics = m.Numerics(machine="x86_64", cpu="c", isa="AVX2", threads=1, torch="2", python="3.11")
    return m.ProcessStarted(
        attempt=0, rank=rank, world=_RANKS, pid=8000 - 1 + rank, argv=("python", "train.py"), cwd="/w", executable="/p",
        env_digest="e" * 64, numerics=numerics, wall_ns=begun,
    )  # fmt: skip


def _step(step: int, rank: int, begun: int) -> m.StepRecord:
    return m.StepRecord(
        attempt=0, rank=rank, world=_RANKS, step=step, optimizer=0, seq=step, stages={},
        loss=2.0 - step / 100,
        micro_batches=1, wall_ns=begun + (step + 1) * SECOND, duration_ns=SECOND, cpu_ns=SECOND, recorder_ns=0,
    )  # fmt: skip


def edition(store: Store, incident: m.Incident, by: ledger.Signer, audience: Audience, *, pdf: bool = False) -> Made:
    """One edition with the account of its run."""
    from trainwarden.config import DamageConfig
    from trainwarden.respond.account.account import account
    from trainwarden.respond.account.reading import read_jobs

    given = Given(account=account(read_jobs(store, incident.runs, "", lambda _: None), DamageConfig()))
    return make(store, by, incident, given, Options(audience=audience, pdf=pdf), lambda _: None)


# --------------------------------------------------------------------------- flips


def places(made: Made, every: int, seed: int = 0) -> list[int]:
    """Offsets of the zip file: all of its structure, one in `every` of each member's, 32 at least."""
    draw, chosen, at = random.Random(seed), list[int](), 0
    for name in sorted(made.files):
        size, head = len(made.files[name]), 30 + len(name.encode())
        chosen += range(at, at + head)
        at += head
        few = max(32, size // every)
        chosen += sorted(draw.sample(range(at, at + size), min(size, few)))
        at += size
    return [*chosen, *range(at, len(pack(made.files)))]


def part_of(files: Mapping[str, bytes], at: int) -> str:
    """What has to be named when this byte is changed: the member, or for the zip file's structure that."""
    end = 0
    for name in sorted(files):
        end += 30 + len(name.encode())
        if at < end:
            return "zip file"
        end += len(files[name])
        if at < end:
            return name
    return "zip file"


def flips(made: Made, offsets: Sequence[int], seed: int = 0) -> tuple[int, list[int]]:
    """How many flips of one bit were found and named, and the offsets of those that were not."""
    draw, missed = random.Random(seed), list[int]()
    names, data, key = made.files, pack(made.files), made.manifest.key
    for at in offsets:
        changed = bytearray(data)
        changed[at] ^= 1 << draw.randrange(8)
        _, checks = verify_zip(bytes(changed), key)
        reasons = " ".join(c.result.reason for c in checks if isinstance(c.result, Failed))
        if part_of(names, at) not in reasons:
            missed.append(at)
    return len(offsets) - len(missed), missed


def main(argv: Sequence[str] | None = None) -> None:
    """Make a dossier, flip, time, write."""
    parser = argparse.ArgumentParser(description="Flip bytes of a dossier, and time its verification.")
    parser.add_argument("--every", type=int, default=400, help="flip one byte in this many of the larger members")
    parser.add_argument("--no-time", action="store_true", help="record no time: the machine is busy")
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tw-dossier-") as name, scene(Path(name)) as (store, incident, by):
        for audience in (Audience.ORGANISATION, Audience.PUBLIC):
            made = edition(store, incident, by, audience, pdf=audience is Audience.ORGANISATION)
            data, key = pack(made.files), made.manifest.key
            offsets = places(made, given.every)
            found, missed = flips(made, offsets)
            rows.append({"audience": audience.value, "bytes": len(data), "items": made.manifest.items,
                         "flipped": len(offsets), "found": found, "missed": missed[:20]})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
            if not given.no_time:
                rows[-1]["verify_s"] = round(min(_timed(data, key) for _ in range(5)), 3)
    summary: dict[str, Any] = {
        "dossier_bytes_flipped": sum(r["flipped"] for r in rows), "dossier_flips_found": sum(r["found"] for r in rows),
    }  # fmt: skip
    if not given.no_time:
        summary["dossier_verify_s"] = max(r["verify_s"] for r in rows)
    print(merge("incident", PART, summary, rows), summary, file=sys.stderr)


def _timed(data: bytes, key: str) -> float:
    began = time.perf_counter()
    verify_zip(data, key)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
