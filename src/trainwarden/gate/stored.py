"""The scan's decision on files as the store keeps them, so that what was judged is what is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable

from trainwarden.gate.results import Clean, Decision, Scanned
from trainwarden.gate.scan.beside import settled
from trainwarden.gate.scan.files import scan_open
from trainwarden.model import CheckpointFile
from trainwarden.store import Store, store_errors

_TEXTS = ("json", "text", "template", "empty")


def decided(store: Store, file: CheckpointFile) -> Decision:
    """The decision on a file of the store, under the name that it has in its checkpoint.

    Raises:
        StoreError, StoreTampered: it is not there, or not what was stored.
    """
    store.check(file.digest)
    with store_errors(f"read object {file.digest}"):
        fd = os.open(store.object_path(file.digest), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return scan_open(fd, file.path).decision
    finally:
        os.close(fd)


def decided_together(store: Store, files: Iterable[CheckpointFile]) -> dict[str, Decision]:
    """The decisions on the files of one checkpoint, by path: one may say what another is (`scan.beside`).

    Raises:
        StoreError, StoreTampered: as `decided`.
    """
    scanned = [Scanned(path=file.path, size=file.size, decision=decided(store, file)) for file in files]
    return {each.path: each.decision for each in settled(scanned)}


def holds_tensors(store: Store, file: CheckpointFile) -> bool:
    """Could this file hold weights? What is not understood, or not in the store, could.

    Raises:
        StoreError, StoreTampered: as `decided`.
    """
    if not store.has(file.digest):
        return True
    decision = decided(store, file)
    return not (isinstance(decision, Clean) and decision.kind in _TEXTS)
