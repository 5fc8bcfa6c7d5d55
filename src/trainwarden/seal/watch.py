"""A watch on sealed files while a run goes on: every change is told once, with its bytes kept.

Rules
-----
* `start` returns when the watches are set. Start the watch first, then run `check_seal`: what changed before is
  seen by the check, what changes after by the watch, what changes between by both.
* The kernel's events only say where to look: a file's bytes are compared with the seal by the same rule as in
  `check_seal` (a cache that Python writes is no change), without the digest cache.
* Changed bytes are copied into the store before the change is told; `found` names the object. A file that is
  changed again is told again, one that is put back and changed again too.
* Folders of the environment are watched with all below them, code folders where sealed sources lie. Files sealed
  by themselves (the interpreter, libpython) and empty places (`latent.py`) are looked at once a second, since a
  watch on a folder like `/usr/bin` would cost more than it tells.

* What no event tells (writes through a hard link or a mapping, mounts, a root made again, events that the kernel
  dropped) a slow round over all files and folders finds within a minute or so (`sweep.py`).
* A watch that does not come to run (its process was stopped, or starved) says so, and looks at everything.

What it cannot see: a change that is undone between the event and the look (the order of milliseconds), and one that no
event tells and that is undone within a round. `stop` looks at everything once more through the cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import watchfiles
from blake3 import blake3

from trainwarden.errors import TrainWardenError, UsageError
from trainwarden.model import FileChanged, Seal, SignedSeal
from trainwarden.seal.cache import Digest, Item, item_of, read_digest
from trainwarden.seal.check import Expected, boundaries_of, check_seal, expected, judge, unsigned
from trainwarden.seal.imports import namespace_files
from trainwarden.seal.manifest import path_real
from trainwarden.seal.scan import SITE_NAMES, importable, loadable, under, walk
from trainwarden.seal.sweep import Sweep
from trainwarden.store import Store

_STEP_MS = 50
_DEBOUNCE_MS = 200
_WAKE_MS = 250  # also how long `start` may take
_TICK_SECONDS = 1.0
_MOST_ERRORS = 100
_POLL_SECONDS = 5.0  # between whole looks where the kernel gives no watches
_STALLED = 10.0  # seconds without an answer, which comes four times a second
KINDS = ("environment", "code")


class FileWatch:
    """Watches the environment and code of a seal; `on_change` is called from the watch's own threads, one at a time.

    Raises (on construction):
        SealBroken, StoreError, StoreTampered: the seal's manifests cannot be had.
    """

    def __init__(
        self,
        store: Store,
        seal: Seal | SignedSeal,
        on_change: Callable[[FileChanged], None],
        kinds: Sequence[str] = KINDS,
    ) -> None:
        self._store = store
        self._seal = unsigned(seal)
        self._on_change = on_change
        self._kinds = tuple(kinds)
        self._expected = [expected(store, seal, kind) for kind in kinds]
        self._bounds = boundaries_of(store, self._seal)
        self._sources = {f for e in self._expected if e.kind == "code" for f in _source_folders(e)}
        self._libraries = {f for e in self._expected for f in e.libraries}
        self._singles = [p for e in self._expected for p in e.files if not under(p, e.roots)]
        self._latent = [r for e in self._expected if e.kind != "code" for r in e.roots if not os.path.isdir(r)]
        self._above = _above(e.files for e in self._expected)
        self._sweep = Sweep((*(p for e in self._expected for p in e.files), *self._swept_folders()))
        self._seen: dict[str, Item | None] = {}
        self._new_folders: set[str] = set()
        self._folder_times: dict[str, int] = {}
        self._told: dict[str, str] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.errors: list[str] = []
        """Why something could not be looked at; not empty means that the watch has holes."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that hold what is looked at."""
        folders: dict[str, None] = {}
        for expect in self._expected:
            folders.update(dict.fromkeys(expect.roots))
        folders.update(dict.fromkeys(map(os.path.dirname, self._singles)))
        return tuple(folders)

    def _swept_folders(self) -> Iterator[str]:
        """Folders in which something new would matter."""
        for expect in self._expected:
            if expect.kind != "code":
                yield from expect.roots
                yield from (f for f in sorted(_folders(expect.files)) if under(f, expect.roots))
        yield from sorted(self._sources)

    def start(self) -> None:
        """Begin to watch; on return every watch is set."""
        deep = [r for e in self._expected if e.kind != "code" for r in e.roots if os.path.isdir(r)]
        deep = [r for r in deep if r not in self._libraries]
        flat = sorted({*self._sources, *filter(os.path.isdir, self._libraries)})
        armed = [self._spawn(deep, True)] if deep else []
        armed += [self._spawn(flat, False)] if flat else []
        for event in armed:
            event.wait()

    def _spawn(self, folders: Sequence[str], recursive: bool) -> threading.Event:
        armed = threading.Event()
        thread = threading.Thread(
            target=self._follow, args=(folders, recursive, armed), daemon=True, name="trainwarden-watch"
        )
        self._threads.append(thread)
        thread.start()
        return armed

    def stop(self, last_look: bool = True) -> None:
        """End the watch; with `last_look` compare everything once more and tell what no event told."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if last_look:
            self.look()

    def look(self) -> None:
        """Compare everything with the seal now, through the digest cache, and tell what was not told yet."""
        try:
            changes = check_seal(self._store, self._seal, self._kinds)
        except TrainWardenError as e:
            self._note(str(e))
            return
        for change in changes:
            self._tell(path_real(change.path), change)

    # ------------------------------------------------------------------ events

    def _follow(self, folders: Sequence[str], recursive: bool, armed: threading.Event) -> None:
        """One thread: the first answer, events or a timeout, comes only after all watches are set."""
        last_tick = 0.0
        handled = time.monotonic()
        try:
            for events in watchfiles.watch(
                *folders,
                watch_filter=None,
                debounce=_DEBOUNCE_MS,
                step=_STEP_MS,
                stop_event=self._stop,
                rust_timeout=_WAKE_MS,
                yield_on_timeout=True,
                recursive=recursive,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                if armed.is_set() and (waited := time.monotonic() - handled) > _STALLED:
                    self._note(
                        f"it stood still for {waited:.0f} seconds; what was changed and undone then is not known"
                    )
                    self.look()
                armed.set()
                self._handle({path for _, path in events})
                if time.monotonic() - last_tick >= _TICK_SECONDS:
                    last_tick = time.monotonic()
                    self._tick(recursive)
                handled = time.monotonic()
        except OSError as e:
            self._note(f"the kernel gives no watches for {len(folders)} folders, looking every few seconds: {e}")
            armed.set()
            while not self._stop.wait(_POLL_SECONDS):
                self.look()

    def _handle(self, paths: set[str]) -> None:
        for path in sorted(paths):
            if not under(path, (str(self._store.path),)):
                for concerned in dict.fromkeys((path, *self._around(path))):
                    self._look_at(concerned)

    def _around(self, path: str) -> Iterator[str]:
        """What an event on a folder, or on one that is gone, concerns: sealed files below it, and new ones."""
        is_folder = os.path.isdir(path) and not os.path.islink(path)
        if path in self._above:  # asked first: to go through all files for each of many events is what a flood wants
            for expect in self._expected:
                yield from (p for p in expect.files if p.startswith(path + "/"))
        if not is_folder or path in self._bounds.skip:
            return
        if self._kind_of_new(path) == "code":
            self._new_folders.add(path)
        else:
            yield from self._walk(path)

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            yield from (item.path for item in walk(folder, self._bounds))
        except TrainWardenError as e:
            self._note(str(e))

    def _tick(self, recursive: bool) -> None:
        """Once a second: files sealed by themselves, folders that appeared beside the code, a part of the sweep."""
        if not recursive:
            self._look_beside_code()
            return
        appeared = (path for place in self._latent if os.path.lexists(place) for path in self._walk(place))
        for path in (*self._singles, *appeared):
            item = item_of(path)
            if item != self._seen.get(path):
                self._seen[path] = item
                self._look_at(path)
        for path in self._sweep.due():
            for concerned in (path, *self._entries(path)):
                self._look_at(concerned)

    def _entries(self, folder: str) -> Iterator[str]:
        """What lies in a folder, and in folders in it that hold nothing sealed."""
        if os.path.islink(folder) or not os.path.isdir(folder):
            return
        try:
            with os.scandir(folder) as found:
                listed = list(found)
        except OSError as e:
            self._note(f"{folder} cannot be listed: {e.strerror}")
            return
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                if entry.path not in self._above and self._kind_of_new(entry.path) != "code":
                    yield from self._walk(entry.path)
            else:
                yield entry.path

    def _look_beside_code(self) -> None:
        """Packages that appeared beside the code, and folders that some sealed source would import (PEP 420)."""
        for folder in list(self._new_folders):
            if _is_import_folder(folder):
                for path in self._walk(folder):
                    self._look_at(path)
        for folder in list(self._new_folders):
            if (state := _mtime(folder)) != self._folder_times.get(folder):
                self._folder_times[folder] = state
                if any(map(importable, self._walk(folder))):
                    self._look_for_namespaces()

    def _look_for_namespaces(self) -> None:
        code = next(e for e in self._expected if e.kind == "code")
        try:
            for item in namespace_files(
                self._store, code.files, self._bounds, lambda: expected(self._store, self._seal, "environment")
            ):
                self._tell(item.path, judge(self._store, code, item.path, item, _digest(item)))
        except TrainWardenError as e:
            self._note(str(e))

    # ------------------------------------------------------------------ one file

    def _look_at(self, path: str) -> None:
        expect = next((e for e in self._expected if path in e.files), None)
        item = item_of(path)
        if expect is None:
            kind = self._kind_of_new(path) if item else ""
            expect = next((e for e in self._expected if e.kind == kind), None)
            if expect is None or item is None or not self._matters(kind, item):
                return
        try:
            change = judge(self._store, expect, path, item, _digest(item))
        except TrainWardenError as e:
            self._note(f"{path}: {e}")
            return
        self._tell(path, change)

    def _kind_of_new(self, path: str) -> str:
        """The kind of the sealed folder that a path lies in, the innermost one, or ""."""
        found = ("", "")
        for expect in self._expected:
            for root in expect.roots:
                if (path == root or path.startswith(root.rstrip("/") + "/")) and len(root) > len(found[0]):
                    found = (root, expect.kind)
        first = path[len(found[0]) + 1 :].partition("/")[0]
        return "" if first in SITE_NAMES else found[1]

    def _matters(self, kind: str, item: Item) -> bool:
        if kind == "environment":
            return loadable(item) or item.path in self._latent
        folder = os.path.dirname(item.path)
        return importable(item.path) and (folder in self._sources or _is_import_folder(folder))

    def _tell(self, path: str, change: FileChanged | None) -> None:
        with self._guard:
            if change is None:
                self._told.pop(path, None)
                return
            if self._told.get(path) == change.found:
                return
            change = self._quarantined(path, change)
            self._told[path] = change.found
            self._on_change(change)

    def _quarantined(self, path: str, change: FileChanged) -> FileChanged:
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

    def _note(self, error: str) -> None:
        if error not in self.errors and len(self.errors) < _MOST_ERRORS:
            self.errors.append(error)


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


def _folders(paths: Iterable[str]) -> set[str]:
    return {path.rpartition("/")[0] for path in paths}


def _above(files: Iterable[Iterable[str]]) -> set[str]:
    """Every folder that a file lies below."""
    found: set[str] = set()
    for folder in {f for paths in files for f in _folders(paths)}:
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _mtime(path: str) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0


def _is_import_folder(folder: str) -> bool:
    """A package, or the cache folder of one."""
    if os.path.basename(folder) == "__pycache__":
        folder = os.path.dirname(folder)
    try:
        return any(name.startswith("__init__.") for name in os.listdir(folder))
    except OSError:
        return False
