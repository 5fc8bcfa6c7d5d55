"""The log of actors: who was enrolled with which key, whose key was rotated or revoked, what policy the store has.

Rules
-----
* One append-only Merkle log a store (`actors/`), of the same form as a run's. Its first entry names the registrar's
  key, which signs every tree head; nobody else appends. Names and keys are never used twice.
* A rotation counts only if the old key and the new one signed it. A revocation counts from its index on, for good:
  the name can be enrolled again with a new key, the key cannot.
* `actors.toml` is a copy for readers, written after each entry. One that says something else than the log, at its
  newest or an earlier size, is `ActorsTampered`; a missing one is not missed.
* `fold` is pure: entries in, registry out.

Trust: the registrar, for whose key is whose. Whoever can write the store can put another log of actors in place of
this one, signed by another key: that shows by the registrar's key, which every seal with a policy names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from trainwarden.durable import write_atomically
from trainwarden.errors import ActorsTampered, KeyUnusable, LogError, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    Actor,
    ActorEnrolled,
    ActorKind,
    KeyRevoked,
    KeyRotated,
    PolicySet,
    RegistryBegun,
    RegistryEntry,
    Signature,
    canonical,
    decode_registry_entry,
)
from trainwarden.store import Store, store_errors

ORIGIN = "trainwarden/actors"
_ROTATION = b"trainwarden/rotation/v1\n"
_HEAD = "# Written by `trainwarden keys` from the log in actors/; an edit of it is found and changes nothing.\n"


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    """What a log of actors says at one size."""

    registrar: str
    size: int
    actors: Mapping[str, Actor]  # by name; the key is the present one
    revoked: Mapping[str, tuple[int, KeyRevoked]]  # by key: index and entry
    keys: Mapping[str, str]  # every key ever enrolled → name
    rotated: Mapping[str, int]  # a key that was given up → index of the rotation
    policy: PolicySet | None = None

    def trouble_with(self, name: str, key: str) -> str:
        """Why `key` may not sign for the actor `name`; empty when it may."""
        actor = self.actors.get(name)
        if actor is None:
            return f"no actor {name!r} is enrolled"
        if key in self.revoked:
            index, entry = self.revoked[key]
            return f"the key {key[:16]}… of {name} was revoked (entry {index}: {entry.reason or 'no reason given'})"
        if key in self.rotated:
            return f"the key {key[:16]}… of {name} was rotated (entry {self.rotated[key]}): approve with the new one"
        return "" if key == actor.key else f"the key of {name} is {actor.key[:16]}…, signed was with {key[:16]}…"


def fold(entries: Iterable[RegistryEntry]) -> Registry:
    """What the entries say together.

    Raises:
        ActorsTampered: one of them contradicts those before it, or a rotation is not signed by both keys.
    """
    registrar, size, policy = "", 0, None
    actors: dict[str, Actor] = {}
    keys: dict[str, str] = {}
    revoked: dict[str, tuple[int, KeyRevoked]] = {}
    rotated: dict[str, int] = {}
    for index, entry in enumerate(entries):
        size = index + 1
        _check(index, isinstance(entry, RegistryBegun) == (index == 0), "the first entry alone names the registrar")
        match entry:
            case RegistryBegun():
                registrar = entry.key
            case ActorEnrolled():
                known = actors.get(entry.name)
                free = known is None or known.key in revoked
                _check(index, free, f"an actor {entry.name} is enrolled already")
                _check(index, entry.key not in keys, f"the key {entry.key} is {keys.get(entry.key)}'s already")
                actors[entry.name] = Actor(name=entry.name, kind=entry.kind, key=entry.key)
                keys[entry.key] = entry.name
            case KeyRotated():
                known = actors.get(entry.name)
                now = known.key if known else "none"
                _check(index, now == entry.old, f"{entry.name}'s key is {now}, not {entry.old}")
                _check(index, entry.old not in revoked, f"the key {entry.old} was revoked")
                _check(index, entry.new not in keys, f"the key {entry.new} is {keys.get(entry.new)}'s already")
                _check_rotation(index, entry)
                actors[entry.name] = msgspec.structs.replace(actors[entry.name], key=entry.new)
                keys[entry.new] = entry.name
                rotated[entry.old] = index
            case KeyRevoked():
                _check(index, keys.get(entry.key) == entry.name, f"{entry.key} is no key of {entry.name}")
                revoked.setdefault(entry.key, (index, entry))
            case PolicySet():
                policy = entry
    return Registry(
        registrar=registrar,
        size=size,
        actors=actors,
        revoked=revoked,
        keys=keys,
        rotated=rotated,
        policy=policy,
    )


def _check(index: int, holds: bool, otherwise: str) -> None:
    if not holds:
        raise ActorsTampered(f"entry {index} of the log of actors does not follow: {otherwise}", hint=_EVIDENCE)


_EVIDENCE = "keep the store as evidence; nothing is approved by what it says"


def rotation_bytes(name: str, old: str, new: str) -> bytes:
    """What both keys sign when one gives way to the other."""
    return _ROTATION + canonical(KeyRotated(name=name, old=old, new=new))


def _check_rotation(index: int, entry: KeyRotated) -> None:
    data = rotation_bytes(entry.name, entry.old, entry.new)
    for key, signature in ((entry.old, entry.by_old), (entry.new, entry.by_new)):
        try:
            verify_signature(Signature(key=key, signature=signature), data, key)
        except SignatureInvalid as e:
            raise ActorsTampered(f"entry {index} of the log of actors: {e}", hint=_EVIDENCE) from e


# ------------------------------------------------------------------------- reading


def has_registry(store: Store) -> bool:
    """Was an actor ever enrolled in this store?"""
    return _folder(store).is_dir()


def read_registry(store: Store, registrar: str = "", size: int = -1) -> Registry:
    """The registry, verified against `registrar`, or the key that it names itself; at an earlier `size` if given.

    Raises:
        UsageError: no actor was ever enrolled here, or the log is shorter than `size`.
        ActorsTampered: the log, or `actors.toml`, does not verify, or another registrar keeps it.
    """
    if not has_registry(store):
        raise UsageError(f"no actor is enrolled in {store.path}", hint="trainwarden keys new NAME --kind person")
    try:
        entries = _entries(store)
        named = entries[0].key if entries and isinstance(entries[0], RegistryBegun) else ""
        if not named:
            raise ActorsTampered("the log of actors does not begin with its registrar", hint=_EVIDENCE)
        if registrar and named != registrar:
            raise ActorsTampered(
                f"the log of actors is kept by {named}, expected {registrar}",
                hint="another log was put in its place, or this seal was made for another store",
            )
        verify_log(_folder(store), named, ORIGIN)
    except (LogError, SignatureInvalid, msgspec.DecodeError) as e:
        raise ActorsTampered(f"the log of actors does not verify: {e}", hint=_EVIDENCE) from e
    whole = fold(entries)
    _compare_copy(store, entries)
    if size > len(entries):
        raise UsageError(f"the log of actors has {len(entries)} entries, {size} were there once", hint=_EVIDENCE)
    return whole if size < 0 else fold(entries[:size])


def _entries(store: Store) -> list[RegistryEntry]:
    with LogReader.open(_folder(store)) as log:
        return [decode_registry_entry(data) for _, data in log.entries()]


def _compare_copy(store: Store, entries: Sequence[RegistryEntry]) -> None:
    """`actors.toml` must say what the log says; an older state is what a crash leaves."""
    try:
        text = _copy(store).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as e:
        raise ActorsTampered(f"{_copy(store)} cannot be read: {e}", hint=_EVIDENCE) from e
    if not any(text == listing(fold(entries[:n])) for n in range(len(entries), 0, -1)):
        raise ActorsTampered(
            f"{_copy(store)} is not what the log of actors says",
            hint="somebody edited it: keep it as evidence and move it away; the log is what counts",
        )


def listing(registry: Registry) -> str:
    """The registry as TOML."""
    lines = [_HEAD, f'registrar = "{registry.registrar}"', f"entries = {registry.size}"]
    if registry.policy is not None:
        names = ", ".join(f'"{name}"' for name in registry.policy.approvers)
        lines += ["", "[policy]", f"approvals = {registry.policy.approvals}", f"approvers = [{names}]"]
    for actor in registry.actors.values():
        lines += ["", "[[actor]]", f'name = "{actor.name}"', f'kind = "{actor.kind}"', f'key = "{actor.key}"']
        if actor.key in registry.revoked:
            lines.append(f"revoked = {registry.revoked[actor.key][0]}  # entry")
    return "\n".join(lines) + "\n"


def _folder(store: Store) -> Path:
    return store.path / "actors"


def _copy(store: Store) -> Path:
    return store.path / "actors.toml"


# ------------------------------------------------------------------------- writing


def enrol(store: Store, registrar: SigningKey, name: str, kind: ActorKind, key: str) -> Registry:
    """Enrol an actor with a public key; begins the log on first use.

    Raises:
        UsageError: the name or the key is taken.
        KeyUnusable: `registrar` does not keep this store's log of actors.
        ActorsTampered, StoreError, LogError: the log cannot be trusted or written.
    """
    with store_errors(f"write the actors of {store.path}"):
        if not has_registry(store):
            LogWriter.create(_folder(store), ORIGIN, registrar).close()
        if not _entries(store):  # new, or a crash came between
            _append(store, registrar, RegistryBegun(key=registrar.public, wall_ns=time.time_ns()))
    return _add(store, registrar, ActorEnrolled(name=name, kind=kind, key=key, wall_ns=time.time_ns()))


def rotate(store: Store, registrar: SigningKey, name: str, old: SigningKey, new: SigningKey) -> Registry:
    """Give an actor a new key, signed by the old one and by itself.

    Raises:
        UsageError, KeyUnusable, ActorsTampered, StoreError, LogError: as `enrol`.
    """
    data = rotation_bytes(name, old.public, new.public)
    return _add(
        store,
        registrar,
        KeyRotated(
            name=name,
            old=old.public,
            new=new.public,
            by_old=old.sign(data).signature,
            by_new=new.sign(data).signature,
            wall_ns=time.time_ns(),
        ),
    )


def revoke(store: Store, registrar: SigningKey, name: str, reason: str, since_ns: int = 0) -> Registry:
    """Revoke an actor's present key; `since_ns` is when it may have fallen into other hands, 0 for now.

    Raises:
        UsageError, KeyUnusable, ActorsTampered, StoreError, LogError: as `enrol`.
    """
    actor = known_actor(read_registry(store), name)
    now = time.time_ns()
    return _add(
        store,
        registrar,
        KeyRevoked(name=name, key=actor.key, reason=reason, since_ns=since_ns or now, wall_ns=now),
    )


def set_policy(store: Store, registrar: SigningKey, approvals: int, approvers: Sequence[str]) -> Registry:
    """Set the least that every seal in this store demands.

    Raises:
        UsageError: an approver is not enrolled, or there are fewer of them than approvals.
        KeyUnusable, ActorsTampered, StoreError, LogError: as `enrol`.
    """
    registry = read_registry(store)
    check_policy(registry, approvals, approvers)
    return _add(store, registrar, PolicySet(approvals=approvals, approvers=tuple(approvers), wall_ns=time.time_ns()))


def check_policy(registry: Registry, approvals: int, approvers: Sequence[str]) -> None:
    """Could this many of these actors ever approve?

    Raises:
        UsageError: they could not.
    """
    for name in approvers:
        known_actor(registry, name)
    if len(set(approvers)) != len(approvers):
        raise UsageError(f"an approver is named twice: {', '.join(approvers)}", hint="name each actor once")
    if not 0 <= approvals <= len(approvers):
        raise UsageError(
            f"{approvals} approvals are asked of {len(approvers)} approvers", hint="between 0 and their number"
        )


def known_actor(registry: Registry, name: str) -> Actor:
    """The actor of that name.

    Raises:
        UsageError: nobody of that name is enrolled.
    """
    if name not in registry.actors:
        names = ", ".join(registry.actors) or "nobody yet"
        raise UsageError(f"no actor {name!r} is enrolled", hint=f"enrolled: {names}; trainwarden keys new {name}")
    return registry.actors[name]


def _add(store: Store, registrar: SigningKey, entry: RegistryEntry) -> Registry:
    """Append what follows from the log, and only that."""
    entries = _entries(store)
    before = read_registry(store)
    if before.registrar != registrar.public:
        raise KeyUnusable(
            f"the log of actors is kept by {before.registrar}, your key is {registrar.public}",
            hint="ask the registrar, who alone enrols, rotates and revokes in this store",
        )
    try:
        registry = fold([*entries, entry])
    except ActorsTampered as e:
        raise UsageError(str(e).partition("follow: ")[2] or str(e), hint="trainwarden keys list") from e
    with store_errors(f"write the actors of {store.path}"):
        _append(store, registrar, entry)
        write_atomically(_copy(store), listing(registry).encode())
    return registry


def _append(store: Store, registrar: SigningKey, entry: RegistryEntry) -> None:
    log = LogWriter.open(_folder(store), registrar)
    try:
        log.append([canonical(entry)])
    finally:
        log.close()
