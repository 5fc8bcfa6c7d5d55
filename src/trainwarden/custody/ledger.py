"""The log of custody: which records were taken in, by whom, and what each incident is made of.

Rules
-----
* One append-only Merkle log a store (`custody/`), of the same form as a run's. Its first entry names the key that
  signs its tree heads; every later one is signed by the actor who made it, for its own place in the log.
* Records and the tables read from them are objects of the store; the log has their digests, so that custody of the
  evidence can itself be shown: who took it in, when, and that it is the same since.
* What the entries say together is worked out by `folding`, which is pure; nothing is appended that does not follow.

Trust: that an actor's key is theirs is the registrar's word. Nobody knows what happened to a file of records before it
was taken in: `Evidence.editors` says who could have edited it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import msgspec

from trainwarden.actors.registry import has_registry, known_actor, read_registry
from trainwarden.custody.folding import HINT, Custody, Signed, fold, signed_bytes
from trainwarden.errors import CustodyTampered, LogError, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey, ring
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.log.storage import HEAD
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    Artefact,
    CustodyBegun,
    CustodyEntry,
    DossierMade,
    Evidence,
    EvidenceTaken,
    Incident,
    IncidentAdded,
    IncidentClosed,
    IncidentOpened,
    Reference,
    Said,
    StatementTaken,
    canonical,
    decode_custody_entry,
)
from trainwarden.store import Store, store_errors

ORIGIN = "trainwarden/custody"

T = TypeVar("T", bound=Signed)


class Signer(msgspec.Struct, frozen=True):
    """Who signs an entry: an actor, or "" for the store's own key."""

    actor: str
    key: SigningKey


def signer(store: Store, actor: str = "") -> Signer:
    """The key of an enrolled actor, or the user's own.

    Raises:
        UsageError: nobody of that name is enrolled.
        KeyUnusable: the key is not here, or cannot be used.
    """
    if not actor:
        return Signer("", SigningKey.load_or_create())
    registry = read_registry(store)
    known = known_actor(registry, actor)
    key = ring.load(known.name, known.key)
    if trouble := registry.trouble_with(actor, key.public):
        raise UsageError(trouble, hint="trainwarden keys list")
    return Signer(actor, key)


# --------------------------------------------------------------------------- reading


def has_custody(store: Store) -> bool:
    """Were records ever taken in, or an incident opened, in this store?"""
    return folder(store).is_dir()


def read_custody(store: Store, key: str = "") -> Custody:
    """What the log of custody says, verified against `key`, or the key that it names itself; empty if there is none.

    Raises:
        CustodyTampered: the log does not verify.
        ActorsTampered: the log of actors does not.
    """
    nothing = Custody(key="", size=0, evidence={}, incidents={}, doubted={})
    if not (folder(store) / HEAD).exists():  # never begun, or being begun at this moment
        return nothing
    try:
        entries = _entries(store)
        if not entries and not key:
            return nothing
        named = entries[0].key if entries and isinstance(entries[0], CustodyBegun) else ""
        if not named or (key and named != key):
            raise CustodyTampered(f"the log of custody is kept by {named or 'nobody'}, expected {key}", hint=HINT)
        verify_log(folder(store), named, ORIGIN)
    except (LogError, SignatureInvalid, msgspec.DecodeError) as e:
        raise CustodyTampered(f"the log of custody does not verify: {e}", hint=HINT) from e
    return fold(entries, read_registry(store) if has_registry(store) else None)


def _entries(store: Store) -> list[CustodyEntry]:
    with LogReader.open(folder(store)) as log:
        return [decode_custody_entry(data) for _, data in log.entries()]


def folder(store: Store) -> Path:
    """Where the log of custody lies."""
    return store.path / "custody"


def find_incident(custody: Custody, name: str) -> Incident:
    """The incident with that id, the newest for "last", or else the newest that has the run with that id.

    Raises:
        UsageError: there is none.
    """
    found = [i for i in custody.incidents.values() if name in (i.id, "last") or name in i.runs]
    if not found:
        known = ", ".join(custody.incidents) or "none yet"
        raise UsageError(f"no incident {name!r}, and none with a run of that id", hint=f"there are: {known}")
    return found[-1]


# --------------------------------------------------------------------------- writing


def take(store: Store, by: Signer, evidence: Evidence) -> Custody:
    """Log that a file of records was taken in; its objects must be durable.

    Raises:
        CustodyTampered, LogError, StoreError: the log cannot be trusted or written.
        LogLocked: somebody else is writing it.
    """
    return _add(store, by, EvidenceTaken(index=0, evidence=evidence))


