"""Where the private keys of actors lie: a file each, or the system's key store.

Rules
-----
* Files: `keys/NAME` beside the user's own key, under the same rules as that (`signing`).
* The system's key store is reached through the library `keyring` (an extra); entries are named `trainwarden` and
  NAME, the value is the seed in hex. A backend that keeps nothing, or that keeps it in plain text, is refused.
* Rotation first keeps the new key beside the old one as `NAME.next`, and puts it in place once the rotation is in
  the log: a crash in between loses neither.

Trust: as `signing`; in the key store, whoever is logged in as the user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import KeyUnusable, MissingExtra, UsageError
from trainwarden.keys.signing import SigningKey, key_path, read_seed, seed_text

_SERVICE = "trainwarden"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NEXT = ".next"


class Place(StrEnum):
    FILE = "file"
    KEYRING = "keyring"


class _Backend(Protocol):
    def get_password(self, service: str, username: str) -> str | None: ...

    def set_password(self, service: str, username: str, password: str) -> None: ...

    def delete_password(self, service: str, username: str) -> None: ...


class _Told:
    """A key store whose refusals (locked, no session, no such entry) are told as our own error."""

    def __init__(self, backend: _Backend, refusals: type[Exception]) -> None:
        self._backend, self._refusals = backend, refusals

    def get_password(self, service: str, username: str) -> str | None:
        with self._telling():
            return self._backend.get_password(service, username)

    def set_password(self, service: str, username: str, password: str) -> None:
        with self._telling():
            self._backend.set_password(service, username, password)

    def delete_password(self, service: str, username: str) -> None:
        with self._telling():
            self._backend.delete_password(service, username)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (self._refusals, OSError) as e:
            why = str(e) or type(e).__name__
            raise KeyUnusable(f"the system's key store does not answer: {why}", hint="unlock it and try again") from e


def check_name(name: str) -> str:
    """The name of an actor, which is also that of its key's file.

    Raises:
        UsageError: it is not a name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot name an actor", hint="1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit"
        )
    return name


def key_file(name: str) -> Path:
    """Where the file of that actor's key lies."""
    return key_path().parent / "keys" / check_name(name)


def keep(name: str, seed: bytes, place: Place, *, following: bool = False) -> SigningKey:
    """Keep a new key; with `following` as the one that comes after the present one. An existing key is not replaced.

    Raises:
        KeyUnusable: there is a key already, or it cannot be kept.
        MissingExtra: the key store is asked for and `keyring` is not installed.
    """
    key, label = SigningKey(seed), check_name(name) + (_NEXT if following else "")
    if place is Place.KEYRING:
        backend = _keyring()
        if not following and backend.get_password(_SERVICE, label):
            raise _taken(name, "the system's key store")
        backend.set_password(_SERVICE, label, seed_text(seed))
        return key
    path = key_file(name).with_name(label)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, seed_text(seed).encode() + b"\n", mode=0o600, replace=following)
    except FileExistsError:
        raise _taken(name, str(path)) from None
    except OSError as e:
        raise KeyUnusable(f"cannot keep the key {path}: {e.strerror}", hint=hint_for(e)) from e
    return key


def forget(name: str, place: Place) -> None:
    """Remove a key that was made for an enrolment that then failed."""
    if place is Place.KEYRING:
        _keyring().delete_password(_SERVICE, check_name(name))
    else:
        key_file(name).unlink(missing_ok=True)


def load(name: str, public: str) -> SigningKey:
    """The actor's private key that belongs to `public`, from a file or else the key store.

    Raises:
        KeyUnusable: it is in neither, open to others, or another key.
    """
    found: list[tuple[str, bytes]] = []
    for kept in (_in_files, _in_keyring):  # a key in a file needs no key store that answers
        for place, seed in kept(name):
            found.append((place, seed))
            key = SigningKey(seed)
            if key.public == public:
                _settle(name, place, seed)
                return key
    where = f"the key of {name} here is {SigningKey(found[0][1]).public}" if found else f"no key of {name} is here"
    raise KeyUnusable(
        f"{where}, enrolled is {public}",
        hint=f"approve where that key is kept: {key_file(name)}, or the system's key store of its owner",
    )


def place_of(name: str) -> Place:
    """Where the actor's key is kept here; a file if it is nowhere."""
    return Place.KEYRING if not key_file(name).exists() and list(_in_keyring(name)) else Place.FILE


def _taken(name: str, where: str) -> KeyUnusable:
    return KeyUnusable(f"{name} has a key already: {where}", hint=f"trainwarden keys rotate {name}, or another name")


def _in_files(name: str) -> list[tuple[str, bytes]]:
    path = key_file(name)
    both = (path, path.with_name(name + _NEXT))
    return [(str(p), read_seed(p)) for p in both if os.path.lexists(p)]


def _in_keyring(name: str) -> list[tuple[str, bytes]]:
    try:
        backend = _keyring()
    except (MissingExtra, KeyUnusable):
        return []
    labels = (check_name(name), name + _NEXT)
    texts = ((label, backend.get_password(_SERVICE, label)) for label in labels)
    try:
        return [(label, bytes.fromhex(text)) for label, text in texts if text]
    except ValueError:
        raise KeyUnusable(f"the key store's entry {_SERVICE}/{name} is not a signing key") from None


def _settle(name: str, place: str, seed: bytes) -> None:
    """The following key has become the key: put it in the old one's place."""
    if not place.endswith(_NEXT):
        return
    if place.startswith("/"):
        os.replace(place, key_file(name))
        return
    backend = _keyring()
    backend.set_password(_SERVICE, name, seed_text(seed))
    backend.delete_password(_SERVICE, place)


def _keyring() -> _Backend:
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise MissingExtra("keyring is not installed", hint="pip install 'trainwarden[keyring]'") from None
    backend = keyring.get_keyring()
    module = type(backend).__module__
    if backend.priority <= 0 or module.startswith(("keyring.backends.fail", "keyring.backends.null", "keyrings.alt")):
        raise KeyUnusable(
            f"this system has no key store that keeps secrets (found {module})",
            hint="leave --keyring away: a file that only its owner can read is used",
        )
    return _Told(backend, keyring.errors.KeyringError)
