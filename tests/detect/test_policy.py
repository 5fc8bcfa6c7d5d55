"""Policy does what it says, and says when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwarden.config import Config, load_config
from trainwarden.detect.policy import action_by
from trainwarden.errors import UsageError
from trainwarden.model import Action, Confidence, Finding, Severity
from trainwarden.respond.answer import response_to


def finding(detector: str, severity: Severity = Severity.LOW) -> Finding:
    return Finding(detector=detector, severity=severity, confidence=Confidence.LOW, seen="", expected="")


def config(tmp_path: Path, text: str) -> Config:
    (tmp_path / "trainwarden.toml").write_text(text)
    return load_config(None, tmp_path)


def test_nothing_holds_or_stops_a_run_unless_policy_says_so() -> None:
    action_of = response_to(Config()).action_of
    assert {action_of(finding(d, Severity.HIGH)) for d in ("gaps", "replicas", "recorder", "engine")} == {Action.ALERT}


def test_each_detector_has_its_action_and_the_rest_that_of_default() -> None:
    action_of = action_by(
        {"default": Action.NOTE, "gaps": Action.STOP, "kills": Action.RECOVER}, ("gaps", "kills", "x")
    )
    assert [action_of(finding(d)) for d in ("gaps", "kills", "x")] == [Action.STOP, Action.RECOVER, Action.NOTE]


def test_a_finding_that_only_informs_never_acts() -> None:
    assert action_by({"default": Action.STOP}, ())(finding("gaps", Severity.INFO)) is Action.NOTE


def test_a_detector_that_nobody_knows_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    told = config(tmp_path, '[policy.detectors]\nreplica = "stop"\n')
    with pytest.raises(UsageError, match="'replica', which is no detector") as caught:
        response_to(told)
    assert "did you mean replicas" in caught.value.hint


@pytest.mark.parametrize(("word", "hint"), [("stopp", "did you mean stop?"), ("9", "an action is one of note, alert")])
def test_an_action_that_nobody_knows_is_an_error_that_names_the_nearest(tmp_path: Path, word: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"Invalid enum value '{word}'") as caught:
        config(tmp_path, f'[policy.detectors]\ngaps = "{word}"\n')
    assert hint in caught.value.hint
