"""Findings of one cause are one alert; findings of two causes are two."""

from __future__ import annotations

from trainwarden.detect.causes import GOES_ON, KEPT, OPEN, Causes, alerts_of
from trainwarden.model import Alert, Confidence, Finding, Severity, Stage

SECOND = 1_000_000_000


def finding(detector: str, seen: str = "Something.", **kwargs: object) -> Finding:
    given = {"severity": Severity.HIGH, "confidence": Confidence.HIGH, "expected": "", "attempt": 0} | kwargs
    return Finding(detector=detector, seen=seen, **given)  # type: ignore[arg-type]


def alerts(*findings: Finding) -> list[Alert]:
    return alerts_of(enumerate(findings))


def test_one_tampered_tensor_seen_by_three_detectors_is_one_alert() -> None:
    (alert,) = alerts(
        finding("replicas", "Ranks 0 and 1 differ.", step=12, ranks=(0, 1), stage=Stage.WEIGHTS, tensor="w"),
        finding("update", "No update makes w.", step=12, ranks=(1,), stage=Stage.REDUCED_GRADIENTS, tensor="w"),
        finding("continuity", "Began with other weights.", step=13, ranks=(1,), stage=Stage.WEIGHTS, tensor="w"),
    )
    assert alert.detectors == ("replicas", "update", "continuity")
    assert (alert.findings, alert.count) == ((0, 1, 2), 3)
    assert (alert.ranks, alert.first_step, alert.last_step) == ((0, 1), 12, 13)
    assert alert.title == "No update makes w. Seen also by replicas, continuity."


def test_a_change_at_one_stage_shows_in_other_tensors_at_later_stages() -> None:
    (alert,) = alerts(
        finding("batch", "Another batch.", step=5, ranks=(0,), stage=Stage.BATCH),
        finding("replicas", "Other gradients of v.", step=5, stage=Stage.REDUCED_GRADIENTS, tensor="v"),
    )
    assert alert.title.startswith("Another batch.")


def test_steps_far_apart_and_attempts_are_causes_of_their_own() -> None:
    at = {"stage": Stage.WEIGHTS, "tensor": "w"}
    found = alerts(
        finding("replicas", step=12, **at),
        finding("continuity", "Other weights.", step=40, **at),
        finding("continuity", "Other weights.", step=12, **(at | {"attempt": 1})),
    )
    assert [a.id for a in found] == ["a1", "a2", "a3"]


def test_the_same_finding_on_every_rank_is_one_alert() -> None:
    told = [
        finding("patched", f"Rank {r}: step of /env/torch/optim.py was replaced.", step=1, ranks=(r,))
        for r in (0, 1, 2)
    ]
    (alert,) = alerts(*told)
    assert (alert.ranks, alert.count) == ((0, 1, 2), 3)
    assert alert.title.endswith("And 2 more of this kind.")


def test_what_goes_on_is_one_alert_and_what_comes_back_later_another() -> None:
    going_on = [
        finding("replicas", f"At step {s} ranks differ.", step=s, stage=Stage.WEIGHTS) for s in range(3, 60, GOES_ON)
    ]
    later = finding("replicas", "At step 300 ranks differ.", step=300, stage=Stage.WEIGHTS)
    found = alerts(*going_on, later)
    assert [a.count for a in found] == [len(going_on), 1]


def test_ten_files_changed_within_seconds_are_one_alert() -> None:
    told = [
        finding(
            "environment", f"The file /env/lib/m{i}.py was changed, by process {i}.", attempt=-1, wall_ns=i * SECOND
        )
        for i in range(10)
    ]
    (alert,) = alerts(*told)
    assert alert.count == 10


def test_files_changed_at_other_times_are_alerts_of_their_own_whatever_program_wrote_them() -> None:
    by = "by process {} of user 1000 (/usr/bin/python3 x.py)"
    told = [
        finding(
            "environment", f"The file /env/{n}.py was changed, {by.format(i)}.", attempt=-1, wall_ns=i * 60 * SECOND
        )
        for i, n in enumerate("ab")
    ]
    assert len(alerts(*told)) == 2


def test_a_file_that_is_changed_and_then_runs_is_one_alert_whenever_it_runs() -> None:
    (alert,) = alerts(
        finding("environment", "The code file /job/train.py was changed after the seal (aa → bb).", attempt=-1),
        finding("patched", "loss of /job/train.py:12 is not what it says.", step=900, wall_ns=900 * SECOND),
    )
    assert alert.detectors == ("environment", "patched")


def test_ranks_killed_together_are_one_alert_and_the_silence_of_one_belongs_to_it() -> None:
    (alert,) = alerts(
        finding("kills", "Rank 0 was killed.", ranks=(0,), wall_ns=SECOND),
        finding("kills", "Rank 1 was killed.", ranks=(1,), wall_ns=2 * SECOND),
        finding("gaps", "Rank 1 is silent.", ranks=(1,), wall_ns=3 * SECOND, severity=Severity.LOW),
    )
    assert alert.severity is Severity.HIGH


def test_gaps_and_dynamics_of_one_moment_are_not_one_cause() -> None:
    found = alerts(
        finding("gaps", "The log was full.", attempt=-1, wall_ns=SECOND),
        finding("dynamics", "The loss jumped.", step=9, wall_ns=SECOND),
    )
    assert len(found) == 2


def test_findings_that_only_inform_make_no_alert() -> None:
    assert alerts(finding("update", "Not checked.", severity=Severity.INFO)) == []


def test_severity_and_confidence_rise_and_never_fall() -> None:
    at = {"step": 3, "stage": Stage.WEIGHTS}
    (alert,) = alerts(
        finding("a", severity=Severity.LOW, confidence=Confidence.LOW, benign=("x",), **at),
        finding("b", severity=Severity.HIGH, confidence=Confidence.MEDIUM, benign=("x", "y"), **at),
        finding("c", severity=Severity.MEDIUM, confidence=Confidence.LOW, **at),
    )
    assert (alert.severity, alert.confidence, alert.benign) == (Severity.HIGH, Confidence.MEDIUM, ("x", "y"))


def test_a_flood_is_bounded() -> None:
    causes = Causes()
    for i in range(10 * OPEN):
        causes.add(i, finding(f"d{i}", f"Word{'x' * i}.", step=i * 100, stage=Stage.WEIGHTS))
    assert len(causes._open) == OPEN
    for i in range(10 * KEPT):
        alert = causes.add(i, finding("one", f"See /f/{i} and /same.", ranks=(i,)))
    assert (alert.count, len(alert.findings), len(alert.ranks)) == (10 * KEPT, KEPT, KEPT)
