"""Who may see what: names replaced by pseudonyms, audience by audience. Pure.

Rules
-----
* A name is replaced wherever it stands in a value: in a field of its own, in a sentence, in a path, in a key of a map.
* A pseudonym is the same in all editions ("account-3"), numbered by a keyed hash: its order tells nothing.
* The bytes of an entry, and the words of a record's line, are shown only where nothing in them is replaced: whoever has
  the hash of an entry and all but one short field could try every name.
* The organisation sees everything. Others see what `HIDDEN` leaves them; the university of a person keeps the account
  that the conclusion is about, and no other.

Trust: what is not known as a name (a person called by a first name in somebody's prose) is not found here. Whoever
makes a dossier names such words with `--hide`, and reads the edition before it leaves the house.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from trainwarden.dossier.nouns import Audience, Item


class Named(StrEnum):
    """What a name is of."""

    ACCOUNT = "account"
    PERSON = "person"
    HOST = "host"
    ADDRESS = "address"
    PATH = "file"
    WORD = "word"  # whatever whoever made the dossier asked for


HIDDEN: Mapping[Audience, frozenset[Named]] = {
    Audience.ORGANISATION: frozenset(),
    Audience.REGULATOR: frozenset({Named.ADDRESS, Named.WORD}),
    Audience.UNIVERSITY: frozenset({Named.ACCOUNT, Named.HOST, Named.ADDRESS, Named.WORD}),
    Audience.INDUSTRY: frozenset({Named.ACCOUNT, Named.PERSON, Named.HOST, Named.ADDRESS, Named.WORD}),
    Audience.PUBLIC: frozenset(Named),
}
_SYSTEM = {"", "*", "root", "nobody", "daemon", "(unknown)"}  # accounts that are nobody's
_IDS = {"uid", "login_uid"}  # numbers that stand for an account
_WHOLE = {"leaf", "raw"}  # fields that are shown as they are, or not at all
_PATH = re.compile(r"(?<![\w/.])/(?:[^\s/'\"<>]+/)+[^\s/'\"<>,;:)]+")
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:)*[0-9a-f]{1,4}::[0-9a-f:.]*)"
    r"(?![\w.:]*\w:)",
    re.IGNORECASE,
)
_TAIL = 24  # characters of a file's name that stay visible, so that "adamw.py" does


class Names(msgspec.Struct, frozen=True):
    """Every name that the records have, by what it is of, and the account that the conclusion is about."""

    found: Mapping[Named, frozenset[str]]
    concerned: str = ""


class Mask:
    """What replaces the names that an audience may not see."""

    def __init__(self, names: Names, audience: Audience, secret: bytes) -> None:
        hides = HIDDEN[audience]
        self._paths, self._addresses = Named.PATH in hides, Named.ADDRESS in hides
        pseudonyms: dict[str, str] = {}
        for kind, found in names.found.items():
            if kind in hides:
                pseudonyms |= _numbered(kind, found - _SYSTEM, secret)
        if audience is Audience.UNIVERSITY:
            pseudonyms.pop(names.concerned, None)
        self._by_lower = {name.lower(): p for name, p in pseudonyms.items()}
        words = "|".join(re.escape(n) for n in sorted(self._by_lower, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", re.IGNORECASE) if words else None

    def __call__(self, value: object) -> object:
        """The value with every such name replaced."""
        match value:
            case str():
                return self._text(value)
            case list():
                return [self(v) for v in value]
            case dict():
                return {self._text(str(k)): self._number(k, v) for k, v in value.items()}
            case _:
                return value

    def _number(self, key: object, value: object) -> object:
        if key in _IDS and self._pattern is not None and isinstance(value, int) and value > 0:
            return -1
        return self(value)

    def _text(self, text: str) -> str:
        if self._paths:
            text = _PATH.sub(lambda m: f"…/{m[0].rsplit('/', 1)[-1][-_TAIL:]}", text)
        if self._pattern is not None:
            text = self._pattern.sub(lambda m: self._by_lower[m[0].lower()], text)
        if self._addresses:  # those that are in nobody's records as an address, too
            text = _ADDRESS.sub("(address)", text)
        return text


def _numbered(kind: Named, names: Iterable[str], secret: bytes) -> dict[str, str]:
    ordered = sorted(names, key=lambda n: hmac.digest(secret, f"{kind}/{n}".encode(), hashlib.sha256))
    return {name: f"{kind}-{n}" for n, name in enumerate(ordered, 1)}


def with_forms(item: Item, masks: Mapping[Audience, Mask]) -> Item:
    """The item with a form of each field for each audience that may not see it as it is, as `NAME@AUDIENCE`."""
    fields = dict(item.fields)
    for name, value in item.fields.items():
        if name in _WHOLE:
            continue
        for audience, mask in masks.items():
            if (masked := mask(value)) != value:
                fields[f"{name}@{audience}"] = masked
    return msgspec.structs.replace(item, fields=fields)


def names_for(item: Item, audience: Audience) -> list[str]:
    """The fields of an item with forms that an edition for this audience shows."""
    other = {name.partition("@")[0] for name in item.fields if name.endswith(f"@{audience}")}
    plain = [n for n in item.fields if "@" not in n and n not in other and not (other and n in _WHOLE)]
    return plain + [f"{name}@{audience}" for name in sorted(other)]
