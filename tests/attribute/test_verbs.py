"""`ingest` and `incident` on the command line: a run, records of its host, and what they say together."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.incidents import deeds
from benchmarks.world import BEGIN, DAY, HOUR, LIBRARY, UIDS, World
from trainwarden.cli import main
from trainwarden.custody import ledger
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import (
    Confidence,
    Coverage,
    Diverged,
    Explanation,
    FileChanged,
    Finding,
    Hypothesis,
    Location,
    ManifestRef,
    Outcome,
    ProcessExited,
    RunEnded,
    Seal,
    Sealed,
    Segment,
    Severity,
    SignedSeal,
    Stage,
    Writer,
    canonical,
)
from trainwarden.seal.seal import sign_seal, write_seal
from trainwarden.store import Store

SECOND = 1_000_000_000


def sealed(key: SigningKey) -> SignedSeal:
    refs = {k: ManifestRef(kind=k, digest=k[0] * 64, files=1, bytes=1) for k in ("code", "environment", "data")}
    return sign_seal(Seal(created_ns=1, argv=("python", "t.py"), cwd="/w", interpreter="/p", **refs), key)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one run whose library was changed four times, and records of the host beside it."""
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    monkeypatch.setenv("TRAINWARDEN_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    key = SigningKey.load_or_create()
    store = Store.open(create=True)
    run, seal = store.create_run(), sealed(key)
    write_seal(run.seal_file, seal)
    at = Location(step=7, rank=0, stage=Stage.WEIGHTS)
    changes = [
        FileChanged(
            path=f"{LIBRARY}part{n}.py", kind="environment", sealed="a" * 64, found=f"{n + 1:02x}" * 32,
            wall_ns=int((BEGIN + day * DAY + 23 * HOUR) * SECOND),
        )
        for n, day in enumerate((6, 8, 10, 13))
    ]  # fmt: skip
    kill = ProcessExited(
        attempt=0, rank=1, pid=8000, code=-9, wall_ns=int((BEGIN + 14 * DAY) * SECOND), told_by="audit",
        sender=Writer(pid=4320, uid=0, login_uid=1001, program="/usr/bin/kill"),
    )  # fmt: skip
    finding = Finding(
        detector="environment", severity=Severity.HIGH, confidence=Confidence.HIGH, seen="changed", expected="as sealed"
    )
    why = Hypothesis(name="swapped file", sentence="the file", outcome=Outcome.REPRODUCED)
    entries = [
        Sealed(run=run.id, seal=seal.digest, key=key.public), *changes, kill, finding,
        Diverged(segment=Segment(attempt=0, first=0, last=9), at=at, coverage=Coverage(records=8)),
        Explanation(at=at, hypotheses=(why,), cause="swapped file", file=changes[0].path),
        RunEnded(code=0, records=0, wall_ns=1),
    ]  # fmt: skip
    with closing(LogWriter.create(run.log, f"trainwarden/{run.id}", key)) as log:
        log.append([canonical(e) for e in entries])
    world = World()
    deeds(world, "omar")
    for records in world.records():
        (tmp_path / records.name).write_bytes(records.data)
    (tmp_path / "passwd").write_text("".join(f"{n}:x:{uid}:100::/:/bin/sh\n" for n, uid in UIDS.items()))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_from_records_to_a_conclusion_about_an_account(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("audit.log", "auth.log", "wtmp", "teleport.json")
    code, taken = told(capsys, "ingest", *files, "--host", "node3", "--passwd", "passwd")
    assert code == 0
    assert [e["evidence"]["kind"] for e in taken["evidence"]] == ["audit", "journal", "wtmp", "teleport"]
    assert {e["state"] for e in taken["evidence"]} == {"new"}
    assert {e["state"] for e in told(capsys, "ingest", *files)[1]["evidence"]} == {"was in already"}

    code, opened = told(capsys, "incident", "open", "last", "--title", "weights", "--passwd", "passwd")
    incident = opened["incident"]
    assert (code, incident["id"], incident["status"]) == (0, "i1", "open")
    assert [len(incident[k]) for k in ("runs", "findings", "verdicts", "artefacts", "custody")] == [1, 1, 2, 5, 5]
    assert main(["ingest", "tetragon.json", "--incident", "i1"]) == 0  # what was forgotten is said, and told anew
    assert "known by number only" in capsys.readouterr().out
    assert main(["ingest", "tetragon.json", "--editors", "admin:collector", "--passwd", "passwd"]) == 0
    assert "--again" in capsys.readouterr().out
    code, again = told(
        capsys, "ingest", "tetragon.json", "--editors", "admin:collector", "--passwd", "passwd", "--again"
    )
    assert (code, again["evidence"][0]["state"]) == (0, "read again")

    code, shown = told(capsys, "incident", "show", incident["runs"][0], "--timeline", "t.parquet", "--html", "i.html")
    assert code == 0
    said = shown["attribution"]["conclusion"]
    assert (said["leading"]["kind"], said["leading"]["account"], said["grade"]) == (
        "insider",
        "omar",
        "strongly supported",
    )
    assert "This is about the account" in said["sentence"]
    by_path = {t["artefact"]["path"]: t for t in shown["attribution"]["traces"]}
    assert {d["who"] for d in by_path["pid 8000"]["deeds"]} == {"omar"}
    page = Path("i.html").read_text()
    assert "Hypotheses side by side" in page
    assert "<script" not in page
    assert os.path.getsize("t.parquet") > 1000
    assert main(["incident", "show", "i1"]) == 0
    assert "Strongly supported" in capsys.readouterr().out

    assert told(capsys, "incident", "add", "i1")[1]["incident"] == shown["incident"]  # nothing new, nothing added
    Path("planted.py").write_text("x = 1\n")
    added = told(capsys, "incident", "add", "i1", "--artefact", "planted.py")[1]["incident"]
    assert added["artefacts"][-1]["path"] == str(place / "planted.py")
    assert main(["incident", "close", "i1", "--outcome", "handed over"]) == 0
    assert main(["incident", "add", "i1", "--artefact", "passwd"]) == 3
    assert main(["incident", "add", "i1"]) == 3  # even where there is nothing new
    assert told(capsys, "incident", "list")[1]["incidents"][0]["outcome"] == "handed over"


def test_without_records_nothing_is_decided_and_the_missing_ones_are_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["incident", "open", "last"]) == 0
    code, shown = told(capsys, "incident", "show")
    assert code == 2
    assert shown["attribution"]["conclusion"].get("leading") is None
    assert shown["attribution"]["conclusion"]["missing"]
    assert main(["incident", "show"]) == 2
    assert "does not decide" in capsys.readouterr().out


def test_nothing_is_taken_from_the_log_of_a_run_that_was_rewritten(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["incident", "open", "last"]) == 0
    shown = told(capsys, "incident", "show")[1]["attribution"]
    assert any("a clean replay" in p["sentence"] for p in shown["pieces"])
    journal = Store.open().run("last").log / "journal"
    journal.write_bytes(journal.read_bytes().replace(b"swapped file", b"swapped fils"))
    shown = told(capsys, "incident", "show")[1]["attribution"]
    assert not any("a clean replay" in p["sentence"] for p in shown["pieces"])
    assert any("does not verify" in line for line in shown["conclusion"]["unknown"])


def test_lines_that_cannot_be_read_are_told_and_the_call_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("auth.log").open("a") as f:
        f.write("garbage\n")
    assert main(["ingest", "auth.log"]) == 2
    out = capsys.readouterr().out
    assert "1 lines could not be read" in out
    assert "no line of a journal" in out
    assert main(["ingest", "key"]) == 3
    assert "say what they are with --source" in capsys.readouterr().err
    assert main(["ingest", "auth.log", "--zone", "Nowhere/No"]) == 3


def test_evidence_changed_in_the_store_stops_everything(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "audit.log", "--passwd", "passwd"]) == 0
    assert main(["incident", "open", "last"]) == 0
    store = Store.open()
    table = store.object_path(next(iter(ledger.read_custody(store).evidence.values())).evidence.table)
    table.chmod(0o644)
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(bytes(data))
    capsys.readouterr()
    assert main(["incident", "show"]) == 1
    assert "has the digest" in capsys.readouterr().err
