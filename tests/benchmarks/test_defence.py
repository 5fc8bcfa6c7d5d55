"""The defence benchmark counts what it says that it counts; nothing is trained here."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attacks import in_memory, outside
from benchmarks import defence, defence_report, recovering, struck
from trainwarden.model import Confidence, Coverage, Entry, Finding, Matched, RunEnded, Segment, Severity, StepRecord

ROOT = Path(__file__).resolve().parents[2]


def record(step: int) -> StepRecord:
    return StepRecord(attempt=0, rank=0, world=2, step=step, optimizer=0, seq=step, stages={})


def at(step: int, seconds: float) -> StepRecord:
    return msgspec.structs.replace(record(step), wall_ns=int(seconds * 1e9))


def finding(detector: str, severity: Severity = Severity.HIGH) -> Finding:
    return Finding(detector=detector, severity=severity, confidence=Confidence.HIGH, seen=f"{detector}.", expected="")


def ran(*entries: Entry, told: dict[str, float]) -> struck.Ran:
    lines = [(when, "high", detector, f"{detector}.") for detector, when in told.items()]
    return struck.Ran(runs=["r"], told=lines, entries=entries, ended=99.0)


def told_of(ran: struck.Ran, at: tuple[int, float] | None = (60, 10.0), began: float = 9.0) -> dict[str, Any]:
    return struck.outcome("a", "22", ("x",), ran, at, [began])


def test_time_to_detect_is_from_the_first_tampered_step_to_the_finding() -> None:
    run = ran(record(61), finding("slow"), record(62), finding("late"), told={"late": 10.5, "slow": 10.2})
    assert [(f["detector"], f["steps"], f["seconds"]) for f in told_of(run)["live"]] == [
        ("slow", 1, 0.2),
        ("late", 2, 0.5),
    ]


def test_what_is_found_before_the_payload_acts_counts_as_at_once_and_what_came_before_it_as_false() -> None:
    run = ran(record(50), finding("false"), record(55), finding("early"), told={"false": 8.0, "early": 9.5})
    row = told_of(run)
    assert [(f["detector"], f["steps"], f["seconds"]) for f in row["live"]] == [("early", 0, 0.0)]
    assert [f["detector"] for f in row["before"]] == ["false"]


def test_notes_do_not_count_and_an_attack_that_never_acted_is_not_found() -> None:
    run = ran(record(61), finding("note", Severity.INFO), told={"note": 11.0})
    assert told_of(run)["live"] == []
    assert told_of(run, at=None)["struck"] is False


def row(name: str, *, live: float | None = None, audit: str = "", struck: bool = True) -> dict[str, Any]:
    told = [] if live is None else [{"detector": "d", "severity": "high", "seen": "", "steps": 3, "seconds": live}]
    found: dict[str, Any] = {"part": "attacks", "attack": name, "technique": "1", "struck": struck, "live": told}
    return found | ({"audit": {"verdict": audit, "stage": "weights", "step": 60, "rank": 1}} if audit else {})


ROWS = [row("a", live=0.5), row("b", audit="diverged"), row("c", audit="matched"), row("d", struck=False)]


def test_the_summary_counts_each_attack_that_was_carried_out_once() -> None:
    summary = defence.summed(ROWS)
    assert {k: summary[k] for k in ("attacks", "found_live", "found_audit", "missed")} == {
        "attacks": 3,
        "found_live": 1,
        "found_audit": 1,
        "missed": 1,
    }


def test_the_docs_show_what_was_missed_as_missed() -> None:
    results = {"runs": ROWS}
    table, plot = defence_report.table(results), defence_report.plot(results)
    assert [line.split(" | ")[2] for line in table.splitlines()[2:]] == ["live", "audit", "**missed**"]
    assert plot.count("<circle") == 1
    assert ">missed<" in plot


def test_effective_training_time_is_the_share_of_time_that_goes_forward() -> None:
    assert recovering.ettr(1.0, 0.0, 0.0) == 100.0
    assert recovering.ettr(1.0, 100.0, 100.0) == 50.0


def test_what_a_recovery_costs_is_from_the_last_step_before_it_to_the_first_after_it() -> None:
    segment = Segment(attempt=0, first=10, last=19)
    replayed = Matched(segment=segment, coverage=Coverage(records=20, digests=1), mode="start", seconds=1.0)
    before = [at(19, 5.0), replayed, RunEnded(code=1, records=1, wall_ns=0), replayed]
    assert recovering.stops_between([before, [at(10, 9.5), at(11, 9.6)]]) == [{"seconds": 4.5, "replayed": 10.0}]
    assert recovering.stops_between([before]) == []


def test_a_step_is_timed_without_the_checkpoint_that_is_saved_before_the_next() -> None:
    times = [0.0]
    for step in range(1, 21):
        times.append(times[-1] + (1.5 if step % recovering.EVERY == 0 else 1.0))
    assert recovering.step_and_save(times) == (1.0, 0.5)


def test_every_attack_says_what_the_catalogue_wants_to_know() -> None:
    everything = [*in_memory.ATTACKS.values(), *outside.ATTACKS.values()]
    assert len(everything) == len({a.id for a in everything}) >= 29
    for attack in everything:
        assert len(attack.technique) == 2
        assert 1 <= int(attack.technique) <= 38
        assert attack.evidence
        assert attack.benign_twin
        carried_out = getattr(attack, "payload", None) or attack.act
        assert carried_out.__doc__


def test_payloads_import_nothing_when_they_are_read() -> None:
    """A sleeper executes the file as it is: what it imports at the top must be there in any Python."""
    tree = ast.parse((ROOT / "attacks" / "in_memory.py").read_text(encoding="utf-8"))
    imported = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert "torch" not in ast.dump(ast.Module(imported, []))


def test_a_changed_workload_is_said_and_not_measured_wrongly() -> None:
    loop = (ROOT / "workloads" / "chat" / "loop.py").read_text(encoding="utf-8")
    assert "trackio.log" in struck.tracked(loop)
    with pytest.raises(SystemExit, match="no longer prints its loss"):
        struck.tracked(loop.replace("print(", "say("))
