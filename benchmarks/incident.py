"""Attribution of scripted incidents with known truth, and the time that a timeline and a matrix take over many events.

Scenarios: `benchmarks/incidents.py`, each read from its records as they would be taken in. A conclusion that names an
account whose holder did not do it is a false accusation; one that names nothing is an abstention. Timeline: custody
events of eight sources on a cluster of 200 accounts and 64 hosts, made here; a fresh process opens them, compares
clocks, writes the timeline, traces 40 artefacts, and builds the matrix: wall time, and the most memory that it had.

    python -m benchmarks.incident [scenarios] [timeline] [--events N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
from blake3 import blake3

from benchmarks.incidents import SCENARIOS
from benchmarks.machine import merge
from benchmarks.world import UIDS, Records, Scenario
from trainwarden.attribute.attributing import attribution_of
from trainwarden.attribute.nouns import Attribution, Kind
from trainwarden.attribute.tables import Tables
from trainwarden.custody.readers import Context, reader_for
from trainwarden.custody.table import NUMBERS, SCHEMA, write_events
from trainwarden.custody.taking import opened, read_all
from trainwarden.model import Artefact, Evidence, SourceKind

PARTS = ("scenarios", "timeline")
EVENTS = 10_000_000
_SOURCES = (
    SourceKind.AUDIT, SourceKind.AUDIT, SourceKind.TETRAGON, SourceKind.TETRAGON, SourceKind.FALCO,
    SourceKind.JOURNAL, SourceKind.KUBERNETES, SourceKind.TELEPORT,
)  # fmt: skip
_ACCUSING = (Kind.INSIDER, Kind.INSTRUCTED)
_ARTEFACTS = 40
_BEGIN = 1_788_220_800_000_000_000


def main(parts: Sequence[str] = PARTS, events: int = EVENTS) -> None:
    """Measure the named parts; each is written when it is done."""
    for part in parts:
        print(f"incident: {part}", file=sys.stderr, flush=True)
        summary, runs = scenarios() if part == "scenarios" else timeline(events)
        print(merge("incident", part, summary, runs), summary, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- scenarios


def scenarios() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What attribution says of every scripted incident, beside what is true."""
    runs = [judged(make()) for make in SCENARIOS]
    summary = {
        "scenarios": len(runs),
        "false_accusations": sum(r["false_accusation"] for r in runs),
        "wrong": sum(r["wrong"] for r in runs),
        "abstentions": sum(r["said"] == "" for r in runs),
        "abstentions_undecidable": sum(r["said"] == "" and not r["decidable"] for r in runs),
    }
    return summary, runs


def judged(scenario: Scenario) -> dict[str, Any]:
    """One scenario: what was concluded, and whether that is true."""
    conclusion = attributed(scenario).conclusion
    leading = conclusion.leading
    wrong = leading is not None and leading != scenario.truth
    return {
        "scenario": scenario.name,
        "story": scenario.story,
        "truth": f"{scenario.truth.kind} {scenario.truth.account}".strip(),
        "decidable": scenario.decidable,
        "said": f"{leading.kind} {leading.account}".strip() if leading else "",
        "grade": conclusion.grade,
        "level": conclusion.level,
        "wrong": wrong,
        "false_accusation": wrong and leading is not None and leading.kind in _ACCUSING,
        "sentence": conclusion.sentence,
    }


def attributed(scenario: Scenario) -> Attribution:
    """What attribution says of one scenario."""
    with tempfile.TemporaryDirectory(prefix="tw-incident-") as name:
        folder = Path(name)
        tables = Tables([taken(folder, records) for records in scenario.records], folder)
        try:
            return attribution_of(
                tables, scenario.name, scenario.artefacts, aliases=scenario.aliases, replayed=scenario.replayed
            )
        finally:
            tables.close()


def taken(folder: Path, records: Records) -> tuple[Evidence, Path]:
    """A file of records as `ingest` takes it in, without a store."""
    digest = blake3(records.data).hexdigest()
    raw, table = folder / f"{digest}.raw", folder / digest
    raw.write_bytes(records.data)
    reader = reader_for(records.kind)
    users = {uid: name for name, uid in UIDS.items()}
    context = Context(source=digest, host="node3", account=records.account, users=users, year=2026)
    with opened(raw) as file:
        counted = write_events(read_all(reader, file, context), table)
    evidence = Evidence(
        id=digest,
        kind=records.kind,
        name=records.name,
        bytes=len(records.data),
        events=counted.events,
        unread=counted.unread,
        table="",
        host="node3",
        editors=records.editors or reader.editors,
        weak=reader.weak,
    )
    return evidence, table


