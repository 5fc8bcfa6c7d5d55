"""Verifier keys and the notes they verify: what others published is read, and every mangling of it refused."""

from __future__ import annotations

import published
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogTampered, SignatureInvalid, UsageError
from trainwarden.log.notes import open_note, parse_head, split_note, verify_head
from trainwarden.log.vkeys import COSIGNATURE, ED25519, VerifierKey, parse_vkey

KEYS = [
    (published.C2SP_VKEY, ED25519),
    (published.GO_PETER_VKEY, ED25519),
    (published.GO_ENOCH_VKEY, ED25519),
    (published.SUMDB_VKEY, ED25519),
    (published.TESSERA_VKEY, ED25519),
    (published.REKOR_VKEY, ED25519),
    (published.SUNLIGHT_WITNESS, COSIGNATURE),
    (published.SUNLIGHT_MIRROR, COSIGNATURE),
    (published.NAVIGLI_VKEY, COSIGNATURE),
]


@pytest.mark.parametrize(("text", "kind"), KEYS)
def test_published_keys_come_back_as_they_were_written(text: str, kind: int) -> None:
    key = parse_vkey(text, kind)
    assert key.text == text
    assert key.id.hex() == text.split("+")[1]
    with pytest.raises(UsageError, match="expected 0x"):
        parse_vkey(text, ED25519 + COSIGNATURE - kind)


def test_every_mangling_of_a_key_that_go_tests_is_refused() -> None:
    text = published.GO_PETER_VKEY
    mangled = {text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)} - {text}
    mangled |= {text[:i] + chr(ord(text[i]) + 1) + text[i + 1 :] for i in range(len(text))}
    for bad in (*mangled, *published.GO_BAD_VKEYS, text + "\n", " " + text):
        with pytest.raises(UsageError):
            parse_vkey(bad, ED25519)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1), st.binary(min_size=32, max_size=32), st.sampled_from([ED25519, COSIGNATURE]))
@example("\udc80", bytes(32), ED25519)
def test_a_key_of_any_name_comes_back_or_is_refused(name: str, public: bytes, kind: int) -> None:
    try:
        text = VerifierKey(name, public.hex(), kind).text
        assert parse_vkey(text, kind) == VerifierKey(name, public.hex(), kind)
    except (UsageError, UnicodeEncodeError):
        assert any(c in "+\x7f" or c.isspace() or c < " " or "\ud800" <= c <= "\udfff" for c in name)


def test_the_note_of_the_specification_opens() -> None:
    key = parse_vkey(published.C2SP_VKEY, ED25519)
    assert open_note(published.C2SP_NOTE.encode(), key.name, key.public) == "This is an example message.\n"


def test_a_note_of_two_signers_opens_for_either() -> None:
    note = f"{published.GO_TEXT}\n{published.GO_PETER}{published.GO_ENOCH}".encode()
    for text in (published.GO_PETER_VKEY, published.GO_ENOCH_VKEY):
        key = parse_vkey(text, ED25519)
        assert open_note(note, key.name, key.public) == published.GO_TEXT
    other = parse_vkey(published.C2SP_VKEY, ED25519)
    with pytest.raises(SignatureInvalid, match="expected once"):
        open_note(note, other.name, other.public)


@pytest.mark.parametrize("note", published.GO_MALFORMED)
def test_the_malformed_notes_that_go_tests_are_refused(note: str) -> None:
    with pytest.raises(LogTampered):
        split_note(note.encode())
    with pytest.raises(LogTampered):
        split_note(b"\xff" + published.GO_TEXT.encode() + b"\n" + published.GO_PETER.encode())


def test_a_signature_with_bytes_put_in_is_not_passed_over() -> None:
    key = parse_vkey(published.GO_PETER_VKEY, ED25519)
    note = f"{published.GO_TEXT}\n{published.GO_PETER[:60]}ABCD{published.GO_PETER[60:]}".encode()
    with pytest.raises(SignatureInvalid):
        open_note(note, key.name, key.public)


def test_a_head_of_a_real_log_verifies_although_its_key_has_another_name() -> None:
    key = parse_vkey(published.SUMDB_VKEY, ED25519)
    head = verify_head(published.SUMDB_HEAD.encode(), key.public, key.name)
    assert (head.origin, head.size) == ("go.sum database tree", 63_096_908)
    with pytest.raises(SignatureInvalid):
        verify_head(published.SUMDB_HEAD.replace("63096908", "63096909").encode(), key.public, key.name)


@pytest.mark.parametrize("size", published.TESSERA_HEADS)
def test_the_heads_of_tesseras_test_log_verify(size: int) -> None:
    key = parse_vkey(published.TESSERA_VKEY, ED25519)
    assert verify_head(published.TESSERA_HEADS[size].encode(), key.public).size == size


def test_signatures_of_unknown_kinds_and_lengths_are_carried() -> None:
    for note in (published.C2SP_COSIGNED, published.SUNLIGHT_WITNESSED):
        assert parse_head(note.encode()).note == note
    short = published.C2SP_COSIGNED + "\u2014 some/key AAAAAAA=\n"  # 5 bytes: a key id and one byte
    assert len(split_note(short.encode())[1]) == 3
    with pytest.raises(LogTampered, match="4 bytes"):
        split_note((published.C2SP_COSIGNED + "\u2014 some/key AAAAAA==\n").encode())


def test_sixteen_of_the_largest_signatures_are_accepted() -> None:
    line = "\u2014 some/key " + "AAAA" * 1700 + "\n"
    assert len(split_note((published.C2SP_COSIGNED + line * 16).encode())[1]) == 18
    with pytest.raises(LogTampered, match="at most"):
        split_note((published.C2SP_COSIGNED + line * 100).encode())
