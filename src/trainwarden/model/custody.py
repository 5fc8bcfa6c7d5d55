"""Who touched what, as an organisation's own records tell it; incidents, and the entries of the log of custody.

A custody event is what a source says. An account is not a person: `account` ran the process, `login` is who had logged
in, and `person` is set only where a source of its own (a badge, a personnel record) names one, as a pseudonym.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from trainwarden.model.actors import ActorKind
from trainwarden.model.base import Noun


class SourceKind(StrEnum):
    """Which program wrote a file of records; the reader of that name reads it."""

    AUDIT = "audit"  # Linux audit: ausearch raw or CSV
    TETRAGON = "tetragon"
    FALCO = "falco"
    KUBERNETES = "kubernetes"  # API server audit log
    SLURM = "slurm"  # sacct -P
    JOURNAL = "journal"  # journald as JSON, sshd and others as text
    WTMP = "wtmp"
    TELEPORT = "teleport"
    GIT = "git"  # git log, and push events of its server
    FILES = "files"  # what find and stat tell of files
    SNAPSHOT = "snapshot"  # zfs diff, btrfs send --no-data | receive --dump
    SHELL = "shell"  # history files: weak
    LOG = "trainwarden"  # our own log of a run, or of actors
    STATEMENT = "statement"  # custody events as JSON lines: badges, minutes, personnel records


class Act(StrEnum):
    """What somebody or something did."""

    LOGIN = "login"
    LOGIN_FAILED = "login_failed"
    LOGOUT = "logout"
    EXECUTE = "execute"
    READ = "read"
    WRITE = "write"  # made or changed
    DELETE = "delete"
    RENAME = "rename"
    ATTRIBUTES = "attributes"  # owner, mode, times
    SIGNAL = "signal"
    CONNECT = "connect"
    SUBMIT = "submit"  # a job
    JOB = "job"  # a job ran, from `time_ns` to `until_ns`
    COMMIT = "commit"
    PUSH = "push"
    APPROVE = "approve"
    GRANT = "grant"  # access to `path` was given to `account`
    REVOKE = "revoke"  # and taken away again
    EXISTS = "exists"  # the file `path` was there with `digest`
    PRESENT = "present"  # `account` or `person` was there, from `time_ns` to `until_ns`
    ABSENT = "absent"  # and was not
    HOLDS = "holds"  # `account` belongs to `person`
    DISCLOSE = "disclose"  # something became known to `account` or `person`, such as an idea in a meeting
    SABOTAGE = "sabotage"  # what a run's own log says was done to it: a finding or a verdict, by nobody named
    OTHER = "other"


class Binding(StrEnum):
    """What ties an event to more than an account."""

    NONE = "none"
    KEY = "key"  # a key of the actor signed it; whoever holds the key can
    SECOND_FACTOR = "second_factor"  # a device of the person was asked in that session
    IN_PERSON = "in_person"  # somebody or something saw the person: a badge with a picture, a witness


class Process(Noun):
    """One process of a tree; −1 and "" where the source does not tell."""

    pid: int = -1
    program: str = ""
    argv: tuple[str, ...] = ()


class CustodyEvent(Noun, tag="custody"):
    """One act, as one line of one source tells it. What the source does not tell is left out."""

    source: str  # `Evidence.id`: digest of the file of records
    line: int  # in it, from 1; the record's number where it has no lines
    time_ns: int  # by the source's own clock
    act: Act
    error_ns: int = 0  # the source's clock and the resolution of its times: the act lies within ± this
    until_ns: int = 0  # end of what lasts, 0 = a moment
    kind: ActorKind | None = None  # what the account is for; None = not told
    account: str = ""  # whose rights it ran with
    login: str = ""  # who had logged in, where that is another account
    person: str = ""  # a pseudonym
    host: str = ""
    session: str = ""
    origin: str = ""  # address or device that it came from
    processes: tuple[Process, ...] = ()  # that acted, then its parents
    path: str = ""  # what was acted on: file, reference, job, host
    digest: str = ""  # of the artefact afterwards
    before: str = ""  # and before
    binding: Binding = Binding.NONE
    note: str = ""  # what else the source says that matters


class Unread(Noun):
    """A line of a source that could not be read, and why."""

    line: int
    reason: str


class Evidence(Noun):
    """A file of records as it was taken in: its bytes and the table of its events are objects of the store."""

    id: str  # BLAKE3 of the file
    kind: SourceKind
    name: str  # the file's name when it was taken in
    bytes: int
    events: int
    table: str  # digest of the Parquet of its events
    host: str = ""  # whose clock stamped them, "" = several or not told
    editors: tuple[str, ...] = ()  # who could have edited it before it was taken in; "*" = anybody
    weak: bool = False  # its subject can write it at will
    first_ns: int = 0
    last_ns: int = 0
    unread: int = 0  # lines that could not be read
    examples: tuple[Unread, ...] = ()  # the first of them


class Reference(Noun):
    """An entry of a run's log."""

    run: str
    index: int


