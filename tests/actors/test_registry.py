"""The log of actors: who may sign what follows from it, and whoever edits it or its copy is found."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainwarden.actors import registry as reg
from trainwarden.errors import ActorsTampered, KeyUnusable, UsageError
from trainwarden.keys import SigningKey
from trainwarden.model import (
    ActorEnrolled,
    ActorKind,
    KeyRevoked,
    KeyRotated,
    PolicySet,
    RegistryBegun,
    RegistryEntry,
    canonical,
    decode_registry_entry,
)
from trainwarden.store import Store

KEYS = [SigningKey(bytes([n]) * 32) for n in range(8)]
OWNER, ADA, GRACE, MALLORY = KEYS[0], KEYS[1], KEYS[2], KEYS[7]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store", create=True)
    reg.enrol(store, OWNER, "ada", ActorKind.PERSON, ADA.public)
    reg.enrol(store, OWNER, "reviewer", ActorKind.AGENT, GRACE.public)
    return store


def begun(*entries: RegistryEntry) -> list[RegistryEntry]:
    ada = ActorEnrolled(name="ada", kind=ActorKind.PERSON, key=ADA.public)
    return [RegistryBegun(key=OWNER.public), ada, *entries]


def rotation(old: SigningKey, new: SigningKey, by_old: SigningKey, by_new: SigningKey) -> KeyRotated:
    data = reg.rotation_bytes("ada", old.public, new.public)
    signatures = {"by_old": by_old.sign(data).signature, "by_new": by_new.sign(data).signature}
    return KeyRotated(name="ada", old=old.public, new=new.public, **signatures)


def test_people_and_agents_are_enrolled_alike_and_the_copy_says_so(store: Store) -> None:
    registry = reg.read_registry(store, OWNER.public)
    assert {a.name: a.kind for a in registry.actors.values()} == {"ada": "person", "reviewer": "agent"}
    assert registry.trouble_with("ada", ADA.public) == registry.trouble_with("reviewer", GRACE.public) == ""
    assert (store.path / "actors.toml").read_text() == reg.listing(registry)


def test_a_rotated_key_gives_way_to_the_new_one(store: Store) -> None:
    registry = reg.rotate(store, OWNER, "ada", ADA, KEYS[3])
    assert registry.trouble_with("ada", KEYS[3].public) == ""
    assert "was rotated (entry 3)" in registry.trouble_with("ada", ADA.public)
    assert reg.read_registry(store, size=3).trouble_with("ada", ADA.public) == ""


def test_a_rotation_that_the_old_key_or_the_new_one_did_not_sign_is_refused() -> None:
    assert reg.fold(begun(rotation(ADA, KEYS[3], ADA, KEYS[3]))).actors["ada"].key == KEYS[3].public
    for by_old, by_new in ((MALLORY, KEYS[3]), (ADA, MALLORY), (KEYS[3], ADA)):
        with pytest.raises(ActorsTampered, match="does not verify"):
            reg.fold(begun(rotation(ADA, KEYS[3], by_old, by_new)))


def test_a_revoked_key_counts_no_more_and_its_name_can_be_enrolled_again_with_another(store: Store) -> None:
    registry = reg.revoke(store, OWNER, "ada", "laptop lost", since_ns=5)
    assert "was revoked (entry 3: laptop lost)" in registry.trouble_with("ada", ADA.public)
    with pytest.raises(UsageError, match="already"):
        reg.enrol(store, OWNER, "ada", ActorKind.PERSON, ADA.public)
    again = reg.enrol(store, OWNER, "ada", ActorKind.PERSON, KEYS[4].public)
    assert again.trouble_with("ada", KEYS[4].public) == ""
    assert "revoked" in again.trouble_with("ada", ADA.public)


def test_one_key_for_two_actors_and_one_name_for_two_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="already"):
        reg.enrol(store, OWNER, "grace", ActorKind.PERSON, ADA.public)
    with pytest.raises(UsageError, match="enrolled already"):
        reg.enrol(store, OWNER, "ada", ActorKind.PERSON, KEYS[5].public)
    assert reg.read_registry(store).size == 3


def test_somebody_else_than_the_registrar_cannot_enrol(store: Store) -> None:
    with pytest.raises(KeyUnusable, match=OWNER.public):
        reg.enrol(store, MALLORY, "mallory", ActorKind.PERSON, MALLORY.public)


def test_an_edited_copy_is_found_and_an_older_one_is_what_a_crash_leaves(store: Store) -> None:
    copy = store.path / "actors.toml"
    copy.write_text(reg.listing(reg.read_registry(store, size=2)))
    assert reg.read_registry(store).size == 3
    copy.write_text(copy.read_text().replace(ADA.public, MALLORY.public))
    with pytest.raises(ActorsTampered, match="is not what the log of actors says"):
        reg.read_registry(store)


def test_a_log_by_another_registrar_in_its_place_is_found(store: Store, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "other", create=True)
    reg.enrol(other, MALLORY, "ada", ActorKind.PERSON, MALLORY.public)
    for path in (store.path / "actors").iterdir():
        path.unlink()
    for path in (other.path / "actors").iterdir():
        (store.path / "actors" / path.name).write_bytes(path.read_bytes())
    (store.path / "actors.toml").unlink()
    with pytest.raises(ActorsTampered, match=f"kept by {MALLORY.public}, expected {OWNER.public}"):
        reg.read_registry(store, OWNER.public)


def test_an_altered_log_is_found(store: Store) -> None:
    journal = store.path / "actors" / "journal"
    journal.write_bytes(journal.read_bytes().replace(ADA.public.encode(), MALLORY.public.encode()))
    with pytest.raises(ActorsTampered):
        reg.read_registry(store, OWNER.public)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_log_says_what_was_logged_or_is_refused(store: Store, data: st.DataObject) -> None:
    honest = reg.read_registry(store, OWNER.public)
    path = store.path / "actors" / data.draw(st.sampled_from(["journal", "head"]))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255))
    path.write_bytes(data.draw(st.sampled_from([whole[:at], whole[:at] + bytes([byte]) + whole[at + 1 :], b""])))
    hint = ""
    try:
        read = reg.read_registry(store, OWNER.public)
    except (ActorsTampered, UsageError) as e:
        read, hint = honest, e.hint or "none"
    finally:
        path.write_bytes(whole)
    assert read == honest
    assert hint != "none"


@pytest.mark.parametrize(
    "entries",
    [
        [ActorEnrolled(name="ada", kind=ActorKind.PERSON, key=ADA.public)],
        begun(RegistryBegun(key=MALLORY.public)),
        begun(KeyRevoked(name="grace", key=ADA.public, reason="", since_ns=0)),
        begun(rotation(KEYS[4], KEYS[3], KEYS[4], KEYS[3])),
        begun(KeyRevoked(name="ada", key=ADA.public, reason="", since_ns=0), rotation(ADA, KEYS[3], ADA, KEYS[3])),
    ],
    ids=["no registrar", "two registrars", "another's key revoked", "not the present key", "revoked, then rotated"],
)
def test_entries_that_do_not_follow_are_refused(entries: list[RegistryEntry]) -> None:
    with pytest.raises(ActorsTampered, match="does not"):
        reg.fold(entries)


def test_a_policy_of_unknown_too_few_or_repeated_approvers_is_refused(store: Store) -> None:
    for number, names in ((1, ("nobody",)), (3, ("ada", "reviewer")), (2, ("ada", "ada"))):
        with pytest.raises(UsageError):
            reg.set_policy(store, OWNER, number, names)
    assert reg.set_policy(store, OWNER, 2, ("ada", "reviewer")).policy is not None


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_a_leaf_is_an_entry_or_a_decoding_error(data: bytes) -> None:
    try:
        entry = decode_registry_entry(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert decode_registry_entry(canonical(entry)) == entry


def test_a_policy_survives_the_log(store: Store) -> None:
    reg.set_policy(store, OWNER, 1, ("ada",))
    policy = reg.read_registry(store).policy
    assert policy is not None
    assert (policy.approvals, policy.approvers) == (1, ("ada",))
    assert isinstance(policy, PolicySet)
