"""What a dossier is made of: items with committed fields, proofs that they are in a log, members, a signed manifest.

An *item* is one thing that a dossier says: an entry of a log, a line of a record, an act, a figure. Its fields are
committed to one by one. An *edition* is what one audience gets: the same items under the same root, with other fields
shown.
"""

from __future__ import annotations

from enum import StrEnum

from trainwarden.model import Noun

FORMAT = 1


class Audience(StrEnum):
    """Whom an edition is for."""

    ORGANISATION = "organisation"
    UNIVERSITY = "university"
    INDUSTRY = "industry"
    REGULATOR = "regulator"
    PUBLIC = "public"


class Proof(Noun):
    """The audit path of a leaf to the head of a log of the manifest (RFC 6962, 2.1.1)."""

    log: str
    index: int
    hashes: tuple[str, ...]  # hex


class Item(Noun):
    """One thing that the dossier says, whole; `fields` has the forms for audiences as `NAME@AUDIENCE`."""

    id: str
    kind: str
    fields: dict[str, object]
    proof: Proof | None = None  # of the field `leaf`


class Disclosure(Noun):
    """A field as it was committed to (RFC 9901, 4.2.1): with its salt anybody can compute the commitment."""

    salt: str
    value: object


class Shown(Noun):
    """An item of an edition: the names of all fields, disclosures of some, commitments of the others."""

    id: str
    kind: str
    names: tuple[str, ...]
    shown: dict[str, Disclosure]
    hidden: dict[str, str] = {}  # hex
    proof: Proof | None = None


class LogHead(Noun):
    """A log at one size, as its head was signed; `cosigned` has the witnesses' lines too, where there are any."""

    name: str
    key: str
    note: str
    cosigned: str = ""


class Member(Noun):
    """One file of a dossier."""

    path: str
    size: int
    sha256: str


class Manifest(Noun):
    """The signed statement of everything that is in a dossier."""

    format: int
    software: str  # version that made it: the pages are made again by the same one only
    incident: str
    audience: Audience
    made_ns: int
    register: str  # root over all items, the same in every edition
    items: int
    custody: Proof  # of the entry of the log of custody that binds the root
    entry: str  # that entry
    key: str  # that signed this
    logs: tuple[LogHead, ...]
    members: tuple[Member, ...]
    absent: dict[str, str] = {}  # what this edition lacks, and why
