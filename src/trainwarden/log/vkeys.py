"""Keys of signed notes by name: `NAME+KEYID+BASE64`, the form in which logs and witnesses publish theirs. Pure.

Rules
-----
* A key is its name, its signature type and its bytes; the key id is derived from the three and has to agree.
* One way to write it: what parses is what `VerifierKey.text` writes.
* Known types: a log's Ed25519 signature (0x01) and a witness's timestamped cosignature (0x04).

Trust: a key is trusted because its reader was given it by hand; nothing here says whose it is.
Source: https://c2sp.org/signed-note, "Signatures" and "Verifier keys".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

import msgspec

from trainwarden.errors import UsageError

ED25519, COSIGNATURE = 0x01, 0x04
KEY_ID_SIZE = 4
_PUBLIC_SIZE = 32
_NOT_IN_A_NAME = re.compile(r"[+\x00-\x1f\x7f\ud800-\udfff\s]")
_HINT = "a verifier key reads NAME+KEYID+BASE64, as logs and witnesses publish theirs"


class VerifierKey(msgspec.Struct, frozen=True):
    """A public key by name; `public` is 32 bytes in hex, `kind` the type of its signatures."""

    name: str
    public: str
    kind: int = ED25519

    @property
    def id(self) -> bytes:
        """The 4 bytes that its signature lines begin with."""
        return key_id(self.name, self.public, self.kind)

    @property
    def text(self) -> str:
        """The key as it is published."""
        body = bytes([self.kind]) + bytes.fromhex(self.public)
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(body).decode()}"


def parse_vkey(text: str, kind: int) -> VerifierKey:
    """Read a published key whose signatures have to be of type `kind`.

    Raises:
        UsageError: it is malformed, contradicts its key id, or is of another type.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or not is_key_name(parts[0]):
        raise UsageError(f"not a verifier key: {text[:120]!r}", hint=_HINT)
    try:
        body = base64.b64decode(parts[2], validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"not a verifier key: {text[:120]!r}", hint=_HINT) from None
    if len(body) != 1 + _PUBLIC_SIZE:
        raise UsageError(f"the key in {text[:120]!r} has {len(body)} bytes, expected {1 + _PUBLIC_SIZE}", hint=_HINT)
    if body[0] != kind:
        raise UsageError(
            f"the key {parts[0]} makes signatures of type {body[0]:#04x}, expected {kind:#04x}",
            hint="0x01 is a log's key, 0x04 a witness's; other types are not known here",
        )
    key = VerifierKey(parts[0], body[1:].hex(), kind)
    if key.text != text:
        raise UsageError(f"the key id of {text[:120]!r} should be {key.id.hex()}", hint="it was copied wrongly")
    return key


def key_id(name: str, public_key: str, kind: int) -> bytes:
    """The key id: the first 4 bytes of SHA-256 over name, newline, type and key.

    Raises:
        UsageError: `public_key` is not hex.
    """
    try:
        public = bytes.fromhex(public_key)
    except ValueError:
        raise UsageError(f"not a public key: {public_key[:80]!r}", hint="a public key is 64 hex digits") from None
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:KEY_ID_SIZE]


def is_key_name(name: str) -> bool:
    """Whether a key may have this name: not empty, no Unicode space, plus sign or control character."""
    return bool(name) and _NOT_IN_A_NAME.search(name) is None
