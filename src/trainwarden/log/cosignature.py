"""Cosignatures of witnesses on tree heads, and whether there are enough of them (C2SP tlog-cosignature). Pure.

    signature line   — NAME base64(key id ‖ time, 8 bytes big-endian ‖ Ed25519 signature, 64 bytes)
    signed           "cosignature/v1", "time <seconds>", and the head's text, a line each

Rules
-----
* A witness counts once, however many lines it wrote. Two names of one public key are one witness.
* Lines by unknown keys are passed over. A line by a known witness that does not verify condemns the whole note.
* Enough or too few is an answer of its own; no number of cosignatures stands in for the log's own signature.

Trust: a cosignature says that at that time its witness knew no larger and no other tree of this log. It is worth
as much as the witnesses are independent of the log and of one another.
Source: https://c2sp.org/tlog-cosignature (Ed25519, signature type 0x04).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from trainwarden.errors import LogTampered, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.log.notes import parse_signature_line, signature_line, split_note
from trainwarden.log.vkeys import COSIGNATURE, KEY_ID_SIZE, VerifierKey
from trainwarden.model import Signature

_TIME_SIZE = 8
SIZE = _TIME_SIZE + 64
MAX_TIME = (1 << 63) - 1


class Cosignature(msgspec.Struct, frozen=True):
    """A witness's verified statement on one tree head; `time` is in seconds since the Unix epoch."""

    witness: VerifierKey
    time: int
    line: str


class Enough(msgspec.Struct, frozen=True, tag="enough"):
    """At least `needed` of the witnesses cosigned this head."""

    needed: int
    cosignatures: tuple[Cosignature, ...]


class TooFew(msgspec.Struct, frozen=True, tag="too few"):
    """Fewer than `needed` of the witnesses cosigned this head; `missing` names those that did not."""

    needed: int
    cosignatures: tuple[Cosignature, ...]
    missing: tuple[str, ...]


Quorum: TypeAlias = Enough | TooFew


def cosign(text: str, name: str, key: SigningKey, time: int) -> str:
    """The signature line, newline included, of the witness `name` on a head's text at `time` (seconds).

    Raises:
        UsageError: `time` cannot be written.
    """
    if not 0 < time <= MAX_TIME:
        raise UsageError(f"a cosignature at time {time}: it has to lie between 1 and {MAX_TIME}")
    signature = bytes.fromhex(key.sign(_message(text, time)).signature)
    witness = VerifierKey(name, key.public, COSIGNATURE)
    return signature_line(name, witness.id + time.to_bytes(_TIME_SIZE, "big") + signature)


def verify_cosignature(text: str, line: str, witness: VerifierKey) -> Cosignature:
    """Check one signature line, without its newline, of a known witness on a head's text.

    Raises:
        LogTampered: it is not a signature line.
        SignatureInvalid: it is by another key, of another form, or not over this text.
    """
    name, blob = parse_signature_line(line)
    if name != witness.name or blob[:KEY_ID_SIZE] != witness.id:
        raise SignatureInvalid(
            f"cosigned by {name} {blob[:KEY_ID_SIZE].hex()}, expected {witness.name} {witness.id.hex()}",
            hint="check the witness's key",
        )
    body = blob[KEY_ID_SIZE:]
    time = int.from_bytes(body[:_TIME_SIZE], "big")
    if len(body) != SIZE or not 0 < time <= MAX_TIME:
        raise SignatureInvalid(
            f"the cosignature of {name} has {len(body)} bytes and time {time}, expected {SIZE} bytes and a time",
            hint="it was changed or damaged after it was made",
        )
    verify_signature(Signature(key=witness.public, signature=body[_TIME_SIZE:].hex()), _message(text, time))
    return Cosignature(witness, time, line + "\n")


def cosignatures(note: bytes, witnesses: Sequence[VerifierKey]) -> tuple[Cosignature, ...]:
    """The verified cosignatures on a note by the given witnesses, the newest of each, in the order of `witnesses`.

    Raises:
        LogTampered: the note is malformed.
        SignatureInvalid: a line by one of the witnesses does not verify: the note is not to be used.
    """
    text, lines = split_note(note)
    found: dict[str, Cosignature] = {}
    for name, blob in lines:
        known = next((w for w in witnesses if w.name == name and w.id == blob[:KEY_ID_SIZE]), None)
        if known is not None:
            new = verify_cosignature(text, signature_line(name, blob)[:-1], known)
            old = found.get(known.public)
            if old is None or old.time < new.time:
                found[known.public] = new
    return tuple(found[w.public] for w in _distinct(witnesses) if w.public in found)


def verify_cosignatures(note: bytes, witnesses: Sequence[VerifierKey], k: int) -> Quorum:
    """Whether at least `k` of the witnesses cosigned the head in `note`. The log's own signature is not judged here.

    Raises:
        UsageError: `k` of these witnesses can never be had, or is none.
        LogTampered, SignatureInvalid: as `cosignatures`.
    """
    distinct = _distinct(witnesses)
    if not 1 <= k <= len(distinct):
        raise UsageError(
            f"{k} cosignatures of {len(distinct)} witnesses cannot be demanded",
            hint="name at least as many witnesses, each with a key of its own",
        )
    found = cosignatures(note, witnesses)
    if len(found) >= k:
        return Enough(k, found)
    there = {c.witness.public for c in found}
    return TooFew(k, found, tuple(w.name for w in distinct if w.public not in there))


def with_cosignatures(note: str, lines: Sequence[str]) -> str:
    """The note with signature lines added that it does not have yet.

    Raises:
        LogTampered: the result is not a well-formed note.
    """
    have = set(note.splitlines(keepends=True))
    whole = note + "".join(line for line in dict.fromkeys(lines) if line not in have)
    split_note(whole.encode())
    return whole


def parse_cosignature_lines(body: bytes) -> list[str]:
    """The signature lines, newlines included, that a witness answered (C2SP tlog-witness, "add-checkpoint").

    Raises:
        LogTampered: it is something else.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise LogTampered("the witness's answer is not UTF-8") from None
    if not text.endswith("\n"):
        raise LogTampered(f"the witness's answer is not signature lines: {text[:80]!r}")
    lines = text[:-1].split("\n")
    for line in lines:
        parse_signature_line(line)
    return [line + "\n" for line in lines]


def _distinct(witnesses: Sequence[VerifierKey]) -> list[VerifierKey]:
    return list({w.public: w for w in reversed(witnesses)}.values())[::-1]


def _message(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()
