"""What a catalogue keeps of earlier looks, and that a broken gate's log hides no incident."""

from __future__ import annotations

import msgspec
import pytest
from gated import NAME, Gated, finding

from trainwarden.errors import GateTampered, NotCleared, UsageError
from trainwarden.gate import troubles
from trainwarden.gate.ledger import read_gate
from trainwarden.gate.registry import served
from trainwarden.model import Severity
from trainwarden.serving import catalogue
from trainwarden.serving.catalogue import GateCatalogue


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
