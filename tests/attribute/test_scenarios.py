"""Scripted incidents with known truth: nobody is named who did not do it, and what cannot be told is not told."""

from __future__ import annotations

import functools

import msgspec
import pytest

from benchmarks.incident import attributed, judged
from benchmarks.incidents import (
    SCENARIOS,
    deeds,
    framing_seen,
    insider_alone,
    stolen_account,
    stolen_blind,
)
from benchmarks.world import BEGIN, DAY, HOUR, LIBRARY, World
from trainwarden.attribute.nouns import Attribution, Conclusion, Grade, Kind, Presence, Weight
from trainwarden.model import SourceKind

NAMES = [make.__name__ for make in SCENARIOS]


@functools.cache
def told(name: str) -> Attribution:
    return attributed(next(make for make in SCENARIOS if make.__name__ == name)())


@pytest.mark.parametrize("name", NAMES)
def test_no_false_accusation_and_the_truth_where_records_can_tell(name: str) -> None:
    scenario = next(make for make in SCENARIOS if make.__name__ == name)()
    leading = told(name).conclusion.leading
    if scenario.decidable:
        assert leading == scenario.truth
    else:
        assert leading is None
    if leading is not None and leading.kind in (Kind.INSIDER, Kind.INSTRUCTED):
        assert leading.account not in scenario.innocent
    assert not judged(scenario)["false_accusation"]


@pytest.mark.parametrize("name", NAMES)
def test_a_conclusion_is_of_an_account_and_says_what_is_not_known(name: str) -> None:
    scenario = next(make for make in SCENARIOS if make.__name__ == name)()
    conclusion = told(name).conclusion
    assert "guilt" not in conclusion.sentence
    assert conclusion.level != "person"  # nothing in these records binds one
    assert conclusion.missing
    if conclusion.leading is None:
        assert conclusion.reasons
        assert conclusion.sentence.startswith("The evidence does not decide")
        assert conclusion.grade not in (Grade.LIKELY, Grade.STRONG)
    elif conclusion.leading.account:
        assert "This is about the account" in conclusion.sentence
    assert len({s.hypothesis.kind for s in told(name).hypotheses}) >= 3
    assert scenario.name == name


def test_exculpatory_evidence_has_its_own_place_whoever_is_suspected() -> None:
    framed = told("framing_seen")
    assert {p.sentence for p in framed.pieces if "omar" in p.exculpates}
    by_hypothesis = {(s.hypothesis.kind, s.hypothesis.account): s.grade for s in framed.hypotheses}
    assert by_hypothesis[Kind.INSIDER, "omar"] is Grade.EXCLUDED
    assert by_hypothesis[Kind.FRAMING, "omar"] is Grade.STRONG
    away = next(p for p in told("stolen_account").pieces if "absent" in p.sentence)
    assert away.exculpates == ("omar",)
    assert Weight.STRONGLY_AGAINST in away.weights.values()
    ran = next(p for p in told("victim_runs_payload").pieces if "a job of noor" in p.sentence)
    assert ran.exculpates == ("noor",)


def test_the_missing_record_is_the_one_that_would_decide() -> None:
    missing = {name: told(name).conclusion.missing[0] for name in NAMES if told(name).conclusion.leading is None}
    assert "second factor" in missing["stolen_blind"]
    assert "kept on another host" in missing["framing_in_session"]
    assert "two sources that say who wrote it" in missing["nobody_recorded"]
    assert "second factor" in missing["shared_account"]


def test_the_missing_second_factor_once_found_decides() -> None:
    """The same story as `stolen_blind`, had its holder really done it and the login service kept its factors."""
    assert told("stolen_blind").conclusion.leading is None
    world = World()
    deeds(world, "omar", factor=True)
    found = world.scenario("found", "", told("insider_alone").hypotheses[0].hypothesis)
    assert attributed(found).conclusion.leading == found.truth


def test_a_person_is_said_only_where_a_record_binds_one_to_every_deed() -> None:
    world = World()
    world.say(0, "holds", account="omar", person="P1", kind="person")
    days = (6, 8, 10, 13)
    deeds(world, "omar", days=days)
    for day in days[:-1]:
        t = day * DAY + 19 * HOUR
        world.say(t, "present", until=t + 3 * HOUR, person="P1", binding="in_person", note="badge with a picture")
    almost = attributed(world.scenario("almost", "", told("insider_alone").hypotheses[0].hypothesis)).conclusion
    assert almost.level == "account and its second factor"
    t = days[-1] * DAY + 19 * HOUR
    world.say(t, "present", until=t + 3 * HOUR, person="P1", binding="in_person", note="badge with a picture")
    whole = attributed(world.scenario("whole", "", told("insider_alone").hypotheses[0].hypothesis)).conclusion
    assert whole.level == "person"


