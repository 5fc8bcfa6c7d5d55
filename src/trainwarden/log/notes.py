"""Signed tree heads as text: C2SP signed-note and tlog-checkpoint, so that other tools read them. Pure.

A note is the head's text (origin, size, base64 root, a line each), an empty line, and signature lines
`— NAME base64(key id ‖ signature)`. Our key's name is the log's origin.

Rules
-----
* One byte form: what parses is exactly what would be written. Base64 with stray bits, sizes with leading
  zeros, control characters and missing newlines are refused, so that no byte of a note is free to change.
* Signatures by other keys (witnesses) are carried and not judged; ours must be there, once, and verify.
* Logs of others name themselves as they like (`go.sum database tree`); our own origins are key names as well.

Trust: a head says that its signer signed it, not that it is the newest: an old one verifies for ever.
Sources: https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata

from trainwarden.errors import LogTampered, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.log.merkle import HASH_SIZE
from trainwarden.log.vkeys import ED25519, KEY_ID_SIZE, is_key_name, key_id
from trainwarden.model import Signature, TreeHead

_MARK = "\u2014 "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")  # control characters but for the newline
MAX_NOTE = 128 * 1024  # 16 signatures of the largest kind that there is, and some more
MAX_SIZE = 1 << 62


def check_origin(origin: str) -> None:
    """Check that `origin` can name a log and its key.

    Raises:
        UsageError: it is empty, too long, or has a space, a plus sign or a control character.
    """
    if not _is_name(origin):
        raise UsageError(
            f"{origin!r} cannot name a log",
            hint="use 1 to 255 visible characters, without spaces and plus signs",
        )


def sign_note(text: str, name: str, key: SigningKey) -> str:
    """The signed note of `text` (whole lines) by the key called `name` (C2SP signed-note)."""
    signature = bytes.fromhex(key.sign(text.encode()).signature)
    return f"{text}\n{signature_line(name, key_id(name, key.public, ED25519) + signature)}"


def signature_line(name: str, blob: bytes) -> str:
    """The line of a signature by the key called `name`; `blob` is its key id and the signature."""
    return f"{_MARK}{name} {base64.b64encode(blob).decode()}\n"


def open_note(note: bytes, name: str, public_key: str) -> str:
    """The text of a note that the key called `name` signed (C2SP signed-note).

    Raises:
        LogTampered: it is not a well-formed note.
        SignatureInvalid: it is signed by another key, or the signature is not over this text.
    """
    text, signatures = split_note(note)
    expected = key_id(name, public_key, ED25519)
    ours = [blob for signer, blob in signatures if signer == name and blob[:KEY_ID_SIZE] == expected]
    if len(ours) != 1:
        found = ", ".join(f"{signer} {blob[:KEY_ID_SIZE].hex()}" for signer, blob in signatures)
        raise SignatureInvalid(
            f"signed by key id {found}, expected once {name} {expected.hex()} of key {public_key}",
            hint="another key signed this log: check that the public key is the one that recorded the run",
        )
    verify_signature(Signature(key=public_key, signature=ours[0][KEY_ID_SIZE:].hex()), text.encode())
    return text


def sign_head(origin: str, size: int, root: bytes, key: SigningKey) -> TreeHead:
    """State the size and root of the log `origin`, signed."""
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    return TreeHead(origin=origin, size=size, root=root.hex(), note=sign_note(text, origin, key))


def parse_head(note: bytes) -> TreeHead:
    """Read a note without judging its signatures.

    Raises:
        LogTampered: it is not a well-formed note of a tree head.
    """
    text, _ = split_note(note)
    lines = text.split("\n")
    if len(lines) < 4 or not all(lines[:-1]):
        raise _malformed("expected the lines origin, size and root")
    origin, size, root = lines[0], lines[1], decode_base64(lines[2])
    if not (size.isascii() and size.isdigit()) or len(size) > 19 or str(int(size)) != size or int(size) > MAX_SIZE:
        raise _malformed(f"size {size[:40]!r}")
    if len(root) != HASH_SIZE:
        raise _malformed(f"a root of {len(root)} bytes, expected {HASH_SIZE}")
    return TreeHead(origin=origin, size=int(size), root=root.hex(), note=note.decode())


def verify_head(note: bytes, public_key: str, name: str = "") -> TreeHead:
    """Read a note and check that `public_key` signed it, under the key name `name` (default: the log's origin).

    Raises:
        LogTampered: it is not a well-formed note of a tree head.
        SignatureInvalid: it is signed by another key, or the signature is not over this text.
    """
    head = parse_head(note)
    try:
        open_note(note, name or head.origin, public_key)
    except SignatureInvalid as e:
        raise SignatureInvalid(
            f"the tree head of size {head.size}, root {head.root}, is not the key's: {e}", hint=e.hint
        ) from e
    return head


def split_note(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The signed text (with its last newline) and the (name, key id ‖ signature) of each signature line.

    Raises:
        LogTampered: it is not a well-formed note.
    """
    if len(note) > MAX_NOTE:
        raise _malformed(f"{len(note)} bytes, at most {MAX_NOTE} are allowed")
    try:
        whole = note.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if _CONTROL.search(whole):
        raise _malformed("it has a control character")
    text, empty_line, tail = whole.rpartition("\n\n")
    if not empty_line or not tail.endswith("\n"):
        raise _malformed("it has no signature, or is cut short")
    return text + "\n", [parse_signature_line(line) for line in tail[:-1].split("\n")]


def parse_signature_line(line: str) -> tuple[str, bytes]:
    """The (name, key id ‖ signature) of a signature line without its newline.

    Raises:
        LogTampered: it is none.
    """
    name, _, encoded = line.removeprefix(_MARK).partition(" ")
    if not line.startswith(_MARK) or not is_key_name(name):
        raise _malformed(f"signature line {line[:80]!r}")
    blob = decode_base64(encoded)
    if len(blob) <= KEY_ID_SIZE:
        raise _malformed(f"a signature of {len(blob)} bytes")
    return name, blob


def decode_base64(encoded: str) -> bytes:
    """The bytes of base64 (RFC 4648, 4), of which each has one way to be written.

    Raises:
        LogTampered: it is not that, or empty.
    """
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data or base64.b64encode(data).decode() != encoded:
        raise _malformed(f"base64 {encoded[:80]!r}")
    return data


def _is_name(name: str) -> bool:
    def allowed(c: str) -> bool:
        return c != "+" and not c.isspace() and unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp", "Zs")

    return 0 < len(name) <= 255 and all(map(allowed, name))


def _malformed(why: str) -> LogTampered:
    return LogTampered(
        f"malformed tree head: {why}",
        hint="the file was changed or damaged after it was written: keep it as evidence",
    )
