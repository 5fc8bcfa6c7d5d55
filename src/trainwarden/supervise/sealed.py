"""What a run's seal says, asked while the run goes on; in a clean room of the places that files have there as well."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from trainwarden.errors import UsageError
from trainwarden.model import FileEntry, SignedSeal
from trainwarden.seal.check import KINDS, expected
from trainwarden.seal.functions import SealedFunctions
from trainwarden.store import Store
from trainwarden.supervise.samples import Table, read_manifest
from trainwarden.supervise.shelter import Shelter


def sealed_paths(store: Store, sealed: SignedSeal, shelter: Shelter | None = None) -> Callable[[str], bool]:
    """Whether a path is in the seal, in a clean room also under its place there; the manifests are read when asked."""

    @functools.cache  # whole or not at all: several threads ask, and half of the paths would accuse the other half
    def paths() -> frozenset[str]:
        found = {path for kind in KINDS for path in expected(store, sealed, kind).files}
        return frozenset(found | {shelter.room.place(p) for p in found} if shelter is not None else found)

    return lambda path: path in paths()


def sealed_files(store: Store, sealed: SignedSeal, shelter: Shelter | None = None) -> dict[str, FileEntry]:
    """The sealed files that a process may run: environment and code, in a clean room also under their places there."""
    files = expected(store, sealed, "environment").files | expected(store, sealed, "code").files
    if shelter is not None:
        files |= {shelter.room.place(path): entry for path, entry in list(files.items())}
    return files


def sealed_samples(store: Store, sealed: SignedSeal, named: str) -> Table | None:
    """The manifest of samples that the configuration names, None where it names none.

    Raises:
        UsageError: it cannot be read, or is not what was sealed.
    """
    if not named:
        return None
    path = os.path.normpath(os.path.join(sealed.seal.cwd, os.path.expanduser(named)))
    table, data = read_manifest(Path(path))
    files = expected(store, sealed, "data").files | expected(store, sealed, "code").files
    entry = files.get(path)
    if entry is None or entry.digest != blake3(data).hexdigest():
        raise UsageError(f"the manifest of samples {path} is not what was sealed", hint="start the run again")
    return table


def sealed_functions(
    store: Store, sealed: SignedSeal, optimize: int, shelter: Shelter | None = None
) -> SealedFunctions:
    """What sealed source says its functions are."""
    seal = sealed.seal
    library_path = seal.env_vars.get("LD_LIBRARY_PATH", "")
    return SealedFunctions(store, sealed_files(store, sealed, shelter), seal.interpreter, library_path, optimize)
