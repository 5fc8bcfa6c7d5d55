"""Salted commitments to fields, and the root over them. Pure: records in, hashes out.

Rules
-----
* A field is committed to as RFC 9901 (SD-JWT, 4.2.1) does: the JSON array `[salt, name, value]`, hashed. The hash is
  the leaf hash of RFC 6962 with SHA-256, so that fields are leaves of a tree.
* An item's root is the RFC 6962 root over the leaf `[id, kind, [names]]`, which is never hidden, and its fields'
  commitments in the order of the names. The register's root is that over the items' roots, in order.
* JSON is written one way: UTF-8, no space, members of objects sorted. What was read and written again is the same.

Trust: a salt of 128 bits keeps a hidden field from being guessed. Nobody can show another value under the same root.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

import msgspec

from trainwarden.dossier.nouns import Disclosure, Item, Shown
from trainwarden.errors import DossierTampered
from trainwarden.log.merkle import HASH_SIZE, leaf_hash, root

_SALT_BYTES = 16


def plain(value: object) -> object:
    """A value as it is after it was written and read again: dicts, lists, strings, numbers."""
    return msgspec.json.decode(_json(value))


def salt_of(secret: bytes, item: str, name: str, value: object) -> str:
    """The salt of a field: a PRF of its place and value (HMAC-SHA-256, 128 bits), so that the same is salted alike."""
    return hmac.digest(secret, _json([item, name, value]), "sha256")[:_SALT_BYTES].hex()


def commitment(name: str, told: Disclosure) -> bytes:
    """What a field is committed to by."""
    return leaf_hash(_json([told.salt, name, told.value]))


def disclosures(secret: bytes, item: Item) -> dict[str, Disclosure]:
    """Every field of an item with its salt."""
    return {n: Disclosure(salt=salt_of(secret, item.id, n, v), value=v) for n, v in item.fields.items()}


def shown_of(item: Item, fields: dict[str, Disclosure], names: Iterable[str]) -> Shown:
    """An item that discloses the fields of these names and hides the others."""
    open_names = set(names)
    return Shown(
        id=item.id,
        kind=item.kind,
        names=tuple(sorted(fields)),
        shown={n: told for n, told in fields.items() if n in open_names},
        hidden={n: commitment(n, told).hex() for n, told in fields.items() if n not in open_names},
        proof=item.proof if "leaf" in open_names else None,
    )


def item_root(item: Shown) -> bytes:
    """The root over one item.

    Raises:
        DossierTampered: its names are not those of its fields, or a commitment is malformed.
    """
    if list(item.names) != sorted({*item.shown, *item.hidden}) or set(item.shown) & set(item.hidden):
        raise DossierTampered(f"item {item.id}: its fields are not the {len(item.names)} that it names")
    head = leaf_hash(_json([item.id, item.kind, list(item.names)]))
    return root([head, *(_committed(item, name) for name in item.names)])


def _committed(item: Shown, name: str) -> bytes:
    told = item.shown.get(name)
    if told is not None:
        return commitment(name, told)
    try:
        found = bytes.fromhex(item.hidden[name])
    except ValueError:
        found = b""
    if len(found) != HASH_SIZE:
        raise DossierTampered(f"item {item.id}: the commitment of its field {name!r} is malformed")
    return found


def register_root(items: Sequence[Shown]) -> str:
    """The root over all items, in hex.

    Raises:
        DossierTampered: as `item_root`.
    """
    return root([leaf_hash(item_root(item)) for item in items]).hex()


def _json(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")
