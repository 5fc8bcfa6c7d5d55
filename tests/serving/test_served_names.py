"""What a catalogue keeps of earlier looks, and that a broken gate's log hides no incident."""

from __future__ import annotations

import msgspec
import pytest
from gated import NAME, Gated, finding

from trainwarden.custody import ledger as custody
from trainwarden.errors import GateTampered, NotCleared, UsageError
from trainwarden.gate import incidents, troubles
from trainwarden.gate.ledger import read_gate
from trainwarden.gate.registry import served
from trainwarden.log.following import LogFollower
from trainwarden.model import CheckpointManifest, Severity
from trainwarden.serving import catalogue
from trainwarden.serving.catalogue import GateCatalogue
from trainwarden.serving.offers import Version, worth_holding


def test_a_broken_gate_log_hides_no_incident(gated: Gated) -> None:
    digest = gated.promote(gated.checkpoint(1))
    asked = GateCatalogue(gated.store, NAME, gated.config)
    assert asked.look().trouble == ""
    (gated.store.path / "gate" / "log" / "head").write_bytes(b"broken")
    gated.log(finding("found while the gate cannot be asked", step=3))
    offer = asked.look()
    assert "does not verify" in offer.trouble
    assert [(v.digest, len(v.open)) for v in offer.versions] == [(digest, 1)]
    with pytest.raises(GateTampered):
        GateCatalogue(gated.store, NAME, gated.config).look()


def test_the_stamp_changes_with_every_log_that_counts_and_with_nothing_else(gated: Gated) -> None:
    gated.promote(gated.checkpoint(1))
    asked = GateCatalogue(gated.store, NAME, gated.config)
    stamps = [asked.look().stamp]
    assert asked.stamp() == stamps[0]
    gated.checkpoint(2)
    assert asked.stamp() == stamps[0]
    gated.log(finding("x", 3, Severity.LOW))
    stamps.append(asked.stamp())
    gated.promote(gated.folder / "step-000002", name="another")
    stamps.append(asked.stamp())
    assert len(set(map(str, stamps))) == 3


def test_what_is_followed_is_what_a_look_from_the_start_finds(gated: Gated) -> None:
    gated.promote(gated.checkpoint(1))
    asked = GateCatalogue(gated.store, NAME, gated.config)
    asked.look()
    for step, severity in ((3, Severity.HIGH), (4, Severity.LOW), (500, Severity.HIGH), (5, Severity.HIGH)):
        gated.log(finding(f"at {step}", step, severity))
        (version,) = asked.look().versions
        (promotion,) = served(read_gate(gated.store), NAME)
        assert version.open == troubles.against(gated.store, promotion.clearance)
    assert len(version.open) == 2


def test_a_look_reads_each_log_once_for_all_versions_and_no_run_that_is_not_needed(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(gated.folder / "key"))
    gated.promote(gated.checkpoint(1))
    old = gated.run
    for value in range(2, 8):
        gated.begin_run()
        gated.promote(gated.checkpoint(value))
    gated.promote_lost(30)
    read: list[str] = []
    real, real_log = incidents.read_custody, LogFollower.new
    monkeypatch.setattr(incidents, "read_custody", lambda store: (read.append("custody"), real(store))[1])
    monkeypatch.setattr(LogFollower, "new", lambda self: (read.append(self._folder.parent.name), real_log(self))[1])
    asked = GateCatalogue(gated.store, NAME, gated.config)
    offer = asked.look()
    assert (len(offer.versions), offer.more) == (34, True), "until four stand on different runs"
    assert sorted(read) == sorted(set(read))
    assert old not in read
    read.clear()
    by = custody.signer(gated.store)
    custody.add_to(gated.store, by, custody.open_incident(gated.store, by, "case 7").id, runs=[gated.run])
    versions = asked.look().versions
    assert [len(v.open) for v in versions] == [1] * 31 + [0] * 4
    assert read.count("custody") == 1
    read.clear()
    asked.look()
    assert read == []


def test_beside_the_newest_is_held_what_stands_on_the_fewest_of_its_runs() -> None:
    def version(digest: str, runs: str, against: str = "") -> Version:
        found = (against,) if against else ()
        return Version(digest=digest, manifest=CheckpointManifest(files=()), place="", runs=frozenset(runs), open=found)

    def held(*versions: Version) -> str:
        return "".join(v.digest for v in worth_holding(versions))

    assert held() == ""
    assert held(version("5", "b", "open"), version("4", "ab")) == "4"
    assert (
        held(version("5", "ab"), version("4", "ab"), version("3", "b"), version("2", "c"), version("1", "c")) == "52431"
    )
    assert held(version("5", "ab"), version("4", "ab"), version("3", "ab")) == "543"


def test_the_last_seen_head_is_kept_and_a_damaged_one_is_not_passed_over(gated: Gated) -> None:
    gated.promote(gated.checkpoint(1))
    asked = GateCatalogue(gated.store, NAME, gated.config)
    with pytest.raises(NotCleared):
        GateCatalogue(Gated(gated.folder / "empty").store, NAME, gated.config).look()
    asked.look()
    kept = catalogue.state_file(gated.store, gated.config.serving.state)
    assert msgspec.json.decode(kept.read_bytes(), type=catalogue.Seen).size == 3
    kept.write_bytes(b"{}")
    with pytest.raises(UsageError, match="cannot be read"):
        GateCatalogue(gated.store, NAME, gated.config).look()
