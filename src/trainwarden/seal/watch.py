"""A watch on sealed files while a run goes on: every change is told once, with its bytes kept.

Rules
-----
* The folders of the environment are watched from before the walk that sealed them lists them (`walked.py` says what
  follows from that); without such a walk `start` walks them, and then `check_seal` must be run: what changed before is
  seen by the check, what changes after by the watch, what changes between by both.
* The kernel's events only say where to look: a file's bytes are compared with the seal by the same rule as in
  `check_seal` (a cache that Python writes is no change), without the digest cache.
* Changed bytes are copied into the store before the change is told; `found` names the object. A file that is
  changed again is told again, one that is put back and changed again too.
* Folders of the environment are watched with all below them, code folders where sealed sources lie. Files sealed
  by themselves (the interpreter, libpython), empty places (`latent.py`), where the roots lead and what is mounted above
  or below them are looked at once a second, and by `settle`.
* Where the kernel gives no watches everything is looked at every few seconds, and that is said.

What it cannot see: a change that is undone between the event and the look (the order of milliseconds), a write
through a mapping that was opened before the run, through a hard link in a folder that is not watched, or on another host
of a network file system. `stop` therefore looks at everything once more through the cache, whose ctimes show such
writes.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.errors import TrainWardenError, UsageError
from trainwarden.model import FileChanged, Seal, SignedSeal
from trainwarden.seal.cache import Digest, Item, item_of, read_digest
from trainwarden.seal.check import (
    Expected,
    boundaries_of,
    check_seal,
    expected,
    judge,
    libraries_of,
    roots_of,
    unsigned,
)
from trainwarden.seal.inotify import Folders, mounts_around
from trainwarden.seal.manifest import path_real
from trainwarden.seal.pyc import source_of
from trainwarden.seal.scan import SITE_NAMES, importable, loadable, under, walk, walk_libraries
from trainwarden.seal.walked import SealWalk
from trainwarden.store import Store

_GATHER_SECONDS = 0.1  # events that come together are handled together
_TICK_SECONDS = 1.0
_MOST_ERRORS = 100
_POLL_SECONDS = 5.0  # between whole looks where the kernel gives no watches
KINDS = ("environment", "code")


class FileWatch:
    """Watches the environment and code of a seal; `on_change` is called by one thread at a time, not always the same.

    `seen` is the walk that made the seal, with the folders that it told the kernel to watch.

    Raises (on construction):
        SealBroken, StoreError, StoreTampered: the seal's manifests cannot be had.
    """

    def __init__(
        self,
        store: Store,
        seal: Seal | SignedSeal,
        on_change: Callable[[FileChanged], None],
        kinds: Sequence[str] = KINDS,
        seen: SealWalk | None = None,
    ) -> None:
        self._store = store
        self._seal = unsigned(seal)
        self._on_change = on_change
        self._kinds = tuple(kinds)
        self._walk = seen
        self._loaded: dict[str, Expected] = {}
        self._bounds = boundaries_of(store, self._seal)
        self._roots = {kind: roots_of(self._seal, kind) for kind in self._kinds}
        self._libraries = libraries_of(self._seal)
        self._sources = _source_folders(self._sealed("code"), self._roots["code"]) if "code" in self._kinds else set()
        self._singles = [p for kind in self._kinds for p in self._singles_of(kind)]
        self._latent = [r for k, roots in self._roots.items() if k != "code" for r in roots if not os.path.isdir(r)]
        self._seen: dict[str, Item | None] = {}
        self._new_folders: set[str] = set()
        self._told: dict[str, str] = {}
        self._guard = threading.Lock()
        self._handling = threading.RLock()
        self._wake = (-1, -1)
        self._mounts: tuple[str, ...] = ()
        self._thread: threading.Thread | None = None
        self.errors: list[str] = []
        """Why something could not be looked at; not empty means that the watch has holes."""
def _digest(item: Item | None) -> Digest | None:
    if item is None:
        return None
    if item.link is not None:
        return Digest(blake3(os.fsencode(item.link)).hexdigest(), b"")
    try:
        return read_digest(item.path)
    except UsageError:
        return None  # gone again, or made unreadable: told as a file whose bytes are not had


def _source_folders(expect: Expected) -> set[str]:
    folders = {os.path.dirname(p) for p in expect.files} | set(expect.roots)
    return {f for f in folders if os.path.isdir(f)}


def _is_import_folder(folder: str) -> bool:
    """A package, or the cache folder of one."""
    if os.path.basename(folder) == "__pycache__":
        folder = os.path.dirname(folder)
    try:
        return any(name.startswith("__init__.") for name in os.listdir(folder))
    except OSError:
        return False
