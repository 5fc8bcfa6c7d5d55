"""A seal runs only after k distinct, unrevoked actors approved this very seal; each way around it is an attack here."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainwarden.actors import Enough, Lacking, judge_approvals
from trainwarden.actors import approvals as app
from trainwarden.actors import registry as reg
from trainwarden.config import SealConfig
from trainwarden.errors import ActorsTampered, KeyUnusable, NotApproved, SealBroken, UsageError
from trainwarden.keys import SigningKey
from trainwarden.model import ActorKind, Approval, ApprovalPolicy, ManifestRef, Seal, Signature, SignedSeal, canonical
from trainwarden.seal.seal import sign_seal
from trainwarden.store import Store

OWNER, RUNNER, MALLORY = (SigningKey(bytes([n]) * 32) for n in (10, 11, 12))
KEYS = {name: SigningKey(bytes([n]) * 32) for n, name in enumerate(("ada", "grace", "agent"), 1)}
POLICY = ApprovalPolicy(approvals=2, approvers=("ada", "grace", "agent"), registrar=OWNER.public)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store", create=True)
    for name, key in KEYS.items():
        kind = ActorKind.AGENT if name == "agent" else ActorKind.PERSON
        reg.enrol(store, OWNER, name, kind, key.public)
    return store


def new_seal(policy: ApprovalPolicy = POLICY, created_ns: int = 1, code: str = "c" * 64) -> SignedSeal:
    refs = {kind: ManifestRef(kind=kind, digest=kind[0] * 64, files=1, bytes=1) for kind in ("environment", "data")}
    refs["code"] = ManifestRef(kind="code", digest=code, files=1, bytes=1)
    seal = Seal(created_ns=created_ns, argv=("python", "t.py"), cwd="/w", interpreter="/p", approval=policy, **refs)
    return sign_seal(seal, RUNNER)


def approve(store: Store, seal: SignedSeal, *names: str) -> app.Judged:
    judged: app.Judged = Lacking(0, (), ())
    for name in names:
        judged = app.approve(store, seal, name, KEYS[name])
    return judged


def waiting(store: Store) -> SignedSeal:
    """A seal that a first run has left for approval."""
    with pytest.raises(NotApproved, match="0 of 2") as e:
        app.admit(store, new_seal(), RUNNER)
    seal = app.find_seal(store, "last")
    assert f"trainwarden approve {seal.digest[:12]} --as ada" in e.value.hint
    return seal


def test_two_distinct_actors_let_it_run_a_person_and_an_agent(store: Store) -> None:
    seal = waiting(store)
    assert isinstance(approve(store, seal, "ada"), Lacking)
    with pytest.raises(NotApproved, match=r"1 of 2 approvals \(ada\)"):
        app.admit(store, new_seal(created_ns=2), RUNNER)
    assert isinstance(approve(store, seal, "agent"), Enough)
    admitted, entry = app.admit(store, new_seal(created_ns=3), MALLORY)
    assert entry is not None
    assert (admitted.digest, entry.seal, entry.actors) == (seal.digest, seal.digest, 4)
    assert [a.actor for a in entry.approvals] == ["ada", "agent"]
    assert {s.key for s in admitted.signatures} == {RUNNER.public, MALLORY.public}


def test_without_a_policy_nothing_is_asked(store: Store) -> None:
    seal = new_seal(ApprovalPolicy())
    assert app.admit(store, seal, RUNNER) == (seal, None)
    assert app.policy_for(store, SealConfig()) == ApprovalPolicy()


def test_the_same_key_twice_counts_once(store: Store) -> None:
    seal = waiting(store)
    twice = [app.sign_approval(seal, "ada", KEYS["ada"]) for _ in range(2)]
    judged = judge_approvals(seal, twice, reg.read_registry(store))
    assert isinstance(judged, Lacking)
    assert len(judged.approvals) == 1
    folder = store.path / "seals" / seal.digest / "approvals"
    for n, approval in enumerate(twice):
        (folder / f"copy{n}.json").write_bytes(canonical(approval))
    with pytest.raises(NotApproved, match="approved more than once"):
        app.admit(store, new_seal(created_ns=2), RUNNER)


def test_one_key_under_two_names_counts_once(store: Store) -> None:
    seal = waiting(store)
    as_grace = app.sign_approval(seal, "grace", KEYS["ada"])
    judged = judge_approvals(seal, [app.sign_approval(seal, "ada", KEYS["ada"]), as_grace], reg.read_registry(store))
    assert isinstance(judged, Lacking)
    assert "signed more than once" in judged.refused[0]


def test_the_same_actor_with_two_keys_counts_once_and_only_with_the_present_key(store: Store) -> None:
    seal = waiting(store)
    old = app.sign_approval(seal, "ada", KEYS["ada"])
    second = SigningKey(b"\x21" * 32)
    registry = reg.rotate(store, OWNER, "ada", KEYS["ada"], second)
    judged = judge_approvals(seal, [old, app.sign_approval(seal, "ada", second)], registry)
    assert isinstance(judged, Lacking)
    assert [a.key for a in judged.approvals] == [second.public]
    assert "was rotated" in judged.refused[0]


def test_a_revoked_key_does_not_count_whenever_it_signed(store: Store) -> None:
    seal = waiting(store)
    approve(store, seal, "ada", "grace")
    app.admit(store, new_seal(created_ns=2), RUNNER)
    reg.revoke(store, OWNER, "grace", "left the company")
    with pytest.raises(NotApproved, match="was revoked"):
        app.admit(store, new_seal(created_ns=3), RUNNER)
    with pytest.raises(KeyUnusable, match="was revoked"):
        app.approve(store, seal, "grace", KEYS["grace"])


def test_an_approval_of_another_seal_does_not_count(store: Store) -> None:
    seal, other = waiting(store), new_seal(code="d" * 64)
    app.keep_seal(store, other)
    approve(store, seal, "ada")
    approve(store, other, "grace")
    for path in (store.path / "seals" / other.digest / "approvals").iterdir():
        (store.path / "seals" / seal.digest / "approvals" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(NotApproved, match="is of seal"):
        app.admit(store, new_seal(created_ns=2), RUNNER)
    forged = [msgspec.structs.replace(a, seal=seal.digest) for a in app.approvals_of(store, other.digest)]
    judged = judge_approvals(seal, forged, reg.read_registry(store))
    assert isinstance(judged, Lacking)
    assert "does not verify" in judged.refused[0]


def test_a_signature_over_something_else_by_the_same_key_is_no_approval(store: Store) -> None:
    seal = waiting(store)
    bare = Approval(seal=seal.digest, actor="ada", key=KEYS["ada"].public)
    for data in (canonical(seal.seal), canonical(bare), bytes.fromhex(seal.digest), seal.digest.encode()):
        stolen: Signature = KEYS["ada"].sign(data)
        approval = msgspec.structs.replace(bare, signature=stolen.signature)
        assert isinstance(judge_approvals(seal, [approval] * 2, reg.read_registry(store)), Lacking)


def test_an_edited_policy_makes_another_seal_that_nobody_approved(store: Store) -> None:
    approve(store, waiting(store), "ada")
    for edited in (
        msgspec.structs.replace(POLICY, approvals=1),
        msgspec.structs.replace(POLICY, approvers=("ada", "grace")),
    ):
        with pytest.raises(NotApproved, match=f"0 of {edited.approvals}"):
            app.admit(store, new_seal(edited, created_ns=2), RUNNER)


def test_a_configuration_that_demands_less_than_the_store_is_refused(store: Store) -> None:
    reg.set_policy(store, OWNER, 2, ("ada", "grace", "agent"))
    reg.enrol(store, OWNER, "mallory", ActorKind.PERSON, MALLORY.public)
    for config in (
        SealConfig(),
        SealConfig(approvals=1, approvers=("ada", "grace")),
        SealConfig(approvals=2, approvers=("ada", "mallory")),
    ):
        with pytest.raises(NotApproved, match="this store demands 2 approvals of ada, grace, agent") as e:
            app.policy_for(store, config)
        assert e.value.hint
    assert app.policy_for(store, SealConfig(approvals=2, approvers=("ada", "agent"))).approvals == 2


def test_a_policy_that_nobody_could_meet_is_a_usage_error(store: Store, tmp_path: Path) -> None:
    for config in (SealConfig(approvals=2, approvers=("ada",)), SealConfig(approvals=1, approvers=("nobody",))):
        with pytest.raises(UsageError):
            app.policy_for(store, config)
    with pytest.raises(UsageError, match="no actor is enrolled") as e:
        app.policy_for(Store.open(tmp_path / "new", create=True), SealConfig(approvals=1, approvers=("ada",)))
    assert "trainwarden keys new" in e.value.hint


def test_an_actor_whom_the_policy_does_not_name_and_a_strangers_key_cannot_approve(store: Store) -> None:
    seal = waiting(store)
    reg.enrol(store, OWNER, "mallory", ActorKind.PERSON, MALLORY.public)
    with pytest.raises(UsageError, match="none of the approvers"):
        app.approve(store, seal, "mallory", MALLORY)
    with pytest.raises(KeyUnusable):
        app.approve(store, seal, "ada", MALLORY)
    forged = [app.sign_approval(seal, name, MALLORY) for name in ("ada", "mallory")]
    judged = judge_approvals(seal, forged, reg.read_registry(store))
    assert isinstance(judged, Lacking)
    assert judged.approvals == ()


def test_a_waiting_seal_that_was_altered_is_refused_and_not_run(store: Store) -> None:
    seal = waiting(store)
    approve(store, seal, "ada", "grace")
    path = store.path / "seals" / seal.digest / "seal.json"
    path.write_bytes(path.read_bytes().replace(b"t.py", b"x.py"))
    with pytest.raises(SealBroken, match=seal.digest):
        app.find_seal(store, seal.digest[:8])
    with pytest.raises(NotApproved, match="0 of 2"):
        app.admit(store, new_seal(created_ns=2), RUNNER)


def test_a_registry_of_another_registrar_approves_nothing(store: Store, tmp_path: Path) -> None:
    seal = waiting(store)
    approve(store, seal, "ada", "grace")
    other = Store.open(tmp_path / "other", create=True)
    for name in KEYS:
        reg.enrol(other, MALLORY, name, ActorKind.PERSON, KEYS[name].public)
    judged = judge_approvals(seal, app.approvals_of(store, seal.digest), reg.read_registry(other))
    assert isinstance(judged, Lacking)
    with pytest.raises(ActorsTampered):
        app.admit(other, seal, RUNNER)


@pytest.mark.parametrize("name", ["", "zz", "c" * 64])
def test_no_such_waiting_seal_is_one_error_with_a_hint(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="names no waiting seal") as e:
        app.find_seal(store, name)
    assert e.value.hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
@example(b"")
@example(b"\xff")
@example(b'{"actor":' + b"[" * 100_000)
@example(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
@example(b'{"seal":"","actor":"ada","key":"zz","signature":"","wall_ns":0}')
def test_any_bytes_as_an_approval_count_for_nothing_and_as_a_seal_are_refused(store: Store, data: bytes) -> None:
    seal = new_seal()
    folder = app.keep_seal(store, seal)
    approve(store, seal, "grace")
    junk = folder / "approvals" / "ada.json"
    junk.write_bytes(data)
    judged = judge_approvals(seal, app.approvals_of(store, seal.digest), reg.read_registry(store))
    assert isinstance(judged, Lacking)
    assert [a.actor for a in judged.approvals] == ["grace"]
    junk.unlink()
    (folder / "seal.json").write_bytes(data)
    with pytest.raises(SealBroken) as refused:
        app.find_seal(store, seal.digest)
    assert refused.value.hint


def test_an_approver_whose_key_was_revoked_is_not_asked_for(store: Store) -> None:
    seal = waiting(store)
    approve(store, seal, "grace")
    reg.revoke(store, OWNER, "ada", "laptop lost", since_ns=0)
    with pytest.raises(NotApproved, match="1 of 2") as refused:
        app.admit(store, new_seal(created_ns=2), RUNNER)
    assert "--as agent, then" in refused.value.hint
