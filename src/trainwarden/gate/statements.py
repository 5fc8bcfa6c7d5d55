"""What actors sign about checkpoints: how one was made, that they approve of it, that a finding does not matter.

Rules
-----
* Each kind is separated by domain from everything else that a key signs, and names what it is about by digest: no
  statement about one checkpoint or finding is one about another.
* A statement counts if it is signed by the present, unrevoked key of the actor that it names. Which actors count is
  the policy's word. An actor counts once, a key counts once.
* Statements are files: whoever can write the store can remove them, never make one.

Trust: as `actors.approvals`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from trainwarden.actors.registry import Registry, known_actor, read_registry
from trainwarden.durable import write_atomically
from trainwarden.errors import KeyUnusable, SignatureInvalid
from trainwarden.keys import SigningKey, ring, verify_signature
from trainwarden.model import (
    UNREADABLE,
    CheckpointApproval,
    Derived,
    FindingClosed,
    Signature,
    Statement,
    canonical,
)
from trainwarden.store import Store, store_errors

_DOMAINS: dict[type, bytes] = {
    Derived: b"trainwarden/derived/v1\n",
    CheckpointApproval: b"trainwarden/checkpoint-approval/v1\n",
    FindingClosed: b"trainwarden/finding-closed/v1\n",
}
_SHORT = 12

S = TypeVar("S", Derived, CheckpointApproval, FindingClosed)


class Counted(msgspec.Struct, frozen=True):
    """The approvals that count, and why others do not."""

    approvals: tuple[CheckpointApproval, ...]
    refused: tuple[str, ...]


def sign(statement: S, actor: str, key: SigningKey) -> S:
    """The statement as the actor signs it, now."""
    bare = msgspec.structs.replace(statement, actor=actor, key=key.public, wall_ns=time.time_ns(), signature="")
    return msgspec.structs.replace(bare, signature=key.sign(_signed_bytes(bare)).signature)


def key_of(store: Store, actor: str) -> SigningKey:
    """The private key of an enrolled actor.

    Raises:
        UsageError: nobody of that name is enrolled.
        KeyUnusable: the key is not here, or counts no more.
        ActorsTampered: the log of actors does not verify.
    """
    registry = read_registry(store)
    key = ring.load(actor, known_actor(registry, actor).key)
    if trouble := registry.trouble_with(actor, key.public):
        raise KeyUnusable(trouble, hint=f"trainwarden keys show {actor}")
    return key


def trouble_with(statement: Statement, registry: Registry) -> str:
    """Why a statement does not count, "" when it does."""
    try:
        signature = Signature(key=statement.key, signature=statement.signature)
        verify_signature(signature, _signed_bytes(statement), statement.key)
    except SignatureInvalid as e:
        return f"what is said in the name of {statement.actor}: {e}"
    return registry.trouble_with(statement.actor, statement.key)


def count_approvals(
    digest: str, approvers: Sequence[str], approvals: Iterable[CheckpointApproval], registry: Registry
) -> Counted:
    """Which approvals of this checkpoint count."""
    counted: list[CheckpointApproval] = []
    refused: list[str] = []
    for approval in approvals:
        if why := _why_not(digest, approvers, approval, registry, counted):
            refused.append(why)
        else:
            counted.append(approval)
    return Counted(tuple(counted), tuple(refused))


def keep(store: Store, statement: Statement) -> None:
    """Put a statement where the gate finds it.

    Raises:
        StoreError: it cannot be written.
    """
    data = canonical(statement)
    path = _folder(store) / f"{blake3(data).hexdigest()}.json"
    with store_errors(f"keep the statement {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def read_all(store: Store) -> tuple[Statement, ...]:
    """Every statement in the store, in order of name; what is none is left out.

    Raises:
        StoreError: they cannot be listed.
    """
    folder, found = _folder(store), list[Statement]()
    with store_errors(f"list {folder}"):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for name in names:
        try:
            found.append(_decoder.decode((folder / name).read_bytes()))
        except (OSError, *UNREADABLE):
            continue
    return tuple(found)


_decoder: msgspec.json.Decoder[Statement] = msgspec.json.Decoder(Statement)


def _signed_bytes(statement: Statement) -> bytes:
    return _DOMAINS[type(statement)] + canonical(msgspec.structs.replace(statement, signature=""))


def _why_not(
    digest: str,
    approvers: Sequence[str],
    approval: CheckpointApproval,
    registry: Registry,
    counted: Sequence[CheckpointApproval],
) -> str:
    who = approval.actor
    if approval.digest != digest:
        return f"the approval by {who} is of checkpoint {approval.digest[:_SHORT]}, not of {digest[:_SHORT]}"
    if who not in approvers:
        return f"{who} is none of the approvers that the policy names"
    if any(other.actor == who for other in counted):
        return f"{who} approved more than once, which counts once"
    if any(other.key == approval.key for other in counted):
        return f"the key {approval.key[:16]}… signed more than once, which counts once"
    return trouble_with(approval, registry)


def _folder(store: Store) -> Path:
    return store.path / "gate" / "statements"
