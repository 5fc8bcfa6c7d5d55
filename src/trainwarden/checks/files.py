"""Are the checkpoints and the stored objects what the log says?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from trainwarden.casefile import file_digest, indexed
from trainwarden.checks.results import Failed, NotChecked, Passed, Result
from trainwarden.errors import (
    StoreError,
    StoreTampered,
)
from trainwarden.model import (
    CheckpointSaved,
    Entry,
    FileChanged,
    Manifest,
    Quarantined,
    SignedSeal,
)
from trainwarden.store import Store


def check_checkpoints(store: Store, entries: Sequence[Entry]) -> Result:
    """Are the checkpoint files what was saved, or their bytes at least kept?"""
    saved = {s.path: s for _, s in indexed(entries, CheckpointSaved)}
    intact, kept, lost = 0, 0, []
    for path, save in saved.items():
        found = file_digest(Path(path))
        if found and found != save.digest:
            return Failed(f"{path} is recorded as {save.digest} and is now {found}")
        if found:
            intact += 1
        elif store.has(save.digest):
            kept += 1
        else:
            lost.append(path)
    if lost:
        return NotChecked(f"{len(lost)} of {len(saved)} files are gone and have no copy in the store: {lost[0]}")
    return Passed(f"{intact} files intact" + (f", {kept} gone with their bytes in the store" if kept else ""))


def check_objects(store: Store, seal: SignedSeal | None, entries: Sequence[Entry], deep: bool) -> Result:
    """Do the objects that this run needs still have the bytes they are named by?"""
    if seal is None:
        return NotChecked("the seal does not verify")
    refs = (seal.seal.code, seal.seal.environment, seal.seal.data)
    required = [ref.digest for ref in refs if ref.digest]
    optional = _referred(entries)
    try:
        for digest in required:
            store.check(digest)
        listed = list(_listed(store, required)) if deep else []
        present = {d for d in (*optional, *listed) if d and store.has(d)}
        for digest in sorted(present):
            store.check(digest)
    except StoreTampered as e:
        return Failed(str(e))
    except (StoreError, msgspec.DecodeError) as e:
        return Failed(f"a manifest of the seal cannot be read: {e}")
    more = f", {len(set(listed) - present)} sealed files are not kept" if deep else "; --deep adds the sealed files"
    return Passed(f"{len(required) + len(present)} objects{more}")


def _referred(entries: Iterable[Entry]) -> set[str]:
    found: set[str] = set()
    for entry in entries:
        if isinstance(entry, CheckpointSaved):
            found |= {entry.digest, entry.sidecar}
        elif isinstance(entry, FileChanged):
            found |= {entry.found, entry.sealed}
        elif isinstance(entry, Quarantined):
            found.add(entry.digest)
    return {d for d in found if d}


def _listed(store: Store, manifests: Iterable[str]) -> Iterator[str]:
    for digest in manifests:
        manifest = msgspec.json.decode(store.get(digest), type=Manifest)
        yield from (entry.digest for tree in manifest.trees for entry in tree if not entry.link)
