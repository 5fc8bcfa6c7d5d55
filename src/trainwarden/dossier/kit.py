"""The reproduction kit: as much of a store as a replay of the diverging segments takes, as members below `kit/`.

Rules
-----
* The kit is laid out as a store is: unpacked, it is one. Of each run that diverged it has seal, log, details, the
  private folder (digest key, the ranks' variables), the recorder's complements, and objects: manifests, code, data, the
  files that were changed, checkpoints.
* The sealed environment is left out unless it is asked for: whoever reproduces has the same packages, which is checked
  file by file by digest, or asks for them.
* The private folder tells what ranks had in their variables: a kit is for whoever may see that, and is made on request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from trainwarden.casefile import CaseFile, indexed
from trainwarden.errors import StoreError
from trainwarden.model import CheckpointLoaded, CheckpointSaved, Diverged, FileChanged, Manifest
from trainwarden.store import RunDir, Store

FOLDER = "kit/"
_LEFT = {"socket", "mask.key"}  # of the private folder: no replay reads them


class Kit(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a kit, and what it lacks."""

    files: dict[str, bytes]
    absent: dict[str, str]


def kit_of(store: Store, cases: Sequence[CaseFile], most_mb: int, *, environment: bool) -> Kit:
    """The kit of these runs, at most `most_mb` MB of objects and snapshots.

    Raises:
        StoreError, StoreTampered: what it cannot do without is missing.
    """
    files: dict[str, bytes] = {}
    absent: dict[str, str] = {}
    left = most_mb * 1_000_000
    diverged = [c for c in cases if indexed(c.entries, Diverged)]
    if not diverged:
        return Kit(files={}, absent={FOLDER: "no run diverged, so there is nothing to reproduce"})
    for case in diverged:
        files |= _folder(store.run(case.run))
        for parent in _parents(store, case):
            files |= _below(parent, parent.log)
        for digest, why in _objects(store, case, environment):
            path = f"{FOLDER}objects/{digest[:2]}/{digest[2:]}"
            if path in files:
                continue
            try:
                size = store.object_path(digest).stat().st_size
            except StoreError as e:
                absent[path] = f"{why}: {e}"
                continue
            if size > left:
                absent[path] = f"{why}: {size:,} bytes; --kit-mb allows {most_mb:,} MB in all"
                continue
            files[path] = store.get(digest)
            left -= size
    if not environment:
        absent[f"{FOLDER}environment"] = "the sealed environment: the same packages have to be where it is reproduced"
    return Kit(files=files, absent=absent)


def _folder(run: RunDir) -> dict[str, bytes]:
    """What lies in a run's folder that a replay reads."""
    found = {f"{FOLDER}runs/{run.id}/seal.json": run.seal_file.read_bytes()}
    for part in (run.log, run.details, run.private, run.snapshots):
        found |= _below(run, part)
    return found


def _below(run: RunDir, part: Path) -> dict[str, bytes]:
    return {
        f"{FOLDER}runs/{run.id}/{path.relative_to(run.path)}": path.read_bytes()
        for path in sorted(part.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in _LEFT
    }


def _parents(store: Store, case: CaseFile) -> Iterator[RunDir]:
    parent = case.sealed.parent
    if parent and parent in store.runs():
        yield store.run(parent)


def _objects(store: Store, case: CaseFile, environment: bool) -> Iterator[tuple[str, str]]:
    """Digests of objects with what they are, the most needed first."""
    if case.seal is None:
        return
    seal = case.seal.seal
    for ref in (seal.code, seal.data, seal.environment):
        yield ref.digest, f"the manifest of the {ref.kind}"
    for ref in (seal.code, seal.data, *([seal.environment] if environment else [])):
        try:
            manifest = msgspec.json.decode(store.get(ref.digest), type=Manifest)
        except (StoreError, msgspec.DecodeError):
            continue
        yield from ((e.digest, f"sealed {ref.kind}") for tree in manifest.trees for e in tree if not e.link)
    for _, changed in indexed(case.entries, FileChanged):
        if changed.found:
            yield changed.found, "a file that was changed"
    for _, load in indexed(case.entries, CheckpointLoaded):
        yield load.digest, "a checkpoint that was loaded"
    for _, saved in indexed(case.entries, CheckpointSaved):
        yield from ((d, "a checkpoint") for d in (saved.digest, saved.sidecar) if d)