def test_evidence_taken_away_never_makes_a_conclusion_firmer_against_anybody() -> None:
    """Removing any one file of records from any of these cannot make it name somebody else."""
    for make in (insider_alone, framing_seen, stolen_blind):
        scenario = make()
        for gone in scenario.records:
            kept = tuple(r for r in scenario.records if r is not gone)
            leading = attributed(scenario._replace(records=kept)).conclusion.leading
            assert leading is None or leading == scenario.truth or leading.kind not in (Kind.INSIDER, Kind.INSTRUCTED)


def test_matrix_has_every_account_and_only_one_acting() -> None:
    whole = told("insider_alone")
    rows = {r.account: r for r in whole.matrix}
    assert {"omar", "vera", "noor", "ipsen"} <= rows.keys()
    assert all(len(r.cells) == len(whole.deeds) == 4 for r in whole.matrix)
    assert {c.presence for c in rows["omar"].cells} == {Presence.ACTING}
    assert Presence.ACTING not in {c.presence for r in whole.matrix for c in r.cells if r.account != "omar"}
    assert {c.presence for c in rows["vera"].cells} == {Presence.NOT_SEEN}
    assert (rows["omar"].disclosures, rows["omar"].followed, rows["omar"].holder) == (4, 4, "P1")


def test_clocks_are_measured_against_each_other_and_what_shares_nothing_says_so() -> None:
    whole = told("insider_alone")
    by_kind = {r.name: r.kind for r in insider_alone().records}
    assert SourceKind.TELEPORT in by_kind.values()
    measured = [c for c in whole.clocks if c.shared]
    unmeasured = [c for c in whole.clocks if not c.shared and c.error_ns]
    assert len(measured) >= 4
    assert len(unmeasured) == 1  # statements: people's own watches
    behind = min(c.offset_ns for c in measured)
    assert behind == pytest.approx(-7.65e9, abs=5e7)  # Teleport's clock against that of the node


def test_earliest_line_with_the_digest_of_an_artefact_is_found() -> None:
    trace = told("honest_mistake").traces[0]
    assert trace.earliest is not None
    assert trace.earliest.digest.startswith("git:")
    assert trace.earliest.time_ns // 1_000_000_000 - BEGIN == 8 * DAY + 10 * HOUR


def test_attribution_is_json_that_reads_back() -> None:
    whole = told("victim_runs_payload")
    data = msgspec.json.encode(whole)
    assert msgspec.json.decode(data, type=Attribution) == whole
    assert isinstance(whole.conclusion, Conclusion)


def test_the_same_records_twice_in_another_form_are_no_second_source() -> None:
    """Sessions and kernel events gone, the host's audit alone is left: copies of it do not make it two."""
    scenario = insider_alone()
    audit = next(r for r in scenario.records if r.name == "audit.log")
    copies = tuple(audit._replace(name=f"audit.log.{n}", data=audit.data + b"\n" * n) for n in range(3))
    told_twice = attributed(scenario._replace(records=copies))
    assert max(p.independent for p in told_twice.pieces if "the account omar wrote" in p.sentence) == 1
    assert told_twice.conclusion.leading is None


def test_a_statement_that_its_subject_could_have_made_does_not_clear_and_a_forged_one_does_not_name() -> None:
    scenario = stolen_account()
    anybodys = tuple(r._replace(editors=("*",)) if r.name == "statements.jsonl" else r for r in scenario.records)
    away = next(p for p in attributed(scenario._replace(records=anybodys)).pieces if "absent" in p.sentence)
    assert Weight.STRONGLY_AGAINST not in away.weights.values()
    assert (away.independent, away.exculpates) == (0, ("omar",))
    login = tuple(r._replace(editors=("*",)) if r.name == "teleport.json" else r for r in insider_alone().records)
    assert attributed(insider_alone()._replace(records=login)).conclusion.leading is None


@pytest.mark.parametrize("victim", ["omar", "noor"])
def test_whatever_is_written_where_anybody_could_write_names_nobody(victim: str) -> None:
    """Audit, logins and histories of a host, owners and statements, all saying the same of somebody innocent."""
    world = World(tetragon=False)
    deeds(world, victim)
    for n in range(4):
        path, t = f"{LIBRARY}part{n}.py", 14 * DAY + n * 60
        world.put("find.txt", t, f"{BEGIN + t:.10f} {BEGIN + t + 1:.10f} {victim} 644 900 {path}")
        world.put(f"{victim}.bash_history", t, f"#{BEGIN + int(t) - DAY}\nvim {path}")
        world.say(t, "write", account=victim, path=path, host="node3", note="I saw it")
        world.say(t - DAY, "disclose", account=victim, note="told in the meeting")
    world.say(0, "holds", account=victim, person="P9", kind="person")
    forged = world.scenario("forged", "", told("insider_alone").hypotheses[0].hypothesis)
    anybodys = tuple(r._replace(editors=("*",)) if r.name == "statements.jsonl" else r for r in forged.records)
    conclusion = attributed(forged._replace(records=anybodys)).conclusion
    assert conclusion.leading is None
    assert any("others could have made it" in reason for reason in conclusion.reasons)
