"""Policy does what it says, and says when it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainwarden.config import Config, PolicyConfig, load_config
from trainwarden.detect import all_detectors
from trainwarden.detect.policy import action_by
from trainwarden.errors import UsageError
from trainwarden.log.client.shipper import SHIPPING, SPLIT_VIEW
from trainwarden.model import Action, Confidence, Finding, Severity
from trainwarden.respond.answer import OTHERS, response_to


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


def test_whatever_raises_findings_can_be_named_in_a_policy() -> None:
    raised: set[str] = {SHIPPING, SPLIT_VIEW}
    for path in (Path(__file__).parents[2] / "src").rglob("*.py"):
        raised |= set(re.findall(r'detector="([a-z_-]+)"', path.read_text(encoding="utf-8")))
    assert raised <= {*OTHERS, *(d.id for d in all_detectors())}
    response_to(Config(policy=PolicyConfig(detectors=dict.fromkeys(raised, Action.STOP))))
