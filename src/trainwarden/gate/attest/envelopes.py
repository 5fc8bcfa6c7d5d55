"""DSSE envelopes around in-toto statements, and the sigstore bundle that OpenSSF's model signing puts one into.

Formats: DSSE v1.0.2 (protocol.md, envelope.md); sigstore bundle v0.3 with a public key in place of a certificate.
"""

from __future__ import annotations

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainwarden.keys import SigningKey

_PAYLOAD = "application/vnd.in-toto+json"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def signed_statement(statement: dict[str, object], key: SigningKey) -> bytes:
    """A DSSE envelope with an Ed25519 signature; its keyid is the public key in hex."""
    payload = _bytes(statement)
    signature = bytes.fromhex(key.sign(_to_sign(payload)).signature)
    return _bytes(_envelope(payload, signature, key.public))


def model_bundle(statement: dict[str, object], key: SigningKey) -> bytes:
    """A sigstore bundle with a DSSE envelope signed by ECDSA over P-256: model signing knows no Ed25519."""
    payload = _bytes(statement)
    hint = hashlib.sha256(key.p256_pem).hexdigest()
    return _bytes(
        {
            "mediaType": _BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": _envelope(payload, key.sign_p256(_to_sign(payload)), ""),
        }
    )


def ed25519_pem(key: SigningKey) -> bytes:
    """The public key of `signed_statement` as PEM."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public))
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _to_sign(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _envelope(payload: bytes, signature: bytes, keyid: str) -> dict[str, object]:
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _PAYLOAD,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": keyid}],
    }


def _bytes(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
