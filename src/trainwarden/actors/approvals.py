"""Approval of a seal by k of n actors: signing it, judging it, and finding the approved seal when a run begins.

Rules
-----
* An approval is an actor's signature over one seal's digest, separated by domain from everything else that a key
  signs. The policy is part of the seal, so whoever edits it makes another seal, which nobody has approved.
* It counts if it is over this very seal, by the present, unrevoked key of an actor whom the policy names. An actor
  counts once, a key counts once.
* The store's own policy (`trainwarden keys require`) is a floor: a seal that demands less is refused.
* A run that needs approvals begins under a seal made earlier and approved since, if that one still says what is on
  disk: same command, variables, numerics and policy, and not one sealed file different. Otherwise the new seal
  waits in `seals/DIGEST/` for its approvals, and nothing is started.
* `judge_approvals` is pure: seal, approvals and registry in, `Enough` or `Lacking` out.

Trust: the registrar named in the seal, and each approver for reading what they approve. Whoever can write the store
can remove approvals, never make one. Approval says that somebody agreed, not that the inputs are harmless.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec
from blake3 import blake3

from trainwarden.actors.registry import Registry, check_policy, has_registry, known_actor, read_registry
from trainwarden.config import SealConfig
from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import (
    KeyUnusable,
    NotApproved,
    SealBroken,
    SignatureInvalid,
    StoreError,
    TrainWardenError,
    UsageError,
)
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.model import (
    UNREADABLE,
    Approval,
    ApprovalPolicy,
    Approved,
    ManifestRef,
    Seal,
    Signature,
    SignedSeal,
    canonical,
)
from trainwarden.seal.check import check_seal
from trainwarden.seal.seal import write_seal
from trainwarden.store import Store

_DOMAIN = b"trainwarden/approval/v1\n"
_SHORT = 12


class Enough(msgspec.Struct, frozen=True, tag="enough"):
    """As many approvals as the policy demands, one of each actor."""

    approvals: tuple[Approval, ...]


class Lacking(msgspec.Struct, frozen=True, tag="lacking"):
    """Too few; `refused` says why others do not count."""

    needed: int
    approvals: tuple[Approval, ...]
    refused: tuple[str, ...]


Judged: TypeAlias = Enough | Lacking


def approval_bytes(approval: Approval) -> bytes:
    """What an approver signs."""
    return _DOMAIN + canonical(msgspec.structs.replace(approval, signature=""))


def sign_approval(seal: SignedSeal, actor: str, key: SigningKey) -> Approval:
    """The actor's approval of the seal."""
    bare = Approval(seal=seal.digest, actor=actor, key=key.public, wall_ns=time.time_ns())
    return msgspec.structs.replace(bare, signature=key.sign(approval_bytes(bare)).signature)


def judge_approvals(seal: SignedSeal, approvals: Iterable[Approval], registry: Registry) -> Judged:
    """Do these approvals suffice for this seal?"""
    policy = seal.seal.approval
    counted: list[Approval] = []
    refused: list[str] = []
    for approval in approvals:
        reason = _why_not(seal, approval, registry, counted)
        if reason:
            refused.append(reason)
        else:
            counted.append(approval)
    if policy.registrar != registry.registrar:
        refused.append(
            f"the log of actors is kept by {registry.registrar}, the seal names {policy.registrar or 'none'}"
        )
    elif len(counted) >= policy.approvals:
        return Enough(tuple(counted))
    return Lacking(policy.approvals, tuple(counted), tuple(refused))


def _why_not(seal: SignedSeal, approval: Approval, registry: Registry, counted: list[Approval]) -> str:
    """Why an approval does not count; empty when it does."""
    who = approval.actor
    if approval.seal != seal.digest:
        return f"the approval by {who} is of seal {approval.seal[:_SHORT]}, not of {seal.digest[:_SHORT]}"
    if who not in seal.seal.approval.approvers:
        return f"{who} is none of the approvers that the policy names"
    if any(other.actor == who for other in counted):
        return f"{who} approved more than once, which counts once"
    if any(other.key == approval.key for other in counted):
        return f"the key {approval.key[:16]}… signed more than once, which counts once"
    try:
        signature = Signature(key=approval.key, signature=approval.signature)
        verify_signature(signature, approval_bytes(approval), approval.key)
    except SignatureInvalid as e:
        return f"the approval by {who}: {e}"
    return registry.trouble_with(who, approval.key)


# ------------------------------------------------------------------------- policy


