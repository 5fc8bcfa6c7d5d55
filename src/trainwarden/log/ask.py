"""Asks witnesses to cosign a log's head, for a server, a supervisor or by hand.

Rules
-----
* Only a cosignature that verifies under the witness's known key counts; whatever else it answers is passed over.
* A witness that knows a larger log than we have, or will not accept our proof, is a finding, never retried away.
* Answers are read up to a limit; redirects are not followed.

Trust: the witness's public key. A witness that does not answer proves nothing, neither way.
Source: https://c2sp.org/tlog-witness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import TypeAlias
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

import msgspec

from trainwarden.errors import LogTampered, SignatureInvalid, UsageError
from trainwarden.log.cosignature import Cosignature, parse_cosignature_lines, verify_cosignature
from trainwarden.log.notes import MAX_NOTE, parse_head, parse_signature_line, split_note
from trainwarden.log.tilelog import NoRedirect
from trainwarden.log.vkeys import KEY_ID_SIZE, VerifierKey
from trainwarden.log.witness import Submission, format_submission

TIMEOUT_S = 10.0

# The consistency proof from the tree of so many leaves to the head's. Raises UsageError where there is none.
ProofFrom: TypeAlias = Callable[[int], Sequence[bytes]]


class Cosigned(msgspec.Struct, frozen=True, tag="cosigned"):
    """The witness cosigned this head."""

    cosignature: Cosignature


class Behind(msgspec.Struct, frozen=True, tag="conflict"):
    """The witness's latest head of this log has another size than the proof began at."""

    size: int


class Contradicted(msgspec.Struct, frozen=True, tag="contradicted"):
    """The witness knows another history: a larger log than ours, or one that ours does not continue. An alarm."""

    reason: str


class Unanswered(msgspec.Struct, frozen=True, tag="unanswered"):
    """No cosignature, for a reason that says nothing about the log."""

    reason: str


Reply: TypeAlias = Cosigned | Behind | Contradicted | Unanswered


def ask_witness(url: str, witness: VerifierKey, old: int, proof: Sequence[bytes], note: str) -> Reply:
    """Ask the witness at `url` once to cosign the head in `note`, which continues that of `old` leaves by `proof`.

    Raises:
        UsageError: `url` is not a web address.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise UsageError(f"not a web address: {url[:120]!r}", hint="the witness's submission prefix, https://HOST/…")
    body = format_submission(Submission(old, tuple(proof), note.encode()))
    request = Request(url.rstrip("/") + "/add-checkpoint", body, {"Content-Type": "text/plain; charset=utf-8"})
    try:
        with build_opener(NoRedirect).open(request, timeout=TIMEOUT_S) as answer:
            return _cosigned(answer.read(MAX_NOTE + 1), witness, note)
    except HTTPError as e:
        return _refused(e.code, _read(e))
    except (URLError, HTTPException, OSError, ValueError) as e:
        return Unanswered(f"{url}: {e.reason if isinstance(e, URLError) else e}")


def collect(url: str, witness: VerifierKey, note: str, proof_from: ProofFrom, known: int = 0) -> Reply:
    """As `ask_witness`, beginning at the size `known` and asking again from the size that the witness names.

    Raises:
        UsageError: `url` is not a web address.
        LogError, LogTampered: a proof cannot be made from the log.
    """
    size = parse_head(note.encode()).size
    old = min(known, size)
    for _ in range(3):  # another client may move the witness on in between
        reply = ask_witness(url, witness, old, proof_from(old) if old else (), note)
        if not isinstance(reply, Behind):
            return reply
        if reply.size > size:
            return Contradicted(
                f"{witness.name} has cosigned this log at size {reply.size}, here it has {size}: it was rolled back"
            )
        old = reply.size
    return Unanswered(f"{witness.name} names another size every time, the last was {old}")


def _cosigned(body: bytes, witness: VerifierKey, note: str) -> Reply:
    text = split_note(note.encode())[0]
    try:
        for line in parse_cosignature_lines(body):
            name, blob = parse_signature_line(line[:-1])
            if name == witness.name and blob[:KEY_ID_SIZE] == witness.id:
                return Cosigned(verify_cosignature(text, line[:-1], witness))
    except (LogTampered, SignatureInvalid) as e:
        return Unanswered(f"the answer of {witness.name} is not its cosignature: {e}")
    return Unanswered(f"the answer has no cosignature of {witness.name}")


def _refused(code: int, body: bytes) -> Reply:
    said = body[:300].decode("utf-8", "replace").strip()
    if code == 409 and said.isascii() and said.isdigit() and len(said) < 20:
        return Behind(int(said))
    if code == 422:
        return Contradicted(f"the witness does not accept the log's history: {said!r}")
    return Unanswered(f"the witness answered {code}: {said!r}")


def _read(answer: HTTPError) -> bytes:
    try:
        return answer.read(1024)
    except (HTTPException, OSError):
        return b""
