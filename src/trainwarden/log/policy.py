"""Which witnesses have to cosign a head: policy files (C2SP tlog-policy) and the plain k of n. Pure.

    log     VKEY [URL]
    witness NAME VKEY [URL]
    group   NAME all|any|K NAME…
    quorum  NAME|none

Rules
-----
* Names are defined before they are used, once, and belong to one group at most, so no witness counts twice.
* A key appears once. Whatever is not understood is an error: a policy is never weaker than it was written.
* Control characters other than tab and newline are refused; bytes that are not UTF-8 are kept as they are.

Trust: the policy is the reader's own; whoever writes it says whom to believe.
Source: https://c2sp.org/tlog-policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trainwarden.errors import UsageError
from trainwarden.log.cosignature import Enough, Quorum, TooFew, cosignatures
from trainwarden.log.vkeys import COSIGNATURE, ED25519, VerifierKey, parse_vkey

MAX_POLICY = 256 * 1024
MAX_GROUPS = 256  # nested ones are judged by recursion
NONE = "none"
_SYNTAX = "log VKEY [URL], witness NAME VKEY [URL], group NAME all|any|K NAME…, quorum NAME|none"


class Group(msgspec.Struct, frozen=True):
    """At least `k` of the members, which are names of witnesses and groups."""

    k: int
    members: tuple[str, ...]


class Policy(msgspec.Struct, frozen=True):
    """What a head needs; `urls` gives for a key's hex where its owner is reached, if that was said."""

    logs: tuple[VerifierKey, ...] = ()
    witnesses: dict[str, VerifierKey] = {}
    groups: dict[str, Group] = {}
    quorum: str = NONE
    urls: dict[str, str] = {}


def k_of(witnesses: Sequence[VerifierKey], k: int) -> Policy:
    """The policy that any `k` of these witnesses suffice.

    Raises:
        UsageError: there are fewer, two of them are the same key, or `k` is less than 1.
    """
    names = {f"{w.name}+{w.id.hex()}": w for w in witnesses}
    if len({w.public for w in witnesses}) != len(witnesses):
        raise UsageError("a witness is named twice", hint="each has to have a key of its own")
    if not 1 <= k <= len(names):
        raise UsageError(
            f"{k} cosignatures of {len(names)} witnesses cannot be demanded",
            hint="at least one, and at most as many as there are witnesses",
        )
    return Policy(witnesses=names, groups={"": Group(k, tuple(names))}, quorum="")


def parse_policy(data: bytes) -> Policy:
    """Read a policy file.

    Raises:
        UsageError: a line is not understood or contradicts another; it names the line.
    """
    if len(data) > MAX_POLICY:
        raise UsageError(f"a policy of {len(data)} bytes, at most {MAX_POLICY} are read")
    if any((c < 0x20 and c not in b"\t\n") or c == 0x7F for c in data):
        raise UsageError("the policy has a control character", hint="tabs and newlines are the only ones allowed")
    reading = _Reading()
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        words = line.replace("\t", " ").strip(" ").split(" ")
        words = [word for word in words if word]
        if not words or words[0].startswith("#"):
            continue
        try:
            reading.take(words)
        except UsageError as e:
            raise UsageError(f"line {number} of the policy: {e}", hint=e.hint) from None
    if reading.quorum is None:
        raise UsageError("the policy has no quorum line", hint="`quorum none` asks for no cosignature")
    return Policy(tuple(reading.logs), reading.witnesses, reading.groups, reading.quorum, reading.urls)


class _Reading:
    """What was read of a policy so far."""

    def __init__(self) -> None:
        self.logs: list[VerifierKey] = []
        self.witnesses: dict[str, VerifierKey] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self.urls: dict[str, str] = {}
        self._member_of: dict[str, str] = {}

    def take(self, words: list[str]) -> None:
        match words:
            case ["log", vkey, *url] if len(url) <= 1:
                self.logs.append(self._key(vkey, ED25519, url, self.logs))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self._new_name(name)
                self.witnesses[name] = self._key(vkey, COSIGNATURE, url, list(self.witnesses.values()))
            case ["group", name, k, *members] if members:
                self._new_name(name)
                self._group(name, k, members)
            case ["quorum", name]:
                if self.quorum is not None:
                    raise UsageError(f"a second quorum, {name!r} after {self.quorum!r}")
                if name != NONE and not self._known(name):
                    raise UsageError(f"the quorum {name!r} is not defined above")
                self.quorum = name
            case _:
                raise UsageError(f"not understood: {' '.join(words)[:80]!r}", hint=_SYNTAX)

    def _key(self, text: str, kind: int, url: list[str], others: Sequence[VerifierKey]) -> VerifierKey:
        key = parse_vkey(text, kind)
        if any(other.public == key.public for other in others):
            raise UsageError(f"the key of {key.name} is there already")
        self.urls |= {key.public: url[0]} if url else {}
        return key

    def _group(self, name: str, threshold: str, members: list[str]) -> None:
        for member in members:
            if not self._known(member):
                raise UsageError(f"the member {member!r} of the group {name!r} is not defined above")
            if member in self._member_of:
                raise UsageError(f"{member!r} is a member of {self._member_of[member]!r} already")
            self._member_of[member] = name
        named = {"any": 1, "all": len(members)}
        plain = threshold.isascii() and threshold.isdigit() and len(threshold) < 6 and threshold[0] != "0"
        k = named.get(threshold, int(threshold) if plain else 0)
        if len(self.groups) >= MAX_GROUPS:
            raise UsageError(f"more than {MAX_GROUPS} groups")
        if not 1 <= k <= len(members):
            raise UsageError(f"{threshold!r} of {len(members)} members", hint="all, any, or a number of them")
        self.groups[name] = Group(k, tuple(members))

    def _new_name(self, name: str) -> None:
        if name == NONE or self._known(name):
            raise UsageError(f"the name {name!r} is taken")

    def _known(self, name: str) -> bool:
        return name in self.witnesses or name in self.groups


def judge(policy: Policy, note: bytes) -> Quorum | None:
    """Whether the witnesses that cosigned the head in `note` meet the policy; None where it asks for none.

    Raises:
        LogTampered: the note is malformed.
        SignatureInvalid: a line by a known witness does not verify.
    """
    if policy.quorum == NONE:
        return None
    found = cosignatures(note, list(policy.witnesses.values()))
    there = {c.witness.public for c in found}
    needed = _needed(policy, policy.quorum)
    if _met(policy, policy.quorum, there):
        return Enough(needed, found)
    return TooFew(needed, found, tuple(w.name for w in policy.witnesses.values() if w.public not in there))


def _met(policy: Policy, name: str, there: set[str]) -> bool:
    if (witness := policy.witnesses.get(name)) is not None:
        return witness.public in there
    group = policy.groups[name]
    return sum(_met(policy, member, there) for member in group.members) >= group.k


def _needed(policy: Policy, name: str) -> int:
    """The least number of cosignatures that can meet the policy."""
    if name in policy.witnesses:
        return 1
    group = policy.groups[name]
    return sum(sorted(_needed(policy, member) for member in group.members)[: group.k])