def policy_for(store: Store, config: SealConfig) -> ApprovalPolicy:
    """The policy that a new seal in this store has.

    Raises:
        UsageError: the configuration names nobody, somebody unknown, or too few.
        NotApproved: it demands less than the store does.
        ActorsTampered: the log of actors does not verify.
    """
    if not has_registry(store):
        if config.approvals or config.approvers:
            read_registry(store)  # says what is missing
        return ApprovalPolicy()
    registry = read_registry(store)
    check_policy(registry, config.approvals, config.approvers)
    floor = registry.policy
    if floor is not None and (config.approvals < floor.approvals or not set(config.approvers) <= set(floor.approvers)):
        raise NotApproved(
            f"the configuration demands {_demand(config.approvals, config.approvers)}, "
            f"this store demands {_demand(floor.approvals, floor.approvers)}",
            hint=f"write in trainwarden.toml, [seal]: approvals = {floor.approvals}, approvers = "
            f"{json.dumps(floor.approvers)}; or have the store's policy changed (trainwarden keys require)",
        )
    if not config.approvals:
        return ApprovalPolicy()
    return ApprovalPolicy(approvals=config.approvals, approvers=config.approvers, registrar=registry.registrar)


def _demand(approvals: int, approvers: Iterable[str]) -> str:
    names = ", ".join(approvers)
    return f"{approvals} approvals of {names}" if names else "no approval"


# ------------------------------------------------------------------------- waiting seals


def keep_seal(store: Store, seal: SignedSeal) -> Path:
    """Put a seal where it can be approved; its folder.

    Raises:
        StoreError: it cannot be written.
    """
    folder = _seals(store) / seal.digest
    try:
        (folder / "approvals").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StoreError(f"cannot keep the seal in {folder}: {e.strerror}", hint=hint_for(e)) from e
    write_seal(folder / "seal.json", seal)
    return folder


def find_seal(store: Store, name: str) -> SignedSeal:
    """The waiting seal whose digest begins with `name`, or the newest for "last".

    Raises:
        UsageError: there is none, or more than one.
        SealBroken: it was altered.
    """
    found = [digest for digest in _digests(store) if digest.startswith(name)]
    if name == "last":
        seals = [read_kept(store, digest) for digest in _digests(store)]
        if seals:
            return max(seals, key=lambda s: s.seal.created_ns)
    if len(found) != 1 or not name:
        raise UsageError(
            f"{name[:80]!r} names {len(found) or 'no'} waiting seal{'s' if len(found) > 1 else ''}",
            hint="; ".join(("trainwarden seal -- CMD makes one", *(d[:_SHORT] for d in _digests(store)[-4:]))),
        )
    return read_kept(store, found[0])


def read_kept(store: Store, digest: str) -> SignedSeal:
    """A waiting seal by its whole digest, checked against that.

    Raises:
        SealBroken: it is missing or was altered.
    """
    path = _seals(store) / digest / "seal.json"
    try:
        data = path.read_bytes()
        seal = msgspec.json.decode(data, type=SignedSeal)
    except (OSError, *UNREADABLE) as e:
        raise SealBroken(f"{path} is not a seal: {e}", hint="make it again: trainwarden seal -- CMD") from e
    found = blake3(canonical(seal.seal)).hexdigest()
    if canonical(seal) != data or not found == seal.digest == digest:
        raise SealBroken(
            f"the seal in {path} has digest {found}, expected {digest}",
            hint="it was altered: keep it as evidence, and make it again with trainwarden seal -- CMD",
        )
    return seal


def approvals_of(store: Store, digest: str) -> list[Approval]:
    """Every approval that lies beside a waiting seal, in order of name; what is none is left out.

    Raises:
        StoreError: they cannot be listed.
    """
    folder = _seals(store) / digest / "approvals"
    found: list[Approval] = []
    for name in _listed(folder):
        try:
            found.append(msgspec.json.decode((folder / name).read_bytes(), type=Approval))
        except (OSError, *UNREADABLE):
            continue
    return found


def approve(store: Store, seal: SignedSeal, actor: str, key: SigningKey) -> Judged:
    """Sign the seal as `actor`, keep that beside it, and say where it stands now.

    Raises:
        UsageError: the seal's policy does not name the actor, or nobody of that name is enrolled.
        KeyUnusable: the key may not sign for the actor.
        ActorsTampered: the log of actors does not verify.
        StoreError: it cannot be written.
    """
    policy = seal.seal.approval
    registry = read_registry(store, policy.registrar)
    known_actor(registry, actor)
    if actor not in policy.approvers:
        names = ", ".join(policy.approvers) or "nobody"
        raise UsageError(f"{actor} is none of the approvers of this seal: {names}", hint="see [seal] approvers")
    if trouble := registry.trouble_with(actor, key.public):
        raise KeyUnusable(trouble, hint=f"trainwarden keys show {actor}")
    approval = sign_approval(seal, actor, key)
    path = _seals(store) / seal.digest / "approvals" / f"{actor}-{key.public[:16]}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, canonical(approval))
    except OSError as e:
        raise StoreError(f"cannot keep the approval {path}: {e.strerror}", hint=hint_for(e)) from e
    return judge_approvals(seal, approvals_of(store, seal.digest), registry)


