"""Public statements: each way to stand, what keeps one open, and clear errors."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from trainwarden import model as m
from trainwarden.config import DamageConfig
from trainwarden.errors import UsageError
from trainwarden.respond.account.account import account
from trainwarden.respond.account.claims import EXAMPLE, Claim, Held, Stand, hold, read_claims
from trainwarden.respond.account.columns import Cause, Job
from trainwarden.respond.account.lines import Account, Range, Served
from trainwarden.respond.account.served import served_in

sys.path.insert(0, str(Path(__file__).parent))
from test_account import job

KNOWN = DamageConfig(staff_hours=0, preempted_gpu_hours=0, prices={"low": 1.0, "high": 3600.0})


def struck(name: str = "struck", command: str = "train.py") -> Job:
    """Killed by a named process: 22 s of four ranks are lost for certain."""
    killed = job([(0, 0, [2.0] * 6, 5), (30, 4, [2.0] * 4, 0)], {0: Cause.SENDER}, name=name)
    return replace(killed, command=(command,))


def unharmed(name: str = "quiet", command: str = "train.py") -> Job:
    return replace(job([(0, 0, [2.0] * 6, 0)], name=name), command=(command,))


def measured(*jobs: Job) -> Account:
    """With an honest run of each command, so that nothing of the compute lines is open."""
    honest = [replace(unharmed(f"honest-{i}"), command=j.command) for i, j in enumerate(jobs)]
    return account(jobs, KNOWN, honest=honest)


def stand(found: Account, **claim: object) -> Held:
    return hold(Claim(id="c", text="It was so.", **claim), found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ({"more_than": 20.0}, Stand.UNDETERMINED),
        ({"more_than": 0.02}, Stand.SUPPORTED),
        ({"more_than": 88.1}, Stand.REFUTED),
        ({"at_least": 0.02}, Stand.SUPPORTED),
        ({"at_least": 88.1}, Stand.REFUTED),
        ({"at_most": 88.1}, Stand.SUPPORTED),
        ({"at_most": 0.02}, Stand.REFUTED),
        ({"less_than": 88.1}, Stand.SUPPORTED),
        ({"less_than": 0.02}, Stand.REFUTED),
        ({"less_than": 20.0}, Stand.UNDETERMINED),
    ],
)
def test_a_statement_stands_or_falls_with_the_whole_interval(bound: dict[str, float], expected: Stand) -> None:
    found = measured(struck())
    assert found.unknown == ()
    assert (found.cost.low, found.cost.high) == (pytest.approx(88 / 3600), pytest.approx(88.0, abs=0.01))
    assert stand(found, measure="cost", **bound).stand is expected


def test_what_is_not_known_keeps_a_statement_from_being_refuted_and_not_from_being_supported() -> None:
    found = account([struck()], DamageConfig())
    told = stand(found, measure="gpu_hours", more_than=1e9)
    assert told.stand is Stand.UNDETERMINED
    assert "the highest value is open" in told.why
    assert any("staff" in text for text in told.missing)
    assert stand(found, measure="gpu_hours", more_than=0.01).stand is Stand.SUPPORTED


def test_a_record_that_nobody_has_keeps_a_statement_from_being_supported_and_not_from_being_refuted() -> None:
    needs = ("the log of what was served",)
    quiet = stand(measured(unharmed()), measure="jobs_affected", at_most=0, needs=needs)
    assert (quiet.stand, quiet.missing) == (Stand.UNDETERMINED, needs)
    assert stand(measured(struck()), measure="jobs_affected", at_most=0, needs=needs).stand is Stand.REFUTED
    assert stand(measured(unharmed()), measure="jobs_affected", at_most=0).stand is Stand.SUPPORTED


def test_a_statement_is_held_against_the_jobs_that_it_is_about() -> None:
    found = measured(struck("a", "ranking/train.py"), unharmed("b", "chat/train.py"))
    about = stand(found, measure="jobs_affected", at_most=0, jobs=("*ranking*",))
    assert (about.stand, about.evidence) == (Stand.REFUTED, ("a",))
    assert stand(found, measure="jobs_affected", at_most=0, jobs=("*chat*",)).stand is Stand.SUPPORTED
    assert stand(found, measure="gpus_disrupted", at_least=4, jobs=("a",)).stand is Stand.SUPPORTED
    silent = stand(found, measure="jobs_affected", at_most=0, jobs=("*video*",))
    assert (silent.stand, silent.measured) == (Stand.UNDETERMINED, None)  # silence is no evidence


def test_serving_is_affected_by_what_it_was_given_and_not_by_what_was_trained() -> None:
    def served(*tainted: Range) -> Account:
        given = tuple(Served(name="feed", digest=f"d{i}", tainted=r) for i, r in enumerate(tainted))
        return msgspec.structs.replace(measured(struck()), served=given)

    def told(found: Account, **more: object) -> Stand:
        return stand(found, measure="served_tainted", at_most=0, **more).stand

    assert told(served(Range(), Range())) is Stand.SUPPORTED
    assert told(served(Range(), Range(1, 1, 1))) is Stand.REFUTED
    assert told(served(Range(), Range(0, 0, 1))) is Stand.UNDETERMINED
    assert told(served()) is Stand.UNDETERMINED  # nothing went through the gate: silence is no evidence
    assert told(served(Range(1, 1, 1)), jobs=("chat",)) is Stand.UNDETERMINED


def test_what_serving_was_given_is_read_off_the_gates_log() -> None:
    def cleared(digest: str, run: str, until: dict[str, int]) -> m.CheckpointCleared:
        seen = (m.RunSeen(run=run, key="", size=1, root="", until=until),)
        return m.CheckpointCleared(digest=digest, place="", policy="", findings=m.Severity.HIGH, runs=seen)

    def promoted(digest: str, seconds: int) -> m.Promoted:
        return m.Promoted(name="feed", digest=digest, cleared=0, wall_ns=seconds * 10**9)

    bad = replace(struck("run"), tainted={3: 5}, offsets={"first": 0, "run": 2}, runs=("first", "run"))
    log = [
        cleared("before", "run", {"1": 5}), cleared("after", "run", {"1": 6}), cleared("other", "elsewhere", {"0": 9}),
        promoted("before", 10), promoted("after", 20), promoted("other", 30), promoted("before", 40),
    ]  # fmt: skip
    found = {s.digest: s.tainted for s in served_in(log, [bad], 0, 100)}
    assert found == {"before": Range(), "after": Range(1, 1, 1), "other": Range(0, 0, 1)}
    assert [s.digest for s in served_in(log, [bad], 32, 38)] == ["other"]
    assert [s.digest for s in served_in(log, [bad], 45, 99)] == ["before"]


def test_an_unaudited_job_is_not_said_to_be_unaffected() -> None:
    found = measured(replace(unharmed(), unaudited=6))
    assert stand(found, measure="jobs_affected", at_most=0).stand is Stand.UNDETERMINED


def test_the_five_statements_of_the_case_ship_as_the_example() -> None:
    claims = read_claims(EXAMPLE)
    assert [c.id for c in claims] == [
        "thousands-of-gpus",
        "ten-million",
        "commercial-unaffected",
        "large-models-unaffected",
        "not-on-the-lab-team",
    ]
    last = hold(claims[-1], measured(struck()))
    assert (last.stand, last.missing) == (Stand.UNDETERMINED, claims[-1].needs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("claim = 3", "array"),
        ("[[claim]\n", "not valid TOML"),
        ('[[claim]]\nid="a"\ntext="b"', "measure"),
        ('[[claim]]\nid="a"\ntext="b"\nmeasure="guilt"', "guilt"),
        ('[[claim]]\nid="a"\ntext="b"\nmeasure="cost"', "0 bounds"),
        ('[[claim]]\nid="a"\ntext="b"\nmeasure="cost"\nmore_than=1\nat_most=2', "2 bounds"),
        ('[[claim]]\nid="a"\ntext="b"\nmeasure="cost"\nmore_than=inf', "no number"),
        ('[[claim]]\nid="a"\ntext="b"\nmeasure="none"', "needs"),
        ('[[claim]]\nid="a"\ntext="b"\nmeasure="none"\nneeds=["x"]\n' * 2, "twice"),
        ('[[claim]]\nid="a"\ntext="b"\nmeasure="cost"\nmore_then=1', "more_then"),
    ],
)
def test_a_wrong_file_of_statements_says_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        read_claims(path)
    assert "docs/damage.md#claims" in error.value.hint


def test_a_file_of_statements_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_claims(tmp_path / "none.toml")
