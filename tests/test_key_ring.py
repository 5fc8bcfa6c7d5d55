"""The keys of actors: each in a private file or the system's key store, never replaced unseen, rotated without loss."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from trainwarden.errors import KeyUnusable, UsageError
from trainwarden.keys import SigningKey, ring
from trainwarden.keys.ring import Place

ONE, TWO = b"\x01" * 32, b"\x02" * 32


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "config" / "key"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")


@pytest.fixture
def key_store(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """A key store in memory behind the real library."""
    keyring = pytest.importorskip("keyring")
    backend = pytest.importorskip("keyring.backend")
    kept: dict[tuple[str, str], str] = {}

    class Memory(backend.KeyringBackend):  # type: ignore[misc, name-defined]
        priority = 1

        def get_password(self, service: str, username: str) -> str | None:
            return kept.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            kept[service, username] = password

        def delete_password(self, service: str, username: str) -> None:
            del kept[service, username]

    before = keyring.get_keyring()
    keyring.set_keyring(Memory())
    yield kept  # type: ignore[misc]
    keyring.set_keyring(before)


def test_a_key_is_kept_in_a_private_file_and_found_by_its_public_key() -> None:
    made = ring.keep("ada", ONE, Place.FILE)
    path = ring.key_file("ada")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert ring.load("ada", made.public).public == SigningKey(ONE).public
    assert ring.place_of("ada") is Place.FILE


def test_an_existing_key_is_never_replaced(key_store: dict[tuple[str, str], str]) -> None:
    for place in Place:
        ring.keep("ada", ONE, place)
        with pytest.raises(KeyUnusable, match="has a key already"):
            ring.keep("ada", TWO, place)
    assert ring.load("ada", SigningKey(ONE).public)


def test_a_key_in_the_key_store_leaves_no_file(key_store: dict[tuple[str, str], str]) -> None:
    made = ring.keep("agent-7", TWO, Place.KEYRING)
    assert list(key_store) == [("trainwarden", "agent-7")]
    assert not ring.key_file("agent-7").exists()
    assert ring.load("agent-7", made.public).public == made.public
    assert ring.place_of("agent-7") is Place.KEYRING


@pytest.mark.parametrize("place", list(Place))
def test_a_rotation_cut_short_loses_neither_key(place: Place, key_store: dict[tuple[str, str], str]) -> None:
    old = ring.keep("ada", ONE, place)
    new = ring.keep("ada", TWO, place, following=True)
    assert ring.load("ada", old.public).public == old.public  # the log does not have the rotation yet
    assert ring.load("ada", new.public).public == new.public  # now it has: the new one moves into place
    with pytest.raises(KeyUnusable, match="enrolled is"):
        ring.load("ada", old.public)


def test_a_key_store_that_keeps_nothing_is_refused() -> None:
    keyring = pytest.importorskip("keyring")
    null = pytest.importorskip("keyring.backends.null")
    before = keyring.get_keyring()
    keyring.set_keyring(null.Keyring())
    try:
        with pytest.raises(KeyUnusable, match="no key store that keeps secrets"):
            ring.keep("ada", ONE, Place.KEYRING)
    finally:
        keyring.set_keyring(before)


def test_a_key_store_that_is_locked_is_one_error_and_keys_in_files_need_none() -> None:
    keyring = pytest.importorskip("keyring")
    backend, errors = pytest.importorskip("keyring.backend"), pytest.importorskip("keyring.errors")

    class Locked(backend.KeyringBackend):  # type: ignore[misc, name-defined]
        priority = 1

        def get_password(self, service: str, username: str) -> str | None:
            raise errors.KeyringLocked("the collection is locked")

        set_password = delete_password = get_password

    before = keyring.get_keyring()
    keyring.set_keyring(Locked())
    try:
        with pytest.raises(KeyUnusable, match="the collection is locked") as refused:
            ring.keep("ada", ONE, Place.KEYRING)
        assert refused.value.hint
        made = ring.keep("ada", ONE, Place.FILE)
        assert ring.load("ada", made.public).public == made.public
    finally:
        keyring.set_keyring(before)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_an_actors_key_open_to_others_is_refused(mode: int) -> None:
    made = ring.keep("ada", ONE, Place.FILE)
    ring.key_file("ada").chmod(mode)
    with pytest.raises(KeyUnusable, match=f"{mode:04o}"):
        ring.load("ada", made.public)


@pytest.mark.parametrize("name", ["", "../ada", "Ada", "a/b", "-a", "a" * 64, "a.next", "ada\n"])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name an actor"):
        ring.keep(name, ONE, Place.FILE)
