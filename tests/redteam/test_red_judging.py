"""What counts as found: after the insider acted, by the walls that were asked, and at the place that was marked."""

from __future__ import annotations

import msgspec

from trainwarden.model import (
    Confidence,
    Coverage,
    Diverged,
    Entry,
    Finding,
    Location,
    Segment,
    Severity,
    Stage,
    StepRecord,
)
from trainwarden.redteam import judging
from trainwarden.redteam.interface import Effect, Evidence, When
from trainwarden.redteam.outcome import Effects, Found, Marked
from trainwarden.redteam.running import Ran

STRIKES = ("local_gradients",)
MARKS = [Marked(rank=1, step=60, wall_ns=10_000_000_000, tensor="w"), Marked(rank=1, step=61, wall_ns=11, tensor="w")]

TRUTH = judging.Truth(MARKS, STRIKES)


def record(step: int, at: float = 0.0, attempt: int = 0) -> StepRecord:
    return StepRecord(
        attempt=attempt, rank=0, world=2, step=step, optimizer=0, seq=step, stages={}, wall_ns=int(at * 1e9)
    )


def finding(detector: str, severity: Severity = Severity.HIGH, step: int = -1, ranks: tuple[int, ...] = ()) -> Finding:
    return Finding(
        detector=detector,
        severity=severity,
        confidence=Confidence.HIGH,
        seen=f"{detector}.",
        expected="",
        step=step,
        ranks=ranks,
    )


def ran(*entries: Entry, told: dict[str, float]) -> Ran:
    return Ran(runs=["r"], told=[(when, name, f"{name}.") for name, when in told.items()], entries={"r": entries})


def diverged(step: int, rank: int, stage: Stage, tensor: str) -> Diverged:
    at = Location(step=step, rank=rank, stage=stage, tensor=tensor)
    return Diverged(segment=Segment(attempt=0, first=0, last=90), at=at, coverage=Coverage())


def test_time_to_detect_is_from_the_first_tampered_step_to_the_finding() -> None:
    steps = record(59, 9.9), record(60, 10.05), record(61, 10.1)
    run = ran(*steps, finding("slow"), record(62, 10.3), finding("late"), told={"late": 10.5, "slow": 10.2})
    told = judging.findings(run, TRUTH)
    assert [(f.by, f.steps, f.seconds) for _, f in told] == [("slow", 1, 0.2), ("late", 2, 0.5)]


def test_steps_are_counted_over_a_restart_and_from_the_act_where_nothing_is_marked() -> None:
    run = ran(record(60, 9.9), record(61, 10.1), record(0, 12.0, attempt=1), finding("late"), told={"late": 12.5})
    run.acted.append(10.0)
    ((_, found),) = judging.findings(run, judging.Truth())
    assert (found.steps, found.seconds) == (2, 2.5)


def test_what_is_told_before_the_first_tampered_step_counts_as_at_once_and_notes_do_not_count() -> None:
    run = ran(record(55), finding("early"), finding("note", Severity.INFO), told={"early": 9.5, "note": 9.6})
    ((when, found),) = judging.findings(run, TRUTH)
    assert (when, found.steps, found.seconds) == (9.5, 0, 0.0)


def test_a_place_is_exact_when_it_agrees_with_the_marks() -> None:
    right, wrong = diverged(60, 1, Stage.LOCAL_GRADIENTS, "w"), diverged(60, 0, Stage.LOCAL_GRADIENTS, "w")
    other, later = diverged(60, 1, Stage.LOCAL_GRADIENTS, "v"), diverged(61, 1, Stage.LOCAL_GRADIENTS, "w")
    stage = diverged(60, 1, Stage.WEIGHTS, "w")
    told = judging.replayed([right, wrong, other, later, stage], TRUTH)
    assert [f.exact for f in told] == [True, False, False, False, False]
    assert [judging.located([f], MARKS) for f in told] == ["exact", "near", "near", "near", "near"]
    assert judging.located([], MARKS) == "no"


