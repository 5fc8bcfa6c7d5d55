"""Files that an actor allowed although a scan did not find them clean: recorded, signed, and of one digest each.

Rules
-----
* An allowance is of the bytes that were scanned, by the present key of an enrolled actor, with a reason. It counts for
  that digest and no other, and as long as the key is not revoked or given up.
* It changes no decision: a scan goes on refusing the file, and says beside it who allowed it and why.

Trust: the registrar of the store's actors, and the actor for having looked. Loading an allowed file may run what the
file says. Whoever can write the store can remove allowances, never make one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

import msgspec

from trainwarden.actors.registry import has_registry, known_actor, read_registry
from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import KeyUnusable, SignatureInvalid, StoreError, UsageError
from trainwarden.gate.loader import digest_of, scanned_copy
from trainwarden.gate.results import Clean, Decision, Refused, Scanned, Undecided
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.model import UNREADABLE, FileAllowed, Signature, canonical
from trainwarden.store import Store

_DOMAIN = b"trainwarden/file-allowed/v1\n"


def allow(store: Store, path: Path, actor: str, key: SigningKey, why: str) -> FileAllowed:
    """Scan a file and record that `actor` allows the bytes that were scanned.

    Raises:
        UsageError: the file is clean or cannot be read, there is no reason, or nobody of that name is enrolled.
        KeyUnusable: the key may not sign for the actor.
        ActorsTampered: the log of actors does not verify.
        StoreError: it cannot be written.
    """
    if not why.strip():
        raise UsageError("an allowance needs a reason", hint='--why "…"')
    registry = read_registry(store)
    known_actor(registry, actor)
    if trouble := registry.trouble_with(actor, key.public):
        raise KeyUnusable(trouble, hint=f"trainwarden keys show {actor}")
    with scanned_copy(path) as (fd, scanned):
        what, found = _told(scanned.decision, path)
        bare = FileAllowed(
            digest=digest_of(fd),
            path=str(path),
            decision=what,
            found=found,
            why=why,
            actor=actor,
            key=key.public,
            wall_ns=time.time_ns(),
        )
    allowance = msgspec.structs.replace(bare, signature=key.sign(allowance_bytes(bare)).signature)
    _keep(store, allowance)
    return allowance


def allowance_of(store: Store, digest: str) -> FileAllowed | None:
    """The first allowance of the file of this digest that counts.

    Raises:
        ActorsTampered: the log of actors does not verify.
        StoreError: the store cannot be read.
    """
    found = list(_of(store, digest))
    if not found or not has_registry(store):
        return None
    registry = read_registry(store)
    return next((a for a in found if _holds(a) and not registry.trouble_with(a.actor, a.key)), None)


def with_allowance(store: Store, scanned: Scanned) -> Scanned:
    """What was scanned, with the allowance of the file as it is now, if there is one.

    Raises:
        ActorsTampered, StoreError: as `allowance_of`.
    """
    if isinstance(scanned.decision, Clean) or not _folder(store).is_dir():
        return scanned
    try:
        fd = os.open(scanned.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return scanned
    try:
        return scanned._replace(allowed=allowance_of(store, digest_of(fd)))
    except OSError:
        return scanned
    finally:
        os.close(fd)


def allowance_bytes(allowance: FileAllowed) -> bytes:
    """What an actor signs."""
    return _DOMAIN + canonical(msgspec.structs.replace(allowance, signature=""))


def _told(decision: Decision, path: Path) -> tuple[str, tuple[str, ...]]:
    match decision:
        case Clean():
            raise UsageError(f"{path} is clean", hint="it needs no allowance")
        case Refused(objections=objections):
            return "refused", tuple(f"{o.part} at {o.offset}: {o.opcode} {o.name}: {o.why}".strip() for o in objections)
        case Undecided(why=why):
            return "undecided", (why,)
        case _:
            assert_never(decision)


def _holds(allowance: FileAllowed) -> bool:
    try:
        verify_signature(
            Signature(key=allowance.key, signature=allowance.signature), allowance_bytes(allowance), allowance.key
        )
    except SignatureInvalid:
        return False
    return True


def _of(store: Store, digest: str) -> Iterator[FileAllowed]:
    try:
        names = sorted(n for n in os.listdir(_folder(store)) if n.startswith(f"{digest}-"))
    except FileNotFoundError:
        return
    except OSError as e:
        raise StoreError(f"cannot list {_folder(store)}: {e.strerror}", hint=hint_for(e)) from e
    for name in names:
        try:
            read = msgspec.json.decode((_folder(store) / name).read_bytes(), type=FileAllowed)
        except (OSError, *UNREADABLE):
            continue
        if read.digest == digest:
            yield read


def _keep(store: Store, allowance: FileAllowed) -> None:
    path = _folder(store) / f"{allowance.digest}-{allowance.actor}-{allowance.key[:16]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, canonical(allowance))
    except OSError as e:
        raise StoreError(f"cannot keep the allowance {path}: {e.strerror}", hint=hint_for(e)) from e


def _folder(store: Store) -> Path:
    return store.path / "gate" / "allowed"
