"""Ed25519 signing keys: one per person, machine or agent, in a file that only its owner can read.

Rules
-----
* The file is `$TRAINWARDEN_KEY`, else `~/.config/trainwarden/key`: the 32-byte seed (RFC 8032) in hex.
* A key that group or others can touch, that another user owns, or that is a symbolic link is refused: whoever
  reads or swaps it can sign in its owner's name.
* A new key appears whole or not at all, and two processes that make one at the same time get the same one.

Trust: a signature binds a key, not a person. Whoever holds the file, root included, can sign with it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import KeyUnusable, SignatureInvalid
from trainwarden.model import Signature

KEY_ENV = "TRAINWARDEN_KEY"
_SEED_BYTES = 32
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P256_BYTES = 48  # drawn for a key below the order without a bias that matters (FIPS 186-5, A.2.1)
_LONGEST_FILE = 1024


class SigningKey:
    """A private key held in memory; only public keys and signatures ever leave it."""

    __slots__ = ("_private", "public")

    public: str
    """The public key, 32 bytes in hex."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != _SEED_BYTES:
            raise KeyUnusable(f"a signing key's seed has {_SEED_BYTES} bytes, this one {len(seed)}")
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public!r})"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not pickled")

    @classmethod
    def load(cls, path: Path | None = None) -> SigningKey:
        """Read the key at `path` (default: the user's own).

        Raises:
            KeyUnusable: it is missing, unreadable, malformed, or open to group or others.
        """
        return cls(read_seed(path or key_path()))

    @classmethod
    def load_or_create(cls, path: Path | None = None) -> SigningKey:
        """Read the key at `path` (default: the user's own), making it on first use.

        Raises:
            KeyUnusable: as `load`, or it cannot be created there.
        """
        path = path or key_path()
        if not os.path.lexists(path):
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                seed = new_seed()
                write_atomically(path, seed_text(seed).encode() + b"\n", mode=0o600, replace=False)
            except FileExistsError:
                pass  # another process was first: its key is the key
            except OSError as e:
                raise KeyUnusable(
                    f"cannot create the signing key {path}: {e.strerror}",
                    hint=hint_for(e) or f"name another place in {KEY_ENV}",
                ) from e
        return cls.load(path)

    def sign(self, data: bytes, actor: str = "") -> Signature:
        """Sign `data` (RFC 8032, pure Ed25519)."""
        return Signature(key=self.public, signature=self._private.sign(data).hex(), actor=actor)

    @property
    def p256_pem(self) -> bytes:
        """The public key of `sign_p256` as PEM (SubjectPublicKeyInfo)."""
        return self._p256().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign_p256(self, data: bytes) -> bytes:
        """Sign `data` by ECDSA over P-256 with SHA-256 (FIPS 186-5, nonce after RFC 6979), DER, for formats that know
        no Ed25519; that key is made from this one's seed by HKDF (RFC 5869)."""
        return self._p256().sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    def _p256(self) -> ec.EllipticCurvePrivateKey:
        seed = self._private.private_bytes_raw()
        drawn = HKDF(hashes.SHA256(), length=_P256_BYTES, salt=None, info=b"trainwarden/p256/v1").derive(seed)
        return ec.derive_private_key(int.from_bytes(drawn) % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def new_seed() -> bytes:
    """The seed of a new key, 32 random bytes."""
    return secrets.token_bytes(_SEED_BYTES)


def seed_text(seed: bytes) -> str:
    """A seed as it is kept: hex."""
    return seed.hex()


def read_seed(path: Path) -> bytes:
    """The seed in the key file at `path`.

    Raises:
        KeyUnusable: it is missing, unreadable, malformed, a link, another user's, or open to group or others.
    """
    try:
        text = _read_private(path)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise KeyUnusable(
                f"the signing key {path} is a symbolic link, expected a regular file",
                hint=f"move the key itself there, or name it in {KEY_ENV}",
            ) from e
        raise KeyUnusable(
            f"cannot read the signing key {path}: {e.strerror}",
            hint=hint_for(e) or f"the first `trainwarden run` makes one; {KEY_ENV} names another",
        ) from e
    try:
        seed = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != _SEED_BYTES:
        raise KeyUnusable(
            f"{path} is not a signing key: expected {2 * _SEED_BYTES} hex digits",
            hint=f"put the right key back; or move this one away and make another ({KEY_ENV} names your own)",
        )
    return seed


def key_path() -> Path:
    """Where the user's own key lies."""
    named = os.environ.get(KEY_ENV)
    return Path(named) if named else Path.home() / ".config" / "trainwarden" / "key"


def verify_signature(signature: Signature, data: bytes, expected_key: str = "") -> None:
    """Check that `signature` is over `data` by its key, which is `expected_key` when one is given (RFC 8032).

    Raises:
        SignatureInvalid: another key signed, or the signature is malformed or not over `data`.
    """
    expected = expected_key or signature.key
    if signature.key != expected:
        raise SignatureInvalid(
            f"signed by key {signature.key or '(none)'}, expected key {expected}",
            hint="check which key signed this run: the wrong key file, or someone else signed it",
        )
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(expected))
        public.verify(bytes.fromhex(signature.signature), data)
    except (ValueError, InvalidSignature) as e:
        raise SignatureInvalid(
            f"the signature by key {signature.key} does not verify under the expected key {expected}",
            hint="the signed bytes or the signature were changed after signing",
        ) from e


def _read_private(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyUnusable(f"the signing key {path} is not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise KeyUnusable(
                f"the signing key {path} has mode {mode:04o}, expected 0600: others can use it",
                hint=f"chmod 600 {path}, and make a new key if others may have read this one",
            )
        if status.st_uid != os.geteuid():
            raise KeyUnusable(
                f"the signing key {path} belongs to user {status.st_uid}, expected {os.geteuid()}",
                hint=f"its owner can read and swap it: make your own, or name it in {KEY_ENV}",
            )
        return os.read(fd, _LONGEST_FILE)
    finally:
        os.close(fd)
