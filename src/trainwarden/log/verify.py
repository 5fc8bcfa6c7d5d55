"""Judges a log offline: every leaf, every kept head, every signature, against one public key.

Rules
-----
* Nothing is believed but the key: leaf hashes and roots are recomputed, each kept head must be signed by the key
  and be the root over the entries before it, which makes all of them consistent with one another.
* The journal's length is taken before the head is read: a writer at work can then only have moved the head on.
* Bytes beyond the last head were never acknowledged and are no part of the log. Two signed batches there mean
  that an old head was put back.

Trust: an older state of the whole folder verifies as well. Only a head that was kept elsewhere shows a rollback.
"""

from __future__ import annotations

from pathlib import Path

from trainwarden.errors import LogTampered, UsageError
from trainwarden.log.journal import log_errors, require_head
from trainwarden.log.scan import Position, check_not_rolled_back, read_to, unacknowledged
from trainwarden.log.storage import FolderStorage, Storage
from trainwarden.model import TreeHead


def verify_log(where: Path | Storage, public_key: str, origin: str = "") -> TreeHead:
    """Check the whole log against `public_key` (and that it is the log `origin`, if given); return its head.

    Raises:
        LogTampered: something was truncated, rewritten, swapped, removed, replaced or rolled back.
        SignatureInvalid: a head is not signed by the key.
        LogError: there is no log, or it cannot be read.
        UsageError: no public key was given.
    """
    if not public_key:
        raise UsageError("a log is verified against a public key, none was given")
    with log_errors(f"read the log {where}"):
        storage = FolderStorage.for_reading(where) if isinstance(where, Path) else where
        try:
            return _verify(storage, public_key, origin)
        finally:
            if isinstance(where, Path):
                storage.close()


def _verify(storage: Storage, public_key: str, origin: str) -> TreeHead:
    written = storage.size()
    head, at = require_head(storage, public_key), Position()
    if origin and head.origin != origin:
        raise LogTampered(
            f"this is the log {head.origin!r}, expected {origin!r}",
            hint="the log of another run was put in its place",
        )
    for batch in read_to(storage, head, public_key):
        at = batch.after
    check_not_rolled_back(head, unacknowledged(storage, at, written, public_key))
    return head
