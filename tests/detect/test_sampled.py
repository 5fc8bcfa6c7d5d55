"""Units of the sampled audit: what differs is told as strongly as it is known, and what matches is silent."""

from __future__ import annotations

import pytest

from trainwarden.detect.sampled import SampledUnits
from trainwarden.model import Confidence, Finding, Location, Severity, Stage, UnitAudited, UnitKind, UnitResult

AT = Location(step=9, rank=1, stage=Stage.LOCAL_GRADIENTS, tensor="w")


def told(result: UnitResult, at: Location | None = AT, reasons: tuple[str, ...] = ("too many steps",)) -> list[Finding]:
    unit = UnitAudited(
        attempt=0, step=9, rank=1, kind=UnitKind.NEAR, result=result, at=at, draw=4, reasons=reasons, wall_ns=5
    )
    return list(SampledUnits().observe(17, unit, None))


def test_a_unit_that_exact_replays_convict_is_an_alert() -> None:
    (found,) = told(UnitResult.DIVERGED)
    assert (found.severity, found.confidence) == (Severity.HIGH, Confidence.HIGH)
    assert (found.step, found.ranks, found.stage, found.tensor) == (9, (1,), Stage.LOCAL_GRADIENTS, "w")
    assert found.evidence == (4, 17), "the draw and what came of it"


def test_a_difference_that_only_a_kept_state_shows_is_no_alarm() -> None:
    (found,) = told(UnitResult.DIFFERS)
    assert (found.severity, found.confidence) == (Severity.LOW, Confidence.LOW)
    assert "too many steps" in found.seen
    assert "a counter, a curriculum" in found.benign[0]


@pytest.mark.parametrize("before", [False, True])
def test_a_kept_state_that_does_not_lead_to_what_is_exact_is_told_once_as_low(before: bool) -> None:
    at = Location(step=9, rank=1, stage=Stage.WEIGHTS, before=before)
    (found,) = told(UnitResult.MATCHED, at)
    assert found.severity is Severity.LOW
    assert ("state kept" in found.seen) is before


@pytest.mark.parametrize("result", [UnitResult.MATCHED, UnitResult.UNDECIDED])
def test_what_matched_or_was_not_decided_is_silent(result: UnitResult) -> None:
    assert told(result, None) == []
