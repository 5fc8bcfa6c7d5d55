"""Signed notes: other tools' notes open here, ours are byte for byte theirs, and no byte is free to change."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogTampered, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.notes import check_origin, open_note, parse_head, sign_head, sign_note, verify_head

# The example of Go's golang.org/x/mod/sumdb/note, which C2SP signed-note describes: signer key, verifier key, note.
GO_SIGNER = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VERIFIER = "ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    GO_TEXT + "\n\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotp"
    "RZb6KE6RyyBwJnAM=\n"
)
KEY, OTHER = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
HEAD = sign_head("trainwarden/run/x", 7, bytes(range(32)), KEY)
NOTE = HEAD.note.encode()


def test_the_reference_note_is_signed_byte_for_byte() -> None:
    key = SigningKey(base64.b64decode(GO_SIGNER)[1:])
    assert sign_note(GO_TEXT, "PeterNeumann", key) == GO_NOTE
    assert key.public == base64.b64decode(GO_VERIFIER)[1:].hex()


def test_the_reference_note_opens() -> None:
    public = base64.b64decode(GO_VERIFIER)[1:].hex()
    assert open_note(GO_NOTE.encode(), "PeterNeumann", public) == GO_TEXT
    with pytest.raises(LogTampered):
        parse_head(GO_NOTE.encode())  # a note, but not of a tree head


def test_a_head_comes_back_as_it_was_signed() -> None:
    assert verify_head(NOTE, KEY.public) == parse_head(NOTE) == HEAD
    assert HEAD.note.startswith(
        "trainwarden/run/x\n7\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n\u2014 trainwarden/run/x "
    )


def test_a_head_by_another_key_names_both() -> None:
    with pytest.raises(SignatureInvalid, match=OTHER.public) as e:
        verify_head(NOTE, OTHER.public)
    assert "size 7" in str(e.value)
    assert "another key" in e.value.hint


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_of_a_head_is_noticed(mask: int) -> None:
    for i in range(len(NOTE)):
        with pytest.raises((LogTampered, SignatureInvalid)):
            verify_head(NOTE[:i] + bytes([NOTE[i] ^ mask]) + NOTE[i + 1 :], KEY.public)


def test_every_removed_or_added_byte_of_a_head_is_noticed() -> None:
    for i in range(len(NOTE) + 1):
        changed = [NOTE[:i], NOTE[:i] + b"\n" + NOTE[i:], NOTE[:i] + b"A" + NOTE[i:], NOTE[:i] + NOTE[i + 1 :]]
        for note in changed:
            if note != NOTE:
                with pytest.raises((LogTampered, SignatureInvalid)):
                    verify_head(note, KEY.public)


def test_signatures_of_witnesses_are_carried_but_ours_must_be_there_once() -> None:
    text = HEAD.note.partition("\n\n")[0] + "\n"
    ours, theirs = HEAD.note.split("\n\n")[1], sign_note(text, "witness", OTHER).split("\n\n")[1]
    for signatures in (ours + theirs, theirs + ours):
        note = f"{text}\n{signatures}".encode()
        assert verify_head(note, KEY.public).note == note.decode()
    for signatures in (theirs, ours + ours):
        with pytest.raises(SignatureInvalid):
            verify_head(f"{text}\n{signatures}".encode(), KEY.public)


def test_a_head_with_extension_lines_is_still_read() -> None:
    text = HEAD.note.partition("\n\n")[0] + "\nextension\n"
    assert verify_head(sign_note(text, HEAD.origin, KEY).encode(), KEY.public).size == 7


@pytest.mark.parametrize("size", ["", "-1", "+1", "01", "1 ", "1_0", "\u0661", "9" * 30, "1e3", "x"])
def test_a_size_has_one_way_to_be_written(size: str) -> None:
    text = f"o\n{size}\n{base64.b64encode(bytes(32)).decode()}\n"
    with pytest.raises(LogTampered):
        parse_head(sign_note(text, "o", KEY).encode())


@pytest.mark.parametrize(
    "root",
    ["", "AAAA", base64.b64encode(bytes(32)).decode()[:-2] + "B=", base64.b64encode(bytes(33)).decode(), "*" * 44],
)
def test_a_root_has_one_way_to_be_written(root: str) -> None:
    with pytest.raises(LogTampered):
        parse_head(sign_note(f"o\n1\n{root}\n", "o", KEY).encode())


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "a\tb", "a\x00b", "a\u2028b", "a\u00a0b", "x" * 256])
def test_an_origin_that_would_break_a_note_is_refused(origin: str) -> None:
    with pytest.raises(UsageError, match="cannot name a log"):
        check_origin(origin)


def test_a_public_key_that_is_none_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="not a public key"):
        verify_head(NOTE, "xyz")


_ROOT = base64.b64encode(bytes(32)) + b"\n"
_LINE = b"\n\xe2\x80\x94 a AAAAAAA=\n"


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))))
@example(b"")
@example(b"\n\n")
@example(b"\n0\n\n\n")
@example(b"a\n" + b"9" * 5000 + b"\n" + _ROOT + _LINE)  # more digits than Python makes a number of
@example("a\n\u0661\n".encode() + _ROOT + _LINE)  # a digit, but no ASCII one
@example(b"a\n1_0\n" + _ROOT + _LINE)
@example(b"a\n-0\n" + _ROOT + _LINE)
@example(b"a\n1\nAAAA\n" + _LINE)
@example(b"a\n1\n" + _ROOT + b"\n\xe2\x80\x94 a AAAA=AAAA\n")
@example(b"a\n1\n" + _ROOT + b"\n\xe2\x80\x94 a\xc2\xa0b AAAAAAA=\n")
@example(b"a\n1\n" + _ROOT + b"\n\xe2\x80\x94 a AAAAAAA=")
@example(b"a\r\n1\n" + _ROOT + _LINE)
@example(b"a\n1\n" + _ROOT + _LINE + b"\xed\xa0\x80")
def test_any_bytes_parse_to_what_they_say_or_are_refused_in_one_way(data: bytes) -> None:
    try:
        head = parse_head(data)
    except LogTampered:
        return
    root = base64.b64encode(bytes.fromhex(head.root)).decode()
    assert data.startswith(f"{head.origin}\n{head.size}\n{root}\n".encode())
    assert head.note.encode() == data


name = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zs", "Zl", "Zp"), blacklist_characters="+"), min_size=1)


@settings(max_examples=150, deadline=None)
@given(
    name.filter(lambda s: not any(c.isspace() for c in s) and len(s) < 200),
    st.integers(0, 2**40),
    st.binary(min_size=32, max_size=32),
)
def test_every_head_that_can_be_signed_comes_back(origin: str, size: int, root: bytes) -> None:
    head = sign_head(origin, size, root, KEY)
    assert verify_head(head.note.encode(), KEY.public) == head


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_of_a_head_passes(data: st.DataObject) -> None:
    a = data.draw(st.integers(0, len(NOTE)))
    b = data.draw(st.integers(a, len(NOTE)))
    note = NOTE[:a] + data.draw(st.binary(max_size=20)) + NOTE[b:]
    if note != NOTE:
        with pytest.raises((LogTampered, SignatureInvalid)):
            verify_head(note, KEY.public)
