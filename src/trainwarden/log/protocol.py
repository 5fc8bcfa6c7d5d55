"""How a host appends to a log server: the request, its signature, the answer. Pure; client and server share it.

    POST /v1/logs/ORIGIN/append          body: msgpack of `Append`; answer: msgpack of `Appended`
    TrainWarden-Signature: host=NAME, keyid=HEX, first=N, size=N, sha256=HEX, sig=BASE64

Rules
-----
* The signature is Ed25519 over a domain, then each of method, path, origin, host, first, size and sha256 of the
  body, each framed by its length. It lies in the header with all that it covers, so that a server refuses a
  stranger before it reads one byte of a body.
* A host numbers the items of each run 0, 1, 2, … without a gap. The number makes a resend harmless: the same item
  under the same number gets the same index, another item under it is a conflict and never a second entry.
* `entry_bytes` is what the log holds: host, run, number and the digest of the object in one line of JSON, then the
  leaf as it was given. The client can therefore compute the leaf hash to ask a proof for.
* `sent_ns` and `nonce` are claims for whoever reads the evidence; nothing is decided by them.
* What is not exactly one form is refused: unknown fields, another order, a leaf or object over its limit.

Trust: the signature binds a request to a host's key. That the server kept what it answered is not believed but
checked: against its signed head and the tiles.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from urllib.parse import quote

import msgspec
from blake3 import blake3

from trainwarden.errors import LogTampered, RequestRefused, SignatureInvalid
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.log.merkle import leaf_hash
from trainwarden.model import Signature

SIGNATURE_HEADER = "TrainWarden-Signature"
MEDIA_TYPE = "application/msgpack"
MAX_LEAF = 65_024  # with its line of at most 511 bytes it fits the 65,535 of an entry bundle
MAX_OBJECT = 4 * 1024 * 1024
MAX_ITEMS = 4096
MAX_BODY = 16 * 1024 * 1024
MAX_SEQUENCE = 1 << 53
_DOMAIN = b"trainwarden append v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}", re.ASCII)
_HEADER = re.compile(
    r"host=([^\s,=]{1,64}), keyid=([0-9a-f]{64}), first=(0|[1-9][0-9]{0,15}), size=(0|[1-9][0-9]{0,15}), "
    r"sha256=([0-9a-f]{64}), sig=([A-Za-z0-9+/]{86}==)",
    re.ASCII,
)


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Item(_Message, omit_defaults=True):
    """One leaf, and the larger bytes that its entry binds by digest (empty: none)."""

    leaf: bytes
    object: bytes = b""


class Append(_Message):
    """Items `first`, `first` + 1, … of a host's run. Without items it only asks how far the server has come."""

    host: str
    run: str
    first: int
    items: tuple[Item, ...]
    sent_ns: int = 0
    nonce: str = ""


class Appended(_Message):
    """They are durable under `head`: the log's indexes of the items in order, the number the server expects next."""

    indexes: tuple[int, ...]
    head: str
    acknowledged: int


class Refusal(_Message, omit_defaults=True):
    """Why a request was not admitted (JSON). `expected`: the number to go on with; `logged`, `given`: a conflict."""

    error: str
    hint: str = ""
    expected: int = -1
    logged: str = ""
    given: str = ""


class Signed(_Message):
    """The fields of the signature header."""

    host: str
    keyid: str
    first: int
    size: int
    sha256: str
    signature: str  # hex


class Bound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The line before the leaf in an entry: who gave it as which item, and the BLAKE3 of its object ("" = none)."""

    host: str
    run: str
    seq: int
    object: str = ""


def append_path(origin: str) -> str:
    """The path of a log's append endpoint; in a URL it is quoted by `append_url`."""
    return f"/v1/logs/{origin}/append"


def append_url(base: str, origin: str) -> str:
    """The URL to post to, of a server whose address is `base`."""
    return base.rstrip("/") + quote(append_path(origin), safe="/")


def sign_append(append: Append, origin: str, key: SigningKey) -> tuple[bytes, str]:
    """The body of a request and the value of its signature header.

    Raises:
        RequestRefused: a server would refuse it for its size or form.
    """
    check_append(append)
    body = msgspec.msgpack.encode(append)
    _check_size(len(body))
    digest = hashlib.sha256(body).hexdigest()
    signed = Signed(host=append.host, keyid=key.public, first=append.first, size=len(body), sha256=digest, signature="")
    signature = base64.b64encode(bytes.fromhex(key.sign(_statement(signed, origin)).signature)).decode()
    return body, (
        f"host={append.host}, keyid={key.public}, first={append.first}, size={len(body)}, "
        f"sha256={digest}, sig={signature}"
    )


