"""Who signs: people, AI agents and services, their keys, and the entries of the log of actors."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from trainwarden.model.base import Noun


class ActorKind(StrEnum):
    PERSON = "person"
    AGENT = "agent"
    SERVICE = "service"


class Actor(Noun):
    """Somebody or something that signs: a person, an AI agent or a service, and its present public key."""

    name: str
    kind: ActorKind
    key: str


class RegistryBegun(Noun, tag="registry"):
    """First entry of a log of actors: the key of the registrar, who alone appends to it."""

    key: str
    wall_ns: int = 0


class ActorEnrolled(Noun, tag="enrolled"):
    """An actor and its first key. That the key is theirs is the registrar's word."""

    name: str
    kind: ActorKind
    key: str
    wall_ns: int = 0


class KeyRotated(Noun, tag="rotated"):
    """An actor's key gives way to a new one. Both sign `trainwarden/rotation/v1`, a line feed, and the canonical
    bytes of this with `by_old`, `by_new` and `wall_ns` left out."""

    name: str
    old: str
    new: str
    by_old: str = ""
    by_new: str = ""
    wall_ns: int = 0


class KeyRevoked(Noun, tag="revoked"):
    """An actor's key counts no more, from this entry on; what it signed since `since_ns` is not believed either."""

    name: str
    key: str
    reason: str
    since_ns: int
    wall_ns: int = 0


class PolicySet(Noun, tag="policy_set"):
    """The least that every seal in this store demands: at least so many approvals, by none but these."""

    approvals: int
    approvers: tuple[str, ...]
    wall_ns: int = 0


RegistryEntry: TypeAlias = RegistryBegun | ActorEnrolled | KeyRotated | KeyRevoked | PolicySet
"""Everything that can be a leaf of the log of actors."""
