"""What of a run stays private: its keys, the values of the ranks' environment variables, the watcher's address.

All lie in the run's `private` folder (mode 0700). The log carries only digests of them. The digest key is
handed to every rank, so it keeps outsiders from predicting digests; it does not keep a hostile rank from lying.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import StoreError, StoreTampered

KEY_BYTES = 32
_KEY_FILE = "digest.key"
_MASK_FILE = "mask.key"
_SOCKET_FILE = "socket"


def new_digest_key(private: Path) -> bytes:
    """Draw the run's digest key and keep it.

    Raises:
        StoreError: the run has a key already, or the folder cannot be written.
    """
    return _new(private / _KEY_FILE)


def read_digest_key(private: Path) -> bytes:
    """The run's digest key.

    Raises:
        StoreError: it is missing or not a key.
    """
    return _read(private / _KEY_FILE, "digest key")


def new_mask_key(private: Path) -> bytes:
    """Draw the key of the masks on logged fingerprints, which no rank is given, and keep it.

    Raises:
        StoreError: the run has one already, or the folder cannot be written.
    """
    return _new(private / _MASK_FILE)


def read_mask_key(private: Path) -> bytes:
    """The key of the masks on logged fingerprints.

    Raises:
        StoreError: it is missing or not a key.
    """
    return _read(private / _MASK_FILE, "key of masks")


def _new(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    _write(path, key)
    return key


def _read(path: Path, what: str) -> bytes:
    try:
        key = path.read_bytes()
    except OSError as e:
        raise StoreError(f"cannot read the run's {what}: {e}") from e
    if len(key) != KEY_BYTES:
        raise StoreError(f"the run's {what} has {len(key)} bytes instead of {KEY_BYTES}")
    return key


def write_env(private: Path, env: dict[str, str]) -> str:
    """Keep a rank's environment variables and return their BLAKE3 digest.

    Raises:
        StoreError: the folder cannot be written.
    """
    data = msgspec.json.encode(env, order="deterministic")
    digest = blake3(data).hexdigest()
    path = private / f"env-{digest}.json"
    if not path.exists():
        _write(path, data)
    return digest


def read_env(private: Path, digest: str) -> dict[str, str]:
    """The environment variables that `write_env` kept under `digest`.

    Raises:
        StoreError: they are missing.
        StoreTampered: they are not what was kept.
    """
    try:
        data = (private / f"env-{digest}.json").read_bytes()
    except OSError as e:
        raise StoreError(f"cannot read the environment variables {digest[:12]}: {e}") from e
    found = blake3(data).hexdigest()
    if found != digest:
        raise StoreTampered(f"environment variables {digest[:12]} now have the digest {found[:12]}")
    return msgspec.json.decode(data, type=dict[str, str])


def write_socket(private: Path, address: Path) -> None:
    """Keep the address of the watcher's socket: whoever inherited it is a process of this run.

    Raises:
        StoreError: the folder cannot be written.
    """
    _write(private / _SOCKET_FILE, str(address).encode())


def read_socket(private: Path) -> str:
    """The address that `write_socket` kept, "" where there is none."""
    try:
        return (private / _SOCKET_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data, mode=0o600, replace=False)
    except FileExistsError:
        if path.name in (_KEY_FILE, _MASK_FILE):
            raise StoreError(f"the run has a key already: {path}") from None
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror}", hint=hint_for(e)) from e