def test_what_a_finding_leaves_open_is_not_located() -> None:
    found = judging.replayed([diverged(60, 1, Stage.LOCAL_GRADIENTS, "w")], judging.Truth())[0]
    assert found.exact is None, "no truth to agree with"
    for change, exact in (({}, True), ({"ranks": ()}, False), ({"tensor": ""}, False), ({"stage": ""}, False)):
        assert judging.placed(msgspec.structs.replace(found, **change), TRUTH).exact is exact
    assert judging.placed(msgspec.structs.replace(found, step=-1), TRUTH).exact is None
    anywhere = judging.Truth([Marked(rank=1, step=60, wall_ns=1)])
    assert judging.placed(msgspec.structs.replace(found, tensor="", stage=""), anywhere).exact is True


def test_evidence_that_was_not_looked_for_leaves_it_undecided_and_silence_is_a_miss() -> None:
    replay = Evidence(When.AUDIT, "replay", "local_gradients", exact=("step", "rank", "tensor"))
    alarm = Evidence(When.LIVE, "alarm", needed=False)
    live = {When.LIVE, When.BEFORE_START}
    right = judging.replayed([diverged(60, 1, Stage.LOCAL_GRADIENTS, "w")], TRUTH)
    wrong = judging.replayed([diverged(60, 1, Stage.WEIGHTS, "w")], TRUTH)
    for found, looked, verdict in (
        (right, live | {When.AUDIT}, "found"),
        (wrong, live | {When.AUDIT}, "missed"),
        ([], live | {When.AUDIT}, "missed"),
        ([], live, "undecided"),
        ([Found(when="live", by="alarm")], live, "undecided"),
    ):
        expected = judging.compared((replay, alarm), found, MARKS, looked)
        assert judging.verdict(expected) == verdict
    states = [e.state for e in judging.compared((replay, alarm), right, MARKS, live | {When.AUDIT})]
    assert states == ["found", "silent"]


def test_an_attack_without_its_effect_is_no_sabotage_and_an_unmeasured_one_is_not_taken_for_one() -> None:
    assert judging.had(Effect.WEIGHTS, Effects(weights_differ=True)) is True
    assert judging.had(Effect.WEIGHTS, Effects(weights_differ=False)) is False
    assert judging.had(Effect.WEIGHTS, Effects()) is None
    assert judging.had(Effect.STEPS_TWICE, Effects(steps_twice=3)) is True
    assert judging.had(Effect.ENDED, Effects(exit_code=1)) is True
    assert judging.had(Effect.CODE_RAN, Effects()) is False


def test_a_check_of_verify_that_could_not_be_made_counts_only_where_it_is_expected() -> None:
    checks: dict[str, object] = {
        "r": {
            "checks": [
                {"name": "key", "result": {"type": "not checked", "reason": "no key"}},
                {"name": "records", "result": {"type": "not checked", "reason": "no end of the run"}},
                {"name": "log", "result": {"type": "failed", "reason": "cut"}},
                {"name": "seal", "result": {"type": "passed", "seen": "signed"}},
            ]
        }
    }
    assert [f.by for f in judging.failed_checks(checks)] == ["log"]
    found = judging.failed_checks(checks, {"records", "seal"})
    assert [(f.by, f.severity) for f in found] == [("records", "medium"), ("log", "high")]


def test_a_file_that_the_scan_refuses_is_found_and_one_that_it_does_not_understand_is_not() -> None:
    objection = {"part": "data.pkl", "offset": 2, "opcode": "GLOBAL", "name": "builtins exec", "why": "it runs"}
    files = [
        {"path": "a", "decision": {"type": "clean", "kind": "torch"}},
        {"path": "b", "decision": {"type": "undecided", "kind": "", "why": "too large"}},
        {"path": "c", "decision": {"type": "refused", "kind": "torch", "objections": [objection]}},
    ]
    (found,) = judging.refused_files({"files": files})
    assert (found.when, found.by, found.severity) == ("gate", "scan", "high")
    assert found.sentence == "c: GLOBAL builtins exec: it runs"
    assert judging.refused_files({}) == judging.refused_files(None) == []
