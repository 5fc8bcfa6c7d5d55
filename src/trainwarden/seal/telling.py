"""What a seal says of single files: each change is told once, with its bytes kept in the store.

A file's bytes are compared by the same rule as in `check_seal`, without the digest cache. A file that is changed again
is told again, and one that is put back and changed again too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.errors import TrainWardenError, UsageError
from trainwarden.model import FileChanged, Seal
from trainwarden.seal.cache import Digest, Item, item_of, read_digest
from trainwarden.seal.check import Expected, expected, judge, roots_of
from trainwarden.seal.pyc import source_of
from trainwarden.seal.walked import SealWalk
from trainwarden.seal.walking import SITE_NAMES, importable, loadable
from trainwarden.store import Store


class Telling:
    """The sealed files of some kinds; `on_change` is called by one thread at a time, `note` where something fails.

    `seen` is the walk that made the seal: its paths are at hand, and no manifest need be read for them.
    """

    def __init__(
        self,
        store: Store,
        seal: Seal,
        kinds: Sequence[str],
        on_change: Callable[[FileChanged], None],
        note: Callable[[str], None],
        seen: SealWalk | None = None,
    ) -> None:
        self._store, self._seal, self._on_change, self._note, self._walk = store, seal, on_change, note, seen
        self._loaded: dict[str, Expected] = {}
        self._told: dict[str, str] = {}
        self._guard = threading.Lock()
        self.kinds = tuple(kinds)
        self.roots = {kind: roots_of(seal, kind) for kind in self.kinds}
        self.sources = _folders_of(self.sealed("code"), self.roots["code"]) if "code" in self.kinds else set()
        """Folders in which sealed sources lie."""
        self.latent: list[str] = []
        """Places of the environment where nothing was: whatever appears there matters."""

    def expect(self, kind: str) -> Expected:
        """What the seal says of a kind.

        Raises:
            StoreError, StoreTampered: its manifest cannot be had.
        """
        if kind not in self._loaded:
            self._loaded[kind] = expected(self._store, self._seal, kind)
        return self._loaded[kind]

    def sealed(self, kind: str) -> Collection[str]:
        """The paths that the seal names."""
        walked = self._walk.of(getattr(self._seal, kind)) if self._walk else None
        return walked.items if walked else self.expect(kind).files

    def look_at(self, path: str) -> None:
        """Compare one path with the seal now, and what its change can bring to life; tell what differs."""
        kind = next((k for k in self.kinds if path in self.sealed(k)), "")
        item = item_of(path)
        if not kind:
            kind = self.kind_of_new(path) if item else ""
            if not kind or item is None or not self._matters(kind, item):
                return
        try:
            expect = self.expect(kind)
            self.look_at_item(expect, path, item)
            for cache in _inert_caches(expect, path):
                self.look_at_item(expect, cache, item_of(cache))
        except TrainWardenError as e:
            self._note(f"{path}: {e}")

    def look_at_item(self, expect: Expected, path: str, item: Item | None) -> None:
        """Compare what is at a path with what is expected there, and tell it if it differs.

        Raises:
            StoreError, StoreTampered: the sealed bytes cannot be had.
        """
        self.tell(path, judge(self._store, expect, path, item, _digest(item)))

    def kind_of_new(self, path: str) -> str:
        """The kind of the sealed folder that a path lies in, the innermost one, or ""."""
        found = ("", "")
        for kind, roots in self.roots.items():
            for root in roots:
                if (path == root or path.startswith(root.rstrip("/") + "/")) and len(root) > len(found[0]):
                    found = (root, kind)
        first = path[len(found[0]) + 1 :].partition("/")[0]
        return "" if first in SITE_NAMES else found[1]

    def _matters(self, kind: str, item: Item) -> bool:
        if kind == "environment":
            return loadable(item) or item.path in self.latent
        folder = os.path.dirname(item.path)
        return importable(item.path) and (folder in self.sources or is_import_folder(folder))

    def tell(self, path: str, change: FileChanged | None) -> None:
        """Tell a change unless it was told; None says that the file is as sealed."""
        with self._guard:
            if change is None:
                self._told.pop(path, None)
                return
            if self._told.get(path) == change.found:
                return
            change = self._kept(path, change)
            self._told[path] = change.found
            self._on_change(change)

    def _kept(self, path: str, change: FileChanged) -> FileChanged:
        """The change with its bytes in the store; `found` is what was kept, if it changed again meanwhile."""
        try:
            if os.path.islink(path):
                kept = self._store.put_bytes(os.fsencode(os.readlink(path)))
            elif change.found:
                kept = self._store.put_file(Path(path))
            else:
                return change
        except (OSError, TrainWardenError) as e:
            self._note(f"{path} changed and could not be kept: {e}")
            return change
        return msgspec.structs.replace(change, found=kept)


def is_import_folder(folder: str) -> bool:
    """Is it a package, or the cache folder of one?"""
    if os.path.basename(folder) == "__pycache__":
        folder = os.path.dirname(folder)
    try:
        return any(name.startswith("__init__.") for name in os.listdir(folder))
    except OSError:
        return False


def _inert_caches(expect: Expected, source: str) -> list[str]:
    """The caches of a source that did not fit it when they were sealed: new times may have made them fit."""
    if not source.endswith(".py"):
        return []
    found = ((path, source_of(path, expect.prefix)) for path, entry in expect.files.items() if entry.inert)
    return [path for path, of in found if of and of[0] == source]


def _digest(item: Item | None) -> Digest | None:
    if item is None:
        return None
    if item.link is not None:
        return Digest(blake3(os.fsencode(item.link)).hexdigest(), b"")
    try:
        return read_digest(item.path)
    except UsageError:
        return None  # gone again, or made unreadable: told as a file whose bytes are not had


def _folders_of(sealed: Collection[str], roots: Collection[str]) -> set[str]:
    return {f for f in {*map(os.path.dirname, sealed), *roots} if os.path.isdir(f)}
