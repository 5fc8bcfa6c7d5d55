"""Cosignatures: published ones verify, each witness counts once, and nothing stands in for one that is missing."""

from __future__ import annotations

import published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogTampered, SignatureInvalid, TrainWardenError, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.cosignature import (
    Enough,
    TooFew,
    cosign,
    cosignatures,
    parse_cosignature_lines,
    verify_cosignatures,
    with_cosignatures,
)
from trainwarden.log.notes import sign_head
from trainwarden.log.vkeys import COSIGNATURE, VerifierKey, parse_vkey

LOG = SigningKey(b"\x01" * 32)
KEYS = {name: SigningKey(bytes([i]) * 32) for i, name in enumerate(("w/one", "w/two", "w/three"), 10)}
WITNESSES = [VerifierKey(name, key.public, COSIGNATURE) for name, key in KEYS.items()]
HEAD = sign_head("trainwarden/run/x", 7, bytes(range(32)), LOG)
TEXT = HEAD.note.partition("\n\n")[0] + "\n"


def cosigned(*names: str, time: int = 1_700_000_000) -> bytes:
    return (HEAD.note + "".join(cosign(TEXT, name, KEYS[name], time) for name in names)).encode()


def test_published_cosignatures_verify() -> None:
    for note, vkey in (
        (published.SUNLIGHT_WITNESSED, published.SUNLIGHT_WITNESS),
        (published.SUNLIGHT_MIRRORED, published.SUNLIGHT_MIRROR),
    ):
        found = cosignatures(note.encode(), [parse_vkey(vkey, COSIGNATURE)])
        assert [c.time for c in found] == [published.SUNLIGHT_TIME]
        with pytest.raises(SignatureInvalid):
            cosignatures(note.replace("\n300\n", "\n301\n").encode(), [parse_vkey(vkey, COSIGNATURE)])


@pytest.mark.parametrize("time", published.NAVIGLI_COSIGNED)
def test_what_a_public_witness_cosigned_for_real_logs_verifies(time: int) -> None:
    note, witness = published.NAVIGLI_COSIGNED[time], parse_vkey(published.NAVIGLI_VKEY, COSIGNATURE)
    assert [c.time for c in cosignatures(note.encode(), [witness])] == [time]
    size = note.split("\n")[1]
    with pytest.raises(SignatureInvalid):
        cosignatures(note.replace(f"\n{size}\n", f"\n{size}0\n").encode(), [witness])


def test_the_cosignature_that_the_specification_shows_has_its_form() -> None:
    line = published.C2SP_COSIGNED.splitlines(keepends=True)[-1]
    assert parse_cosignature_lines(line.encode()) == [line]
    ours = cosign(TEXT, "w/one", KEYS["w/one"], 1679315147).split(" ")[2]
    assert len(ours) == len(line.split(" ")[2])
    assert ours[6:16] == line.split(" ")[2][6:16], "the time lies where theirs does"


def test_enough_is_k_distinct_witnesses() -> None:
    for k in (1, 2):
        assert isinstance(verify_cosignatures(cosigned("w/one", "w/three"), WITNESSES, k), Enough)
    few = verify_cosignatures(cosigned("w/one", "w/three"), WITNESSES, 3)
    assert isinstance(few, TooFew)
    assert few.missing == ("w/two",)
    none = verify_cosignatures(HEAD.note.encode(), WITNESSES, 1)
    assert isinstance(none, TooFew)
    assert none.cosignatures == ()


def test_a_witness_counts_once_however_often_and_under_whatever_name_it_signs() -> None:
    note = cosigned("w/one", "w/one") + cosign(TEXT, "w/one", KEYS["w/one"], 1_800_000_000).encode()
    answer = verify_cosignatures(note, WITNESSES, 2)
    assert isinstance(answer, TooFew)
    assert [c.time for c in answer.cosignatures] == [1_800_000_000]
    alias = VerifierKey("w/alias", KEYS["w/one"].public, COSIGNATURE)
    note += cosign(TEXT, "w/alias", KEYS["w/one"], 1_700_000_000).encode()
    assert isinstance(verify_cosignatures(note, [*WITNESSES, alias], 2), TooFew)
    with pytest.raises(UsageError, match="cannot be demanded"):
        verify_cosignatures(note, [WITNESSES[0], alias], 2)


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_a_number_that_cannot_be_had_is_the_callers_mistake(k: int) -> None:
    with pytest.raises(UsageError, match="cannot be demanded"):
        verify_cosignatures(HEAD.note.encode(), WITNESSES, k)


def test_a_log_signature_never_passes_for_a_cosignature() -> None:
    same = VerifierKey(HEAD.origin, LOG.public, COSIGNATURE)
    assert isinstance(verify_cosignatures(HEAD.note.encode(), [same], 1), TooFew)


def test_a_cosignature_on_another_head_condemns_the_note() -> None:
    other = sign_head(HEAD.origin, 8, bytes(range(32)), LOG).note
    line = cosign(other.partition("\n\n")[0] + "\n", "w/one", KEYS["w/one"], 1_700_000_000)
    with pytest.raises(SignatureInvalid):
        verify_cosignatures((HEAD.note + line).encode(), WITNESSES, 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_changed_byte_of_a_cosignature_passes(data: st.DataObject) -> None:
    note, start = cosigned("w/one"), len(HEAD.note.encode())
    i = data.draw(st.integers(start, len(note) - 1))
    changed = note[:i] + bytes([note[i] ^ data.draw(st.integers(1, 255))]) + note[i + 1 :]
    try:
        assert isinstance(verify_cosignatures(changed, WITNESSES, 1), TooFew)
    except (LogTampered, SignatureInvalid):
        pass


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: ("\u2014 a " + t).encode("utf-8", "ignore")))
)
def test_any_answer_is_signature_lines_or_refused_in_one_way(body: bytes) -> None:
    try:
        assert "".join(parse_cosignature_lines(body)).encode() == body
    except LogTampered:
        pass


def test_adding_lines_keeps_the_note_and_adds_each_once() -> None:
    line = cosign(TEXT, "w/one", KEYS["w/one"], 5)
    note = with_cosignatures(HEAD.note, [line, line])
    assert note == HEAD.note + line
    assert with_cosignatures(note, [line]) == note
    with pytest.raises(LogTampered):
        with_cosignatures(note, ["not a line\n"])


@pytest.mark.parametrize("time", [0, -1, 1 << 63])
def test_a_time_that_cannot_be_written_is_refused(time: int) -> None:
    with pytest.raises(TrainWardenError):
        cosign(TEXT, "w/one", KEYS["w/one"], time)