def _seals(store: Store) -> Path:
    return store.path / "seals"


def _digests(store: Store) -> list[str]:
    return [name for name in _listed(_seals(store)) if len(name) == 64]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise StoreError(f"cannot list {folder}: {e.strerror}", hint=hint_for(e)) from e


# ------------------------------------------------------------------------- a run begins


def admit(store: Store, seal: SignedSeal, key: SigningKey) -> tuple[SignedSeal, Approved | None]:
    """The seal that a run may begin under, signed by `key` too, and its approvals (None: none are needed).

    Raises:
        NotApproved: too few have approved it; the seal waits for them.
        ActorsTampered, StoreError: approvals cannot be judged or kept.
    """
    policy = seal.seal.approval
    if policy.approvals == 0:
        return seal, None
    registry = read_registry(store, policy.registrar)
    waiting: tuple[SignedSeal, Lacking] | None = None
    for earlier in _same_as(store, seal):
        match judge_approvals(earlier, approvals_of(store, earlier.digest), registry):
            case Enough(approvals=approvals):
                signed = _with_signature(earlier, key)
                entry = Approved(seal=signed.digest, approvals=approvals, actors=registry.size, wall_ns=time.time_ns())
                return signed, entry
            case Lacking() as lacking:
                waiting = waiting or (earlier, lacking)
    if waiting is None:
        keep_seal(store, seal)
        waiting = seal, Lacking(policy.approvals, (), ())
    raise not_approved(*waiting, registry)


def not_approved(seal: SignedSeal, lacking: Lacking, registry: Registry) -> NotApproved:
    """The error for a seal that lacks approvals."""
    policy = seal.seal.approval
    have = [a.actor for a in lacking.approvals]
    able = (a for n in policy.approvers if (a := registry.actors.get(n)) and not registry.trouble_with(n, a.key))
    left = [actor.name for actor in able if actor.name not in have]
    why = f" ({'; '.join(lacking.refused[:3])})" if lacking.refused else ""
    return NotApproved(
        f"seal {seal.digest[:_SHORT]} has {len(have)} of {policy.approvals} approvals"
        f"{' (' + ', '.join(have) + ')' if have else ''}{why}",
        hint=f"trainwarden approve {seal.digest[:_SHORT]} --as {left[0] if left else 'ACTOR'}"
        + (f" (or {', '.join(left[1:])})" if left[1:] else "")
        + ", then the same command again",
    )


def _same_as(store: Store, seal: SignedSeal) -> Iterator[SignedSeal]:
    """Waiting seals that say what this new one says, the newest first; a damaged one is none."""
    found: list[SignedSeal] = []
    for digest in _digests(store):
        try:
            found.append(read_kept(store, digest))
        except SealBroken:
            continue
    for earlier in sorted(found, key=lambda s: s.seal.created_ns, reverse=True):
        if _bare(earlier.seal) == _bare(seal.seal) and _same_files(store, earlier.seal, seal.seal):
            yield earlier


def _bare(seal: Seal) -> Seal:
    """All that a seal says but for files and time; a manifest is compared by what it covers."""
    return msgspec.structs.replace(
        seal,
        created_ns=0,
        git_commit="",
        git_dirty="",
        code=_covered(seal.code),
        environment=_covered(seal.environment),
        data=_covered(seal.data),
    )


def _covered(ref: ManifestRef) -> ManifestRef:
    return msgspec.structs.replace(ref, digest="", files=0, bytes=0)


def _same_files(store: Store, old: Seal, new: Seal) -> bool:
    kinds = ("code", "environment", "data")
    if all(getattr(old, kind).digest == getattr(new, kind).digest for kind in kinds):
        return True
    try:
        return not check_seal(store, old)
    except TrainWardenError:
        return False  # what cannot be compared is not the same


def _with_signature(seal: SignedSeal, key: SigningKey) -> SignedSeal:
    others = tuple(s for s in seal.signatures if s.key != key.public)
    return msgspec.structs.replace(seal, signatures=(*others, key.sign(canonical(seal.seal))))
