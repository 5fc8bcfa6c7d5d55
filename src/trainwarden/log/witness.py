"""What a witness decides about a tree head that a log asks it to cosign (C2SP tlog-witness). Pure.

    old SIZE
    base64 hash        ×0…63: the consistency proof from SIZE
                       (empty line)
    the signed head

Rules
-----
* A head is cosigned only when it continues, by proof, the latest one that was cosigned for its log.
* What was cosigned is never taken back: a smaller head is refused, and so is another root at the same size.
* Another root at the same size under the log's signature proves that the log shows two histories: it is kept.

Trust: the log's public key, given by hand. A witness sees hashes, never entries: it vouches for one history, not for
what is in it. Source: https://c2sp.org/tlog-witness.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from trainwarden.errors import LogTampered, SignatureInvalid
from trainwarden.log.merkle import EMPTY_ROOT, HASH_SIZE, verify_consistency
from trainwarden.log.notes import MAX_NOTE, MAX_SIZE, decode_base64, parse_head, split_note, verify_head
from trainwarden.log.vkeys import VerifierKey
from trainwarden.model import TreeHead

MAX_PROOF = 63
MAX_BODY = len("old \n\n") + 20 + MAX_PROOF * 45 + MAX_NOTE
SIZE_TYPE = "text/x.tlog.size"

# The keys that are trusted for a log, by its origin; none for a log that is not known.
KeysOf: TypeAlias = Callable[[str], Sequence[VerifierKey]]


class Submission(msgspec.Struct, frozen=True):
    """A request to cosign `note`, whose tree continues that of `old` leaves by `proof`."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The head may be cosigned once it is kept."""

    head: TreeHead


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The head is not cosigned; `code` is the HTTP status that says so, `size` goes with 409."""

    code: int
    reason: str
    size: int = 0


class SplitView(msgspec.Struct, frozen=True, tag="split view"):
    """The log signed two roots for one size: `kept` was cosigned, `head` came now. Answered as `answer` says."""

    kept: TreeHead
    head: TreeHead
    answer: Refused


Decision: TypeAlias = Accepted | Refused | SplitView


def format_submission(submission: Submission) -> bytes:
    """The body of the request."""
    lines = [f"old {submission.old}", *(base64.b64encode(h).decode() for h in submission.proof)]
    return "\n".join(lines).encode() + b"\n\n" + submission.note


def parse_submission(body: bytes) -> Submission:
    """Read the body of a request.

    Raises:
        LogTampered: it is malformed.
    """
    if len(body) > MAX_BODY:
        raise _malformed(f"{len(body)} bytes, at most {MAX_BODY} are read")
    head, empty_line, note = body.partition(b"\n\n")
    try:
        first, *proof = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise _malformed("its proof is not ASCII") from None
    word, _, size = first.partition(" ")
    if not empty_line or word != "old" or not size.isdigit() or len(size) > 19 or str(int(size)) != size:
        raise _malformed(f"it begins {first[:40]!r}, expected `old SIZE`, the proof and an empty line")
    if int(size) > MAX_SIZE or len(proof) > MAX_PROOF:
        raise _malformed(f"old size {size} and {len(proof)} hashes, at most {MAX_SIZE} and {MAX_PROOF}")
    hashes = tuple(map(decode_base64, proof))
    if any(len(h) != HASH_SIZE for h in hashes):
        raise _malformed(f"a hash that has not {HASH_SIZE} bytes")
    parse_head(note)
    return Submission(int(size), hashes, note)


def judge(submission: Submission, keys_of: KeysOf, latest_of: Callable[[str], TreeHead | None]) -> Decision:
    """Decide about a submission, given the head that was last cosigned for its log.

    The caller keeps `Accepted.head` before it answers, and lets no other decision for this log come in between.
    """
    head = parse_head(submission.note)
    keys = keys_of(head.origin)
    if not keys:
        return Refused(404, f"the log {head.origin!r} is not known to this witness")
    if (unsigned := _unsigned(submission.note, keys)) is not None:
        return unsigned
    latest = latest_of(head.origin)
    refused = _refused(submission, head, latest)
    if latest is not None and latest.size == head.size and latest.root != head.root and refused is not None:
        return SplitView(latest, head, refused)
    return refused or Accepted(head)


def _unsigned(note: bytes, keys: Sequence[VerifierKey]) -> Refused | None:
    """Why no trusted key signed the note: none is there, or a line under a trusted name and id does not verify."""
    lines = split_note(note)[1]
    signed = 0
    for key in keys:
        if any(name == key.name and blob[:4] == key.id for name, blob in lines):
            try:
                verify_head(note, key.public, key.name)
            except SignatureInvalid as e:
                return Refused(403, str(e))
            signed += 1
    return None if signed else Refused(403, "no key that is trusted for this log signed the head")


def _refused(submission: Submission, head: TreeHead, latest: TreeHead | None) -> Refused | None:
    old, size = submission.old, head.size
    if old > size:
        return Refused(400, f"the old size {old} is larger than the head's, {size}")
    known = latest.size if latest else 0
    if old != known:
        return Refused(409, f"the latest head cosigned has size {known}, the proof begins at {old}", known)
    root = bytes.fromhex(head.root)
    if size == 0 and root != EMPTY_ROOT:
        return Refused(422, f"the empty tree has root {EMPTY_ROOT.hex()}, this head has {head.root}")
    if old == 0:
        return Refused(422, "there is nothing to prove from size 0") if submission.proof else None
    try:
        before = bytes.fromhex(latest.root) if latest else EMPTY_ROOT
        verify_consistency(old, size, submission.proof, before, root)
    except LogTampered as e:
        return Refused(422, f"the consistency proof does not hold: {e}")
    return None


def _malformed(why: str) -> LogTampered:
    return LogTampered(f"malformed request to cosign: {why}")
