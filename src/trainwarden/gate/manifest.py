"""The manifest of a checkpoint: every file of it by digest, and the digest that names the whole.

Rules
-----
* Regular files only, in order of path; a link or a special file makes it no checkpoint, since what a link leads to is
  not what was listed.
* The manifest is an object of the store, under the digest that names the checkpoint; so are the files of what is
  promoted. Whoever reads one re-hashes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.durable import hint_for
from trainwarden.errors import StoreError, UsageError
from trainwarden.model import CheckpointFile, CheckpointManifest, canonical
from trainwarden.store import Store

_PIECE = 4 << 20

Progress = Callable[[int], None]
"""Told the number of bytes read since it was last told."""


def manifest_of(path: Path, progress: Progress | None = None) -> CheckpointManifest:
    """The manifest of the checkpoint at `path`, a file or a folder.

    Raises:
        UsageError: it is not there, holds no file, or something that is no regular file or whose name is no UTF-8.
    """
    names = [path.name] if not path.is_dir() else sorted(_below(path))
    if not names:
        raise UsageError(f"{path} holds no file", hint="name a checkpoint: a file, or the folder of its files")
    root = path.parent if not path.is_dir() else path
    return CheckpointManifest(files=tuple(_file(root, name, progress) for name in names))


def manifest_digest(manifest: CheckpointManifest) -> str:
    """What names a checkpoint."""
    return blake3(canonical(manifest)).hexdigest()


def read_manifest(store: Store, digest: str) -> CheckpointManifest:
    """The manifest that the store keeps under this digest.

    Raises:
        StoreError: there is none.
        StoreTampered: its bytes are not those that were stored.
    """
    try:
        return msgspec.json.decode(store.get(digest), type=CheckpointManifest)
    except msgspec.DecodeError as e:
        raise StoreError(f"object {digest} is no manifest of a checkpoint: {e}") from e


def keep_manifest(store: Store, manifest: CheckpointManifest) -> str:
    """Put a manifest into the store; its digest.

    Raises:
        StoreError: the store cannot be written.
    """
    return store.put_bytes(canonical(manifest))


def keep_files(store: Store, path: Path, manifest: CheckpointManifest) -> None:
    """Put every file of a checkpoint into the store.

    Raises:
        UsageError: a file is not what the manifest says (any more).
        StoreError: the store cannot be written.
    """
    root = path if path.is_dir() else path.parent
    for file in manifest.files:
        if not store.has(file.digest) and (found := store.put_file(root / file.path)) != file.digest:
            raise _changed(root / file.path, file.digest, found)


def _below(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, onerror=_cannot_list):
        for name in [*files, *(f for f in folders if (Path(parent) / f).is_symlink())]:
            yield str((Path(parent) / name).relative_to(folder))


def _cannot_list(e: OSError) -> None:
    raise UsageError(f"{e.filename} cannot be read: {e.strerror}", hint="name a checkpoint that can be read whole")


def _file(root: Path, name: str, progress: Progress | None) -> CheckpointFile:
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise UsageError(
            f"the name of {root / name} is no UTF-8", hint="a manifest names its files in UTF-8: rename it"
        )
    ours, theirs, size = blake3(), hashlib.sha256(), 0
    try:
        fd = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{root / name} is no regular file", hint="a checkpoint is made of regular files")
            while piece := file.read(_PIECE):
                ours.update(piece)
                theirs.update(piece)
                size += len(piece)
                if progress:
                    progress(len(piece))
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise UsageError(f"{root / name} is a link", hint="a checkpoint is made of regular files: copy it") from e
        raise UsageError(f"{root / name} cannot be read: {e.strerror}", hint=hint_for(e)) from e
    return CheckpointFile(path=name, size=size, digest=ours.hexdigest(), sha256=theirs.hexdigest())


def _changed(path: Path, expected: str, found: str) -> UsageError:
    return UsageError(f"{path} is {found[:12]} now, it was {expected[:12]}", hint="it was written meanwhile: try again")