class Artefact(Noun):
    """Something that was changed or planted, by digest."""

    path: str
    digest: str  # as it was found; "" = it was deleted
    what: str  # in words: "changed code", "checkpoint", …
    before: str = ""  # digest as sealed or recorded
    at: Reference | None = None  # the entry that tells of it
    found_ns: int = 0


class IncidentStatus(StrEnum):
    OPEN = "open"
    CLOSED = "closed"


class Said(Noun):
    """What somebody concerned says, in their own words; the bytes are an object of the store."""

    role: str  # "respondent" | "rebuttal" | …: a role, never a name
    name: str  # of the file as it was handed in
    digest: str  # BLAKE3
    bytes: int


class Incident(Noun):
    """What is investigated together: runs with their findings and verdicts, artefacts, and evidence of custody."""

    id: str
    title: str
    status: IncidentStatus
    runs: tuple[str, ...]
    findings: tuple[Reference, ...] = ()
    verdicts: tuple[Reference, ...] = ()
    artefacts: tuple[Artefact, ...] = ()
    custody: tuple[Evidence, ...] = ()
    statements: tuple[Said, ...] = ()
    entries: tuple[int, ...] = ()  # of the log of custody, that make this up
    opened_ns: int = 0
    closed_ns: int = 0
    outcome: str = ""  # what was said when it was closed


class CustodyBegun(Noun, tag="custody_begun"):
    """First entry of a log of custody: the key that signs its tree heads."""

    key: str
    wall_ns: int = 0


class EvidenceTaken(Noun, tag="evidence_taken"):
    """A file of records was taken in. This and the entries below are signed by an actor's key (Ed25519) over
    `trainwarden/custody/v1`, a line feed, and the canonical bytes with `signature` left out; `index` is the entry's
    own, so that a signature holds at one place only. `actor` is "" for the store's own key."""

    index: int
    evidence: Evidence
    actor: str = ""
    key: str = ""
    wall_ns: int = 0
    signature: str = ""


class IncidentOpened(Noun, tag="incident_opened"):
    """An incident was opened."""

    index: int
    incident: str
    title: str
    actor: str = ""
    key: str = ""
    wall_ns: int = 0
    signature: str = ""


class IncidentAdded(Noun, tag="incident_added"):
    """Something was added to an open incident."""

    index: int
    incident: str
    runs: tuple[str, ...] = ()
    findings: tuple[Reference, ...] = ()
    verdicts: tuple[Reference, ...] = ()
    artefacts: tuple[Artefact, ...] = ()
    evidence: tuple[str, ...] = ()  # `Evidence.id`s
    actor: str = ""
    key: str = ""
    wall_ns: int = 0
    signature: str = ""


class IncidentClosed(Noun, tag="incident_closed"):
    """An incident was closed; nothing is added to it afterwards."""

    index: int
    incident: str
    outcome: str = ""
    actor: str = ""
    key: str = ""
    wall_ns: int = 0
    signature: str = ""


class StatementTaken(Noun, tag="statement_taken"):
    """What somebody concerned says of an incident was taken in; a closed incident takes statements too."""

    index: int
    incident: str
    said: Said
    actor: str = ""
    key: str = ""
    wall_ns: int = 0
    signature: str = ""


class DossierMade(Noun, tag="dossier_made"):
    """A dossier was made of an incident; all its editions are under this one root of salted commitments."""

    index: int
    incident: str
    register: str  # root (docs/dossier.md)
    items: int
    actor: str = ""
    key: str = ""
    wall_ns: int = 0
    signature: str = ""


CustodyEntry: TypeAlias = (
    CustodyBegun | EvidenceTaken | IncidentOpened | IncidentAdded | IncidentClosed | StatementTaken | DossierMade
)
"""Everything that can be a leaf of the log of custody."""