# --------------------------------------------------------------------------- timeline


def timeline(events: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time and memory of a fresh process over this many events, on two cores."""
    with tempfile.TemporaryDirectory(prefix="tw-incident-") as name:
        began = time.perf_counter()
        for n in range(len(_SOURCES)):
            make_source(Path(name), n, events // len(_SOURCES))
        made_s = time.perf_counter() - began
        child = [sys.executable, "-m", "benchmarks.incident", "--child", name]
        told = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    summary = {
        "custody_events": told["events"],
        "timeline_s": round(told["seconds"], 1),
        "timeline_mib": round(told["mib"]),
    }
    return summary, [{**told, "made_s": round(made_s, 1)}]


def measure(folder: Path) -> dict[str, Any]:
    """Open, compare clocks, write the timeline, trace, and build the matrix; in this process."""
    began = time.perf_counter()
    paths = [(_evidence(n, folder / f"{n}"), folder / f"{n}") for n in range(len(_SOURCES))]
    tables = Tables(paths, folder, threads=2)
    artefacts = tuple(
        Artefact(path=f"/shared/env/{n}/module.py", digest=f"{n:064x}", what="changed code") for n in range(_ARTEFACTS)
    )
    told = attribution_of(tables, "bench", artefacts, timeline=folder / "timeline")
    tables.close()
    return {
        "events": told.events,
        "seconds": time.perf_counter() - began,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "accounts": len(told.matrix),
        "deeds": len(told.deeds),
        "clocks_measured": sum(c.shared > 0 or c.error_ns == 0 for c in told.clocks),
        "clocks": len(told.clocks),
        "timeline_bytes": os.path.getsize(folder / "timeline"),
    }


def make_source(folder: Path, n: int, rows: int) -> None:
    """One source of made-up events: the even rows of every pair of sources are the same acts, seen twice."""
    columns = {
        "line": "i + 1",
        "time_ns": f"{_BEGIN} + i * 173000000 + {n} * 1300000",
        "error_ns": "1000",
        "until_ns": "0",
        "binding": "'none'",
        "pid": f"CASE WHEN i % 2 = 0 THEN 1000 + i ELSE 1000 + i + {n} * 7 END",
        "act": "['execute','read','execute','write','read','execute','login','logout'][(i % 8 + 1)::INT]",
        "account": "concat('user', (hash(i // 8) % 200)::VARCHAR)",
        "host": "concat('node', (hash(i // 8 + 1) % 64)::VARCHAR)",
        "session": "concat('s', (i // 8)::VARCHAR)",
        "origin": "concat('10.0.0.', (hash(i // 8) % 200)::VARCHAR)",
        "program": "['/usr/bin/python3','/usr/bin/vim','/bin/bash','/usr/bin/git'][(hash(i + 2) % 4 + 1)::INT]",
        "path": f"CASE WHEN i % {max(rows // 50, 1)} = 3 THEN concat('/shared/env/', ((i * 7) % {_ARTEFACTS})::VARCHAR,"
        " '/module.py') ELSE concat('/home/user', (hash(i) % 200)::VARCHAR, '/run', (hash(i + 3) % 5000)::VARCHAR) END",
    }
    texts = ", ".join(
        f"({columns[c]})::{'BIGINT' if c in NUMBERS else 'VARCHAR'} AS {c}" if c in columns else f"'' AS {c}"
        for c in SCHEMA.names
    )
    with duckdb.connect(config={"threads": 2, "memory_limit": "1GB"}) as db:
        db.execute(
            f"COPY (SELECT {texts} FROM range({rows}) t(i)) TO '{folder / str(n)}' (FORMAT parquet, COMPRESSION zstd)"
        )


def _evidence(n: int, path: Path) -> Evidence:
    with duckdb.connect() as db:
        ((rows,),) = db.execute(f"SELECT count(*) FROM read_parquet('{path}')").fetchall()
    return Evidence(
        id=f"{n:064x}",
        kind=_SOURCES[n],
        name=str(n),
        bytes=path.stat().st_size,
        events=rows,
        table="",
        editors=("root",),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=PARTS)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--child", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child)))
    else:
        main(args.parts, args.events)
