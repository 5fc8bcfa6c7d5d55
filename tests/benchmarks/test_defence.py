"""The defence benchmark counts what it says that it counts; nothing is trained here."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks import defence, defence_report, recovering
from trainwarden.model import Coverage, Matched, RunEnded, Segment, StepRecord
from trainwarden.redteam import catalogue
from trainwarden.redteam.interface import Moment
from trainwarden.redteam.outcome import Expected, Found, Outcome
from trainwarden.redteam.workloads import workload


def record(step: int) -> StepRecord:
    return StepRecord(attempt=0, rank=0, world=2, step=step, optimizer=0, seq=step, stages={})


def at(step: int, seconds: float) -> StepRecord:
    return msgspec.structs.replace(record(step), wall_ns=int(seconds * 1e9))


def found(detector: str, seconds: float | None, when: str = "live") -> Found:
    return Found(when=when, by=detector, severity="high", sentence=f"{detector}.", steps=1, seconds=seconds)


def test_a_row_has_what_detectors_told_first_and_names_those_that_were_expected_and_silent() -> None:
    done = Outcome(
        kind="attack", technique="24", workload="chat", seed=0, verdict="missed", runs=("r",),
        found=(found("late", 0.5), found("early", 0.0), found("replay", None, "audit")),
        false=(found("false", 0.0),),
        expected=(
            Expected(when="live", by="late", stage="", needed=True, state="found"),
            Expected(when="live", by="quiet", stage="", needed=True, state="silent"),
            Expected(when="audit", by="replay", stage="weights", needed=True, state="not checked"),
        ),
    )  # fmt: skip
    row = defence.row_of("24/half", "sparse-zero", done)
    assert [(f["detector"], f["seconds"]) for f in row["live"]] == [("early", 0.0), ("late", 0.5)]
    assert ([f["detector"] for f in row["before"]], row["silent"]) == (["false"], ["quiet"])
    assert row["evidence"] == ["late", "quiet", "audit: weights"]
    assert row["struck"]


def test_an_attack_that_was_not_carried_out_is_not_counted() -> None:
    refused = Outcome(kind="attack", technique="24", workload="chat", seed=0, verdict="not carried out")
    row = defence.row_of("24/half", "sparse-zero", refused)
    assert row["struck"] is False
    assert defence.summed([row])["attacks"] == 0


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
    assert recovering.ettr(1.0, 0.0, 0.0) == 1.0
    assert recovering.ettr(1.0, 100.0, 100.0) == 0.5
    assert recovering.ettr(6.34, 10.0, 3.0) > 0.97 > recovering.ettr(0.7, 10.0, 3.0)


def test_overhead_is_no_part_of_effective_training_time_and_counted_beside_it() -> None:
    # A step takes 1 s alone and 1.25 s guarded; the attack costs 2 steps and 10 s, which end with a guarded step.
    honest = {"took": dict.fromkeys(range(4, 22), 1.0), "guarded_over_plain": [1.25] * 18, "digest": "a", "loss": 1.0}
    stops = [{"seconds": 11.25, "replayed": 0.0}]
    steps = recovering.STEPS + 2
    defended = {**honest, "stops": stops, "steps": steps, "wall_s": 40.0, "recoveries": 1, "struck": 1}
    found = recovering.summed(honest, {**honest, "digest": "b"}, defended)
    assert found["seconds_lost_per_attack"] == 10.0
    assert found["ettr_pct"] == round(100 * 250 / (252.5 + 10), 1)
    assert found["ettr_and_overhead_pct"] == round(100 * 200 / (252.5 + 10), 1)
    assert found["final_state_equals_honest_run"]
    assert not found["final_state_without_defence_equals_honest_run"]


def test_what_a_recovery_costs_is_from_the_last_step_before_it_to_the_first_after_it() -> None:
    segment = Segment(attempt=0, first=10, last=19)
    replayed = Matched(segment=segment, coverage=Coverage(records=20, digests=1), mode="start", seconds=1.0)
    before = [at(19, 5.0), replayed, RunEnded(code=1, records=1, wall_ns=0), replayed]
    assert recovering.stops_between([before, [at(10, 9.5), at(11, 9.6)]]) == [{"seconds": 4.5, "replayed": 10.0}]
    assert recovering.stops_between([before]) == []


def test_a_step_is_timed_without_the_checkpoint_that_is_saved_before_the_next() -> None:
    took = {step: 1.5 if (step - 1) % recovering.EVERY == 0 else 1.0 for step in range(4, 22)}
    assert recovering.step_and_save(took) == (1.0, 0.5)


def test_every_measured_attack_is_in_the_catalogue_and_fits_its_workload() -> None:
    assert len(defence.ATTACKS) == len(set(defence.ATTACKS)) == 29
    for name in defence.ATTACKS:
        _, variant = catalogue.find(defence.TECHNIQUES, name)
        assert variant is not None
        job = workload("chat-long" if "long" in variant.needs else "chat")
        assert set(variant.needs) <= job.has


def test_a_strike_of_the_recovery_bench_is_put_and_taken_away_once() -> None:
    acts = [a for a in recovering.struck_once(recovering.STRIKES) if a.moment is Moment.STEP]
    steps = [recovering.JOB.first + a.step - (recovering.JOB.lead if a.ahead else 0) for a in acts]
    assert steps == [at for strike in recovering.STRIKES for at in (strike - 8, strike)]
