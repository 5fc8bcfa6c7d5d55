"""What the entries of a log of custody say together (pure): entries and registry in, custody out.

Rules
-----
* The first entry names the key that signs the log's tree heads; every later one is signed by the actor who made it, for
  its own place in the log.
* An incident is what its entries say together. Nothing is removed from one; a closed one takes nothing more but what
  somebody concerned says of it.
* A file may be read again, as another host's or with other editors. Both readings stay; open incidents go by the
  newest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import msgspec

from trainwarden.actors.registry import Registry
from trainwarden.errors import CustodyTampered, SignatureInvalid
from trainwarden.keys import verify_signature
from trainwarden.model import (
    CustodyBegun,
    CustodyEntry,
    DossierMade,
    Evidence,
    EvidenceTaken,
    Incident,
    IncidentAdded,
    IncidentClosed,
    IncidentOpened,
    IncidentStatus,
    Signature,
    StatementTaken,
    canonical,
)

HINT = "keep the store as evidence; nothing is concluded from a log that was altered"
_DOMAIN = b"trainwarden/custody/v1\n"

Signed: TypeAlias = EvidenceTaken | IncidentOpened | IncidentAdded | IncidentClosed | StatementTaken | DossierMade


class Custody(msgspec.Struct, frozen=True, kw_only=True):
    """What a log of custody says at one size."""

    key: str
    size: int
    evidence: Mapping[str, EvidenceTaken]  # by `Evidence.id`, as it was read last
    incidents: Mapping[str, Incident]  # by id, oldest first
    earlier: Mapping[str, tuple[EvidenceTaken, ...]] = {}  # readings of evidence that a later one replaced
    dossiers: tuple[DossierMade, ...] = ()
    doubted: Mapping[int, str]  # entries whose key was revoked since then or before, with the reason

    def reading(self, evidence: Evidence) -> tuple[EvidenceTaken, tuple[EvidenceTaken, ...]]:
        """The entry by which this evidence was read as it is told here, and those of readings before it.

        Raises:
            KeyError: it was never taken in.
        """
        taken = (*self.earlier.get(evidence.id, ()), self.evidence[evidence.id])
        at = next(n for n, entry in enumerate(taken) if entry.evidence == evidence)
        return taken[at], taken[:at]


def signed_bytes(entry: Signed) -> bytes:
    """What the actor of an entry signs."""
    return _DOMAIN + canonical(msgspec.structs.replace(entry, signature=""))


def fold(entries: Iterable[CustodyEntry], registry: Registry | None = None) -> Custody:
    """What the entries say together.

    Raises:
        CustodyTampered: one of them contradicts those before it, or is not signed by whom it names.
    """
    told = _Told()
    for index, entry in enumerate(entries):
        told.size = index + 1
        _check(index, isinstance(entry, CustodyBegun) == (index == 0), "the first entry alone names the key")
        if isinstance(entry, CustodyBegun):
            told.key = entry.key
            continue
        _check_signed(index, entry, told.key, registry)
        if doubt := _doubt(entry, registry):
            told.doubted[index] = doubt
        _follow(told, index, entry)
    return Custody(
        key=told.key,
        size=told.size,
        evidence=told.evidence,
        earlier=told.earlier,
        incidents=told.incidents,
        dossiers=tuple(told.dossiers),
        doubted=told.doubted,
    )


class _Told:
    """What the entries said so far."""

    def __init__(self) -> None:
        self.key, self.size = "", 0
        self.evidence: dict[str, EvidenceTaken] = {}
        self.earlier: dict[str, tuple[EvidenceTaken, ...]] = {}
        self.incidents: dict[str, Incident] = {}
        self.dossiers: list[DossierMade] = []
        self.doubted: dict[int, str] = {}


def _doubt(entry: Signed, registry: Registry | None) -> str:
    """Why an entry is doubted: its key was revoked since then or before; else ""."""
    revoked = registry.revoked.get(entry.key) if registry is not None else None
    if revoked is None or entry.wall_ns < revoked[1].since_ns:
        return ""
    return f"the key of {entry.actor} was revoked: {revoked[1].reason or 'no reason given'}"


def _follow(told: _Told, index: int, entry: Signed) -> None:
    match entry:
        case EvidenceTaken():
            _take(told, index, entry)
        case IncidentOpened():
            _check(index, entry.incident not in told.incidents, f"incident {entry.incident} was opened before")
            told.incidents[entry.incident] = Incident(
                id=entry.incident,
                title=entry.title,
                status=IncidentStatus.OPEN,
                runs=(),
                entries=(index,),
                opened_ns=entry.wall_ns,
            )
        case IncidentAdded() | IncidentClosed():
            now = told.incidents.get(entry.incident)
            if now is None or now.status is not IncidentStatus.OPEN:
                raise _does_not_follow(index, f"no incident {entry.incident} is open")
            told.incidents[entry.incident] = _grown(index, now, entry, told.evidence)
        case StatementTaken() | DossierMade():
            named = told.incidents.get(entry.incident)
            if named is None:
                raise _does_not_follow(index, f"there is no incident {entry.incident}")
            if isinstance(entry, DossierMade):
                told.dossiers.append(entry)
                return
            told.incidents[entry.incident] = msgspec.structs.replace(
                named, statements=_union(named.statements, [entry.said]), entries=(*named.entries, index)
            )


def _take(told: _Told, index: int, entry: EvidenceTaken) -> None:
    """A file of records, taken in or read again."""
    digest = entry.evidence.id
    before = told.evidence.get(digest)
    if before is not None:
        _check(index, before.evidence != entry.evidence, f"{digest} was taken in before")
        told.earlier[digest] = (*told.earlier.get(digest, ()), before)
        told.incidents |= _read_again(index, entry.evidence, told.incidents)
    told.evidence[digest] = entry


def _read_again(index: int, evidence: Evidence, incidents: Mapping[str, Incident]) -> dict[str, Incident]:
    """The open incidents that have this evidence, with its new reading; a closed one keeps the old."""
    return {
        name: msgspec.structs.replace(
            i, custody=tuple(evidence if e.id == evidence.id else e for e in i.custody), entries=(*i.entries, index)
        )
        for name, i in incidents.items()
        if i.status is IncidentStatus.OPEN and any(e.id == evidence.id for e in i.custody)
    }


def _grown(
    index: int, now: Incident, entry: IncidentAdded | IncidentClosed, taken: Mapping[str, EvidenceTaken]
) -> Incident:
    entries = (*now.entries, index)
    if isinstance(entry, IncidentClosed):
        return msgspec.structs.replace(
            now, status=IncidentStatus.CLOSED, closed_ns=entry.wall_ns, outcome=entry.outcome, entries=entries
        )
    for digest in entry.evidence:
        _check(index, digest in taken, f"{digest} was never taken in")
    return msgspec.structs.replace(
        now,
        runs=_union(now.runs, entry.runs),
        findings=_union(now.findings, entry.findings),
        verdicts=_union(now.verdicts, entry.verdicts),
        artefacts=_union(now.artefacts, entry.artefacts),
        custody=_union(now.custody, [taken[digest].evidence for digest in entry.evidence]),
        entries=entries,
    )


U = TypeVar("U")


def _union(old: Sequence[U], new: Iterable[U]) -> tuple[U, ...]:
    return (*old, *(x for x in dict.fromkeys(new) if x not in old))


def _check(index: int, holds: bool, otherwise: str) -> None:
    if not holds:
        raise _does_not_follow(index, otherwise)


def _does_not_follow(index: int, why: str) -> CustodyTampered:
    return CustodyTampered(f"entry {index} of the log of custody does not follow: {why}", hint=HINT)


def _check_signed(index: int, entry: Signed, own: str, registry: Registry | None) -> None:
    _check(index, entry.index == index, f"it was signed for place {entry.index}")
    if not entry.actor:
        _check(index, entry.key == own, f"it names no actor and is signed by {entry.key}, not by the store's key {own}")
    else:
        keys = registry.keys if registry is not None else {}
        _check(index, keys.get(entry.key) == entry.actor, f"{entry.key[:16]}… was never a key of {entry.actor}")
    try:
        verify_signature(Signature(key=entry.key, signature=entry.signature), signed_bytes(entry), entry.key)
    except SignatureInvalid as e:
        raise CustodyTampered(f"entry {index} of the log of custody: {e}", hint=HINT) from e
