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
* What no event tells (writes through a hard link or a mapping, or on another host of a network file system) a slow
  round over all files and folders finds within a minute or so (`sweep.py`).
* A watch that does not come to run (its process was stopped, or starved) says so, and looks at everything.

What it cannot see: a change that is undone between the event and the look (the order of milliseconds), and one that no
event tells and that is undone within a round. `stop` looks at everything once more through the cache.
"""

from __future__ import annotations

import functools
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from trainwarden.errors import TrainWardenError
from trainwarden.model import FileChanged, Seal, SignedSeal
from trainwarden.seal.cache import Item, item_of
from trainwarden.seal.check import boundaries_of, check_seal, libraries_of, unsigned
from trainwarden.seal.imports import namespace_files
from trainwarden.seal.inotify import Folders
from trainwarden.seal.manifest import path_real
from trainwarden.seal.sweep import Sweep
from trainwarden.seal.telling import Telling, is_import_folder
from trainwarden.seal.walked import SealWalk
from trainwarden.seal.walking import importable, under, walk, walk_libraries
from trainwarden.store import Store

_GATHER_SECONDS = 0.1  # events that come together are handled together
_TICK_SECONDS = 1.0
_MOST_ERRORS = 100
_POLL_SECONDS = 5.0  # between whole looks where the kernel gives no watches
_STALLED = 10.0  # seconds that the watch did not come to run, which it does once a second
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
        self._walk = seen
        self._files = Telling(store, self._seal, kinds, on_change, self._note, seen)
        self._bounds = boundaries_of(store, self._seal)
        self._libraries = libraries_of(self._seal)
        walked = seen.of(self._seal.environment) if seen else None
        self._singles = walked.singles if walked else self._files.expect("environment").singles
        self._new_folders: set[str] = set()
        self._folder_times: dict[str, int] = {}
        self._sweep: Sweep | None = None
        self._seen: dict[str, Item | None] = {}
        self._handling = threading.Lock()
        self._folders = seen.folders if seen and seen.folders else Folders()
        self._stop = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._whole = True  # nothing was missed since the folders were entered
        self.errors: list[str] = []
        """Why something could not be looked at; not empty means that the watch has holes."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that hold what is looked at."""
        roots = (root for roots in self._files.roots.values() for root in roots)
        return tuple(dict.fromkeys((*roots, *map(os.path.dirname, self._singles))))

    @property
    def since(self) -> float:
        """The time (of `time.monotonic`) since which every change of the environment is told; −∞ when that was not
        looked at, or some of it may have been missed: then all must be compared.
        """
        return self._walk.began if self._walk and self._is_covered() and self._whole else float("-inf")

    def _is_covered(self) -> bool:
        """Did the walk that made this very environment's seal tell of its folders?"""
        walk = self._walk
        return walk is not None and walk.folders is not None and walk.of(self._seal.environment) is not None

    def start(self) -> None:
        """Begin to watch; on return every watch is set."""
        if not self._is_covered():
            self._enter()
        files = self._files
        files.latent = [r for k in files.kinds if k != "code" for r in files.roots[k] if not self._folders.has(r)]
        for folder in sorted(self._files.sources):
            self._folders.enter_alone(folder)
        if walked := self._walk.of(self._seal.environment) if self._walk else None:
            self._seen = {p: item for p in walked.singles if walked.same(item := walked.items[p])}
        self._thread = threading.Thread(target=self._follow, daemon=True, name="trainwarden-watch")
        self._thread.start()

    def stop(self, last_look: bool = True) -> None:
        """End the watch; with `last_look` compare everything once more and tell what no event told."""
        if self._thread is not None:
            self._stop.set()
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None
            self.settle()
            self._folders.close()
            os.close(self._wake)
        if last_look:
            self.look()

    def look(self) -> None:
        """Compare everything with the seal now, through the digest cache, and tell what was not told yet."""
        try:
            changes = check_seal(self._store, self._seal, self._files.kinds, walk=self._walk)
        except TrainWardenError as e:
            self._note(str(e))
            return
        for change in changes:
            self._files.tell(path_real(change.path), change)

    def settle(self) -> None:
        """Look at everything that the kernel has told by now, and at what it does not tell of."""
        with self._handling:
            self._take()
            self._tick()

    # ------------------------------------------------------------------ events

    def _follow(self) -> None:
        poll = select.poll()
        for fd in (self._folders.fd, self._wake):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ticked = looked = ran = time.monotonic()
        while not self._stop.is_set():
            if poll.poll(_TICK_SECONDS * 1000):
                self._stop.wait(_GATHER_SECONDS)
            if (waited := time.monotonic() - ran) > _STALLED:
                self._note(f"it stood still for {waited:.0f} seconds; what was changed and undone then is not known")
                self.look()
            with self._handling:
                self._take()
                if time.monotonic() - ticked >= _TICK_SECONDS:
                    self._tick()
                    self._go_round()
                    ticked = time.monotonic()
            if self._folders.trouble and time.monotonic() - looked >= _POLL_SECONDS:
                self.look()
                looked = time.monotonic()
            ran = time.monotonic()

    def _take(self) -> None:
        """Handle the events that wait."""
        happened = self._folders.read()
        if self._folders.trouble:
            self._note(f"{self._folders.trouble}; looking every few seconds")
        if happened.dropped:
            self._again()
        own = str(self._store.path)
        concerned = dict.fromkeys(p for p in sorted(happened.files | happened.folders) if not under(p, (own,)))
        for path in happened.folders & concerned.keys():
            concerned.update(dict.fromkeys(self._around(path)))
        for path in concerned:
            self._files.look_at(path)

    def _again(self) -> None:
        """Something was missed, or lies elsewhere now: enter all folders again, and look at everything."""
        self._whole = False
        self._enter()
        for folder in sorted(self._files.sources):
            self._folders.enter_alone(folder)
        self.look()

    def _enter(self) -> None:
        for kind, roots in self._files.roots.items():
            for root in roots if kind != "code" else ():
                for _ in self._walked(root):
                    pass

    def _around(self, folder: str) -> Iterator[str]:
        """What a folder that came, went or was replaced concerns: sealed files below it, and new ones."""
        if folder in self._above:  # asked first: to go through all files for each of many events is what a flood wants
            for kind in self._files.kinds:
                yield from (p for p in self._files.sealed(kind) if p.startswith(folder + "/"))
        if not os.path.isdir(folder) or os.path.islink(folder) or folder in self._bounds.skip:
            return
        if self._files.kind_of_new(folder) == "code":
            self._new_folders.add(folder)
        else:
            yield from self._walked(folder)

    def _walked(self, folder: str) -> Iterator[str]:
        """The files below a folder of the environment, which is watched from now on."""
        bounds = self._bounds.watched_by(self._folders)
        library = next((f for f in self._libraries if under(folder, (f,))), "")
        try:
            yield from (i.path for i in (walk_libraries(library, bounds) if library else walk(folder, bounds)))
        except TrainWardenError as e:
            self._note(str(e))

    def _tick(self) -> None:
        """What no event tells of: where roots lead, files sealed by themselves, empty places, new folders of code."""
        if self._folders.moved():
            self._again()
        self._look_beside_code()
        appeared = (path for place in self._files.latent if os.path.lexists(place) for path in self._listed(place))
        for path in (*self._singles, *appeared):
            item = item_of(path)
            if path not in self._seen or item != self._seen[path]:
                self._seen[path] = item
                self._files.look_at(path)

    def _go_round(self) -> None:
        """A part of the slow round over everything."""
        if self._sweep is None:
            self._sweep = Sweep(
                (*(p for kind in self._files.kinds for p in self._files.sealed(kind)), *self._swept_folders())
            )
        for path in self._sweep.due():
            for concerned in (path, *self._entries(path)):
                self._files.look_at(concerned)

    def _swept_folders(self) -> Iterator[str]:
        """Folders in which something new would matter."""
        for kind in self._files.kinds:
            if kind != "code":
                yield from self._files.roots[kind]
                yield from (f for f in sorted(_folders(self._files.sealed(kind))) if under(f, self._files.roots[kind]))
        yield from sorted(self._files.sources)

    @functools.cached_property
    def _above(self) -> frozenset[str]:
        """Every folder that a sealed file lies below."""
        found: set[str] = set()
        for folder in {f for kind in self._files.kinds for f in _folders(self._files.sealed(kind))}:
            while folder not in found:
                found.add(folder)
                folder = folder.rpartition("/")[0]
        return frozenset(found)

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
                if entry.path not in self._above and self._files.kind_of_new(entry.path) != "code":
                    yield from self._walked(entry.path)
            else:
                yield entry.path

    def _look_beside_code(self) -> None:
        """Packages that appeared beside the code, and folders that some sealed source would import (PEP 420)."""
        for folder in list(self._new_folders):
            if is_import_folder(folder):
                for path in self._listed(folder):
                    self._files.look_at(path)
        for folder in list(self._new_folders):
            if (state := _mtime(folder)) != self._folder_times.get(folder):
                self._folder_times[folder] = state
                if any(map(importable, self._listed(folder))):
                    self._look_for_namespaces()

    def _look_for_namespaces(self) -> None:
        code = self._files.expect("code")
        try:
            beside = code.below_roots
            for item in namespace_files(self._store, beside, self._bounds, lambda: self._files.expect("environment")):
                self._files.look_at_item(code, item.path, item)
        except TrainWardenError as e:
            self._note(str(e))

    def _listed(self, folder: str) -> Iterator[str]:
        try:
            yield from (item.path for item in walk(folder, self._bounds))
        except TrainWardenError as e:
            self._note(str(e))

    def _note(self, error: str) -> None:
        self._whole = False
        if error not in self.errors and len(self.errors) < _MOST_ERRORS:
            self.errors.append(error)


def _folders(paths: Iterable[str]) -> set[str]:
    return {path.rpartition("/")[0] for path in paths}


def _mtime(path: str) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0
