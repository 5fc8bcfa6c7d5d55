"""The log of custody says who took in which records and what an incident is made of; each way round is an attack."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from trainwarden.actors import registry as reg
from trainwarden.custody import ledger
from trainwarden.custody.folding import fold
from trainwarden.errors import CustodyTampered, UsageError
from trainwarden.keys import SigningKey, ring
from trainwarden.log.journal import LogWriter
from trainwarden.model import (
    ActorKind,
    Artefact,
    CustodyEntry,
    Evidence,
    IncidentClosed,
    IncidentOpened,
    IncidentStatus,
    Reference,
    SourceKind,
    canonical,
)
from trainwarden.store import Store

ADA = SigningKey(b"\x01" * 32)
RECORDS = Evidence(id="e" * 64, kind=SourceKind.WTMP, name="wtmp", bytes=384, events=1, table="d" * 64)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    store = Store.open(tmp_path / "store", create=True)
    reg.enrol(store, SigningKey.load_or_create(), "ada", ActorKind.PERSON, ADA.public)
    return store


def ada() -> ledger.Signer:
    return ledger.Signer("ada", ADA)


def entries(store: Store) -> list[CustodyEntry]:
    return ledger._entries(store)


def test_an_incident_is_what_its_signed_entries_say(store: Store) -> None:
    assert ledger.read_custody(store).incidents == {}
    ledger.take(store, ada(), RECORDS)
    opened = ledger.open_incident(store, ledger.signer(store), "weights that nobody changed")
    assert (opened.id, opened.status) == ("i1", IncidentStatus.OPEN)
    changed = Artefact(path="/lib/optim.py", digest="a" * 64, what="changed code", at=Reference(run="r", index=7))
    for _ in range(2):  # what is there already is not added twice
        ledger.add_to(store, ada(), "i1", runs=["r"], findings=[Reference(run="r", index=7)], artefacts=[changed])
    ledger.add_to(store, ada(), "i1", evidence=[RECORDS.id])
    closed = ledger.close_incident(store, ada(), "i1", "undetermined")
    read = ledger.read_custody(store)
    assert read.incidents["i1"] == closed == ledger.find_incident(read, "r")
    assert (closed.runs, closed.artefacts, closed.custody) == (("r",), (changed,), (RECORDS,))
    assert (closed.status, closed.outcome, closed.entries) == (IncidentStatus.CLOSED, "undetermined", (2, 3, 4, 5, 6))
    with pytest.raises(UsageError, match="no incident i1 is open"):
        ledger.add_to(store, ada(), "i1", runs=["s"])
    with pytest.raises(UsageError, match="was taken in before"):
        ledger.take(store, ada(), RECORDS)
    with pytest.raises(UsageError, match="never taken in"):
        ledger.add_to(store, ada(), ledger.open_incident(store, ada(), "other").id, evidence=["f" * 64])


def test_a_new_reading_replaces_the_old_one_in_open_incidents_and_the_log_keeps_both(store: Store) -> None:
    ledger.take(store, ada(), RECORDS)
    for name in ("i1", "i2"):
        assert ledger.open_incident(store, ada(), "one").id == name
        ledger.add_to(store, ada(), name, evidence=[RECORDS.id])
    ledger.close_incident(store, ada(), "i2", "done")
    anew = msgspec.structs.replace(RECORDS, editors=("admin:collector",), table="f" * 64)
    ledger.take(store, ada(), anew)
    read = ledger.read_custody(store)
    assert (read.incidents["i1"].custody, read.incidents["i2"].custody) == ((anew,), (RECORDS,))
    assert read.incidents["i1"].entries[-1] == read.size - 1 not in read.incidents["i2"].entries
    entry, before = read.reading(anew)
    assert (entry.evidence, [b.evidence for b in before]) == (anew, [RECORDS])
    assert read.reading(RECORDS) == (before[0], ())


def test_an_entry_by_another_key_in_an_actors_name_or_moved_to_another_place_is_refused(store: Store) -> None:
    ledger.open_incident(store, ada(), "one")
    before = entries(store)
    registry = reg.read_registry(store)
    mallory = ledger.Signer("ada", SigningKey(b"\x09" * 32))
    forged = ledger._signed(IncidentClosed(index=0, incident="i1", outcome="nothing"), 2, mallory)
    with pytest.raises(CustodyTampered, match="was never a key of ada"):
        fold([*before, forged], registry)
    stranger = ledger._signed(IncidentClosed(index=0, incident="i1"), 2, ledger.Signer("", SigningKey(b"\x09" * 32)))
    with pytest.raises(CustodyTampered, match="names no actor"):
        fold([*before, stranger], registry)
    real = ledger._signed(IncidentOpened(index=0, incident="i2", title="two"), 2, ada())
    with pytest.raises(CustodyTampered, match="signed for place 2"):
        fold([*before, ledger._signed(real, 2, ada()), real], registry)
    with pytest.raises(CustodyTampered, match="does not verify"):
        fold([*before, msgspec.structs.replace(real, title="another")], registry)


def test_a_rewritten_log_does_not_verify_and_takes_nothing_more(store: Store) -> None:
    ledger.open_incident(store, ada(), "one")
    journal = ledger.folder(store) / "journal"
    data = journal.read_bytes()
    journal.write_bytes(data.replace(b'"title":"one"', b'"title":"two"'))
    with pytest.raises(CustodyTampered, match="does not verify"):
        ledger.read_custody(store)
    with pytest.raises(CustodyTampered, match="does not verify"):
        ledger.open_incident(store, ada(), "more")


def test_a_log_put_in_the_place_of_ours_is_found_by_its_key(store: Store) -> None:
    ledger.open_incident(store, ada(), "one")
    with pytest.raises(CustodyTampered, match="expected 0909"):
        ledger.read_custody(store, "09" * 32)


def test_what_a_revoked_key_signed_since_is_doubted_and_what_it_signed_before_is_not(store: Store) -> None:
    ledger.open_incident(store, ada(), "one")
    own = SigningKey.load()
    at = entries(store)[1].wall_ns
    ring.keep("ada", b"\x01" * 32, ring.Place.FILE)
    assert ledger.signer(store, "ada").key.public == ADA.public
    reg.revoke(store, own, "ada", "laptop lost", at + 1)
    assert ledger.read_custody(store).doubted == {}
    late = ledger._signed(IncidentOpened(index=0, incident="i2", title="two"), 2, ada())
    with closing(LogWriter.open(ledger.folder(store), own)) as log:
        log.append([canonical(late)])
    assert ledger.read_custody(store).doubted == {2: "the key of ada was revoked: laptop lost"}
    with pytest.raises(UsageError, match="revoked"):
        ledger.signer(store, "ada")