def open_incident(store: Store, by: Signer, title: str) -> Incident:
    """Open an incident; ids count from i1.

    Raises:
        CustodyTampered, LogError, StoreError, LogLocked: as `take`.
    """
    incident = f"i{len(read_custody(store).incidents) + 1}"
    return _add(store, by, IncidentOpened(index=0, incident=incident, title=title)).incidents[incident]


def add_to(
    store: Store,
    by: Signer,
    incident: str,
    *,
    runs: Sequence[str] = (),
    findings: Sequence[Reference] = (),
    verdicts: Sequence[Reference] = (),
    artefacts: Sequence[Artefact] = (),
    evidence: Sequence[str] = (),
) -> Incident:
    """Add to an open incident.

    Raises:
        UsageError: it is closed, there is none, or the evidence was never taken in.
        CustodyTampered, LogError, StoreError, LogLocked: as `take`.
    """
    entry = IncidentAdded(
        index=0,
        incident=incident,
        runs=tuple(runs),
        findings=tuple(findings),
        verdicts=tuple(verdicts),
        artefacts=tuple(artefacts),
        evidence=tuple(evidence),
    )
    return _add(store, by, entry).incidents[incident]


def close_incident(store: Store, by: Signer, incident: str, outcome: str) -> Incident:
    """Close an incident, with a sentence on what came of it.

    Raises:
        UsageError, CustodyTampered, LogError, StoreError, LogLocked: as `add_to`.
    """
    return _add(store, by, IncidentClosed(index=0, incident=incident, outcome=outcome)).incidents[incident]


def take_statement(store: Store, by: Signer, incident: str, role: str, path: Path) -> Incident:
    """Take in what somebody concerned says, as `role`; the same bytes in the same role are taken in once.

    Raises:
        UsageError: the file cannot be read, or there is no such incident.
        CustodyTampered, LogError, StoreError, LogLocked: as `take`.
    """
    digest = store.put_file(path)
    said = Said(role=role, name=path.name, digest=digest, bytes=store.object_path(digest).stat().st_size)
    now = find_incident(read_custody(store), incident)
    if said in now.statements:
        return now
    return _add(store, by, StatementTaken(index=0, incident=now.id, said=said)).incidents[now.id]


def log_dossier(store: Store, by: Signer, incident: str, register: str, items: int) -> DossierMade:
    """Log the root of a dossier's register, if it is not the newest of this incident already.

    Raises:
        UsageError: there is no such incident.
        CustodyTampered, LogError, StoreError, LogLocked: as `take`.
    """
    made = [d for d in read_custody(store).dossiers if d.incident == incident]
    if made and made[-1].register == register:
        return made[-1]
    return _add(store, by, DossierMade(index=0, incident=incident, register=register, items=items)).dossiers[-1]


def _add(store: Store, by: Signer, entry: Signed) -> Custody:
    """Sign the entry for its place and append it, if it follows from the log."""
    _begin(store)
    own = SigningKey.load_or_create()
    read_custody(store, own.public)  # verified before anything is added
    with closing(LogWriter.open(folder(store), own)) as log:
        entries = _entries(store)
        signed = _signed(entry, len(entries), by)
        registry = read_registry(store) if has_registry(store) else None
        try:
            after = fold([*entries, signed], registry)
        except CustodyTampered as e:
            raise UsageError(str(e).partition("follow: ")[2] or str(e), hint="trainwarden incident list") from e
        with store_errors(f"write the log of custody in {store.path}"):
            log.append([canonical(signed)])
    return after


def _begin(store: Store) -> None:
    if has_custody(store) and _entries(store):
        return
    key = SigningKey.load_or_create()
    with store_errors(f"write the log of custody in {store.path}"):
        if not has_custody(store):
            LogWriter.create(folder(store), ORIGIN, key).close()
        with closing(LogWriter.open(folder(store), key)) as log:
            if log.size == 0:
                log.append([canonical(CustodyBegun(key=key.public, wall_ns=time.time_ns()))])


def _signed(entry: T, index: int, by: Signer) -> T:
    bare = msgspec.structs.replace(entry, index=index, actor=by.actor, key=by.key.public, wall_ns=time.time_ns())
    return msgspec.structs.replace(bare, signature=by.key.sign(signed_bytes(bare)).signature)
