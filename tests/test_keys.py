"""Keys: made once, private, and a signature names who signed."""

from __future__ import annotations

import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainwarden.errors import KeyUnusable, SignatureInvalid
from trainwarden.keys import SigningKey, key_path, verify_signature
from trainwarden.model import Signature


def test_first_use_makes_a_private_key_and_the_second_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "config" / "key"
    first = SigningKey.load_or_create(path)
    assert SigningKey.load_or_create(path).public == first.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["key"]


def test_the_key_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "k"))
    key = SigningKey.load_or_create()
    assert SigningKey.load(tmp_path / "k").public == key.public
    monkeypatch.delenv("TRAINWARDEN_KEY")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert key_path() == tmp_path / "home" / ".config" / "trainwarden" / "key"


def test_many_that_make_a_key_at_once_get_the_same_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: SigningKey.load_or_create(tmp_path / "key").public, range(32)))
    assert len(set(keys)) == 1


def test_rfc8032_test_vector_1() -> None:
    key = SigningKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").signature == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    SigningKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(KeyUnusable, match=f"{mode:04o}") as e:
        SigningKey.load_or_create(path)
    assert "chmod 600" in e.value.hint
    path.chmod(0o400)
    SigningKey.load_or_create(path)


@pytest.mark.parametrize("text", [b"", b"zz" * 32, b"ab" * 31, b"ab" * 33, b"\xff" * 64, b"ab" * 4000])
def test_a_malformed_key_is_refused_and_not_replaced(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(KeyUnusable, match="64 hex digits"):
        SigningKey.load_or_create(path)
    assert path.read_bytes() == text


def test_a_missing_key_a_folder_a_fifo_and_an_impossible_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="No such file"):
        SigningKey.load(tmp_path / "none")
    with pytest.raises(KeyUnusable, match="not a regular file"):
        SigningKey.load(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KeyUnusable, match="not a regular file"):
        SigningKey.load(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyUnusable, match="Not a directory"):
        SigningKey.load_or_create(tmp_path / "file" / "key")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(KeyUnusable):
        SigningKey.load_or_create(tmp_path / "dangling")


def test_a_signature_verifies_and_any_change_to_it_does_not() -> None:
    key = SigningKey(bytes(32))
    signature = key.sign(b"data", actor="ada")
    verify_signature(signature, b"data")
    verify_signature(signature, b"data", expected_key=key.public)
    assert signature.actor == "ada"
    with pytest.raises(SignatureInvalid):
        verify_signature(signature, b"Data")
    for bad in ("", "00" * 64, "zz" * 64, signature.signature[:-2]):
        with pytest.raises(SignatureInvalid):
            verify_signature(Signature(key=key.public, signature=bad), b"data")
    for bad in ("", "00", "zz" * 32):
        with pytest.raises(SignatureInvalid):
            verify_signature(Signature(key=bad, signature=signature.signature), b"data")


def test_a_signature_by_another_key_is_refused_with_both_keys_named() -> None:
    mine, other = SigningKey(bytes(32)), SigningKey(b"\x01" * 32)
    with pytest.raises(SignatureInvalid) as e:
        verify_signature(other.sign(b"data"), b"data", expected_key=mine.public)
    assert mine.public in str(e.value)
    assert other.public in str(e.value)


def test_a_key_does_not_leak_through_repr_or_pickle() -> None:
    key = SigningKey(b"\x07" * 32)
    assert "0707" not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_key_behind_a_link_and_a_key_of_another_user_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    SigningKey.load_or_create(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(KeyUnusable, match="symbolic link"):
        SigningKey.load(tmp_path / "link")
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)
    with pytest.raises(KeyUnusable, match="belongs to user 12345, expected 0") as e:
        SigningKey.load(path)
    assert e.value.hint