def parse_signature(header: str) -> Signed:
    """Read the signature header; nothing of it is judged but its form and the size that it announces.

    Raises:
        RequestRefused: it is missing or malformed (401), or announces a body over the limit (413).
    """
    match = _HEADER.fullmatch(header)
    if match is None or not _NAME.fullmatch(match[1]):
        raise RequestRefused(
            f"the request is not signed: {SIGNATURE_HEADER} is {header[:80]!r}",
            hint="sign it with the host's key: host=…, keyid=…, first=…, size=…, sha256=…, sig=…",
            status=401,
        )
    try:
        signature = base64.b64decode(match[6], validate=True)
    except (binascii.Error, ValueError):  # the pattern admits base64 only; stray bits do not matter to Ed25519
        signature = b""
    _check_size(int(match[4]))
    return Signed(
        host=match[1],
        keyid=match[2],
        first=int(match[3]),
        size=int(match[4]),
        sha256=match[5],
        signature=signature.hex(),
    )


def verify_append(signed: Signed, origin: str, public_key: str) -> None:
    """Check the header's signature against the host's admitted key.

    Raises:
        RequestRefused: another key is named, or it does not verify (401).
    """
    try:
        verify_signature(
            Signature(key=signed.keyid, signature=signed.signature), _statement(signed, origin), public_key
        )
    except SignatureInvalid as e:
        raise RequestRefused(f"host {signed.host}: {e}", hint=e.hint, status=401) from e


def read_append(body: bytes, signed: Signed) -> Append:
    """The request in a body that the (verified) header covers.

    Raises:
        RequestRefused: it is another body, or malformed (400), or too large (413).
    """
    digest = hashlib.sha256(body).hexdigest()
    if digest != signed.sha256:
        raise RequestRefused(f"the body has sha256 {digest}, the signature covers {signed.sha256}", status=400)
    try:
        append = msgspec.msgpack.decode(body, type=Append)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise RequestRefused(f"the body is not an append request: {e}", status=400) from None
    check_append(append)
    if (append.host, append.first) != (signed.host, signed.first):
        raise RequestRefused(
            f"the body is of host {append.host!r}, item {append.first}; the signature of host {signed.host!r}, "
            f"item {signed.first}",
            status=400,
        )
    return append


def check_append(append: Append) -> None:
    """Check names, numbers and sizes.

    Raises:
        RequestRefused: one is out of its bounds (400 or 413).
    """
    for what, name in (("host", append.host), ("run", append.run)):
        if not _NAME.fullmatch(name):
            raise RequestRefused(
                f"{name[:80]!r} cannot name a {what}",
                hint="1 to 64 letters, digits and ._:@-, the first a letter or digit",
            )
    if not 0 <= append.first <= MAX_SEQUENCE:
        raise RequestRefused(f"item number {append.first} is not between 0 and {MAX_SEQUENCE}")
    if len(append.nonce) > 64:
        raise RequestRefused(f"a nonce of {len(append.nonce)} characters, at most 64 are allowed")
    if len(append.items) > MAX_ITEMS:
        raise _too_large(f"{len(append.items)} items", MAX_ITEMS)
    for item in append.items:
        if len(item.leaf) > MAX_LEAF:
            raise _too_large(f"a leaf of {len(item.leaf)} bytes", MAX_LEAF)
        if len(item.object) > MAX_OBJECT:
            raise _too_large(f"an object of {len(item.object)} bytes", MAX_OBJECT)


def entry_bytes(host: str, run: str, seq: int, item: Item) -> bytes:
    """The log's entry for item `seq` of a host's run."""
    digest = blake3(item.object).hexdigest() if item.object else ""
    return msgspec.json.encode(Bound(host=host, run=run, seq=seq, object=digest)) + b"\n" + item.leaf


def read_entry(entry: bytes) -> tuple[Bound, bytes]:
    """An entry's line and its leaf.

    Raises:
        LogTampered: no server wrote this.
    """
    line, end, leaf = entry.partition(b"\n")
    try:
        bound = msgspec.json.decode(line, type=Bound)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise LogTampered(f"an entry of the log names no host and run: {e}") from None
    if not end or msgspec.json.encode(bound) != line:
        raise LogTampered(f"an entry of the log begins with {line[:80]!r}: not the form that a server writes")
    return bound, leaf


def entry_digest(entry: bytes) -> bytes:
    """What tells two items under one number apart: the leaf hash of their entries (RFC 6962)."""
    return leaf_hash(entry)


def _statement(signed: Signed, origin: str) -> bytes:
    fields = ("POST", append_path(origin), origin, signed.host, str(signed.first), str(signed.size), signed.sha256)
    framed = (len(data := f.encode()).to_bytes(4, "big") + data for f in fields)
    return _DOMAIN + b"".join(framed)


def _check_size(size: int) -> None:
    if size > MAX_BODY:
        raise _too_large(f"a body of {size} bytes", MAX_BODY)


def _too_large(what: str, limit: int) -> RequestRefused:
    return RequestRefused(f"{what} is too large, the limit is {limit}", hint="send smaller batches", status=413)
