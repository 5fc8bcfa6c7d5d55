"""The manifest and its signature: one canonical form each, so that no byte of either is free to change. Pure.

Signed (Ed25519) are `trainwarden/dossier/v1`, a line feed, and the manifest's bytes, by the key of the log of custody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from trainwarden.dossier.nouns import Manifest, Member, Shown
from trainwarden.errors import DossierTampered, SignatureInvalid
from trainwarden.keys import SigningKey, verify_signature
from trainwarden.model import UNREADABLE, Signature, canonical

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
_DOMAIN = b"trainwarden/dossier/v1\n"
_HINT = "the dossier was damaged or changed after it was signed: ask for it again, and keep this one"


def members_of(files: Mapping[str, bytes]) -> tuple[Member, ...]:
    """What a manifest says of files."""
    return tuple(
        Member(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in sorted(files.items())
    )


def signed(manifest: Manifest, key: SigningKey) -> dict[str, bytes]:
    """The manifest and its signature as files."""
    data = canonical(manifest)
    return {MANIFEST: data, SIGNATURE: canonical(key.sign(_DOMAIN + data)) + b"\n"}


def read_manifest(files: Mapping[str, bytes], key: str = "") -> Manifest:
    """The manifest of these files, which `key` must have signed, or the key that it names itself.

    Raises:
        DossierTampered: it is missing, malformed, or in another form than the one.
        SignatureInvalid: the signature does not verify.
    """
    for name in (MANIFEST, SIGNATURE):
        if name not in files:
            raise DossierTampered(f"{name} is missing", hint=_HINT)
    data, sig = files[MANIFEST], files[SIGNATURE]
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
        signature = msgspec.json.decode(sig, type=Signature)
    except UNREADABLE as e:
        raise DossierTampered(f"{MANIFEST} or {SIGNATURE} is malformed: {e}", hint=_HINT) from e
    if canonical(signature) + b"\n" != sig or signature.signature != signature.signature.lower():
        raise DossierTampered(f"{SIGNATURE} is not in the one form that it has", hint=_HINT)
    try:
        verify_signature(signature, _DOMAIN + data, key or manifest.key)
    except SignatureInvalid as e:
        raise SignatureInvalid(f"{MANIFEST} is not what was signed: {e}", hint=e.hint) from e
    if canonical(manifest) != data:
        raise DossierTampered(f"{MANIFEST} is not in the one form that it has", hint=_HINT)
    return manifest


def check_members(manifest: Manifest, files: Mapping[str, bytes]) -> list[str]:
    """What is wrong with the files that the manifest names; each is named."""
    wrong = []
    told = {m.path: m for m in manifest.members}
    for path in sorted({*told, *files} - {MANIFEST, SIGNATURE}):
        if path not in told:
            wrong.append(f"{path} is not in the manifest")
        elif path not in files:
            wrong.append(f"{path} is missing")
        elif (found := hashlib.sha256(files[path]).hexdigest()) != told[path].sha256:
            wrong.append(f"{path} was changed: SHA-256 {found[:16]}…, signed was {told[path].sha256[:16]}…")
    return wrong


def encode_register(items: tuple[Shown, ...]) -> bytes:
    """The register of an edition as a file: one item a line."""
    return b"".join(msgspec.json.encode(item, order="deterministic") + b"\n" for item in items)


def decode_register(data: bytes) -> tuple[Shown, ...]:
    """The items of a register.

    Raises:
        DossierTampered: it is malformed.
    """
    try:
        return tuple(msgspec.json.decode(line, type=Shown) for line in data.splitlines())
    except UNREADABLE as e:
        raise DossierTampered(f"the register is malformed: {e}", hint=_HINT) from e
