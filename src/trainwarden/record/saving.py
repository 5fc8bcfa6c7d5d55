"""State files that a script writes: told to the watcher with the step that they hold, whatever they are called later.

Rules
-----
* A file is of the step at which the training thread wrote it. What another thread writes holds the weights of the
  step that left them; where none of the last `LEFT_KEPT` did, that is a gap. So a checkpoint that is written
  asynchronously is of the step whose state was copied for it.
* Ranks that save into one folder find each other's files there, finished or not: a rank tells what it wrote itself, and
  the first of a host also what it only finds (written by code that no Python sees).
* A rename keeps the step. What else lies in the folder of a state file belongs to it (`folders.companions`), but for
  what a thread is writing or renaming just now: that is told when it is done.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from trainwarden import wire
from trainwarden.model import DCP, DCP_INDEX
from trainwarden.record import stages
from trainwarden.record.fingerprint import tensor_digest
from trainwarden.record.folders import companions, kind_of
from trainwarden.record.snapshots import Snapshots

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

_WRITTEN_KEPT = 4_096  # paths
LEFT_KEPT = 8  # steps whose weights are remembered by digest, for files that are written beside training


class Save(NamedTuple):
    """What a state file holds: steps done, the last record before it (−1: not known), the complement beside it."""

    kind: str
    step: int
    weights_seq: int
    sidecar: str


class SavedFiles:
    """The state files of one rank."""

    def __init__(self, recorder: Recorder, snapshots: Snapshots) -> None:
        self._recorder, self._snapshots = recorder, snapshots
        self._saved: dict[str, Save] = {}  # by path
        self._left: collections.deque[tuple[int, int, list[bytes]]] = collections.deque(maxlen=LEFT_KEPT)
        self._folders: dict[str, float] = {}
        self._written: set[str] = set()  # paths that this process has opened for writing
        self._finds = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
        self._distributed: dict[str, Save] = {}  # folder → of this rank's parts, until their index is written
        self._busy: list[str] = []  # paths that some thread writes or renames, as often as it does

    @contextmanager
    def busy(self, *paths: str) -> Iterator[None]:
        """Around the writing or renaming of these, with the telling of it."""
        self._busy.extend(paths)
        try:
            yield
        finally:
            for path in paths:
                self._busy.remove(path)

    def wrote(self, path: str) -> None:
        """This process has opened a file for writing."""
        if len(self._written) < _WRITTEN_KEPT:
            self._written.add(path)

    def left(self, weights: list[bytes]) -> None:
        """A step is complete, and left these weights."""
        self._left.append((self._recorder.done, self._recorder.seq - 1, weights))

    def saved(self, path: str, kind: str, state: Any = None) -> None:
        """A state file was written, with `state` in it."""
        trains_here = self._recorder.trainer in (0, threading.get_ident())
        self._tell_saved(path, self._save_now(kind) if trains_here else self._save_of(path, kind, state))
        self._folders.setdefault(os.path.dirname(path), time.time() - 1)

    def saved_parts(self, folder: str, names: list[str], state: Any) -> None:
        """This rank's parts of a distributed checkpoint were written to a folder; its other parts are other ranks'."""
        trains_here = self._recorder.trainer in (0, threading.get_ident())
        save = self._save_now(DCP) if trains_here else self._save_of(folder, DCP, state)
        self._distributed[folder] = save
        for name in names:
            self._tell_saved(os.path.join(folder, name), save)

    def saved_index(self, path: str) -> None:
        """The index of a distributed checkpoint was written, by the rank that does so: of the step of its own part."""
        save = self._distributed.pop(os.path.dirname(path), None) or self._save_now(DCP)
        self._tell_saved(path, save._replace(kind=DCP_INDEX))

    def tell_companions(self) -> None:
        """Tell of what else the folders hold that state files were written to: the rest of a checkpoint."""
        folders, self._folders = self._folders, {}
        for folder, since in folders.items():
            if self._is_busy(folder):
                self._folders.setdefault(folder, since)
                continue
            for path in filter(self._is_own, companions(folder, since)):
                # In this order: who is done has told first, and is no longer busy then.
                if not self._is_busy(path) and path not in self._saved:
                    self._tell_saved(path, self._save_now(kind_of(path)))

    def _is_own(self, path: str) -> bool:
        return self._finds or path in self._written

    def _is_busy(self, path: str) -> bool:
        return any(path == busy or path.startswith(busy + os.sep) for busy in tuple(self._busy))

    def _save_now(self, kind: str) -> Save:
        return Save(kind, self._recorder.done, self._recorder.seq - 1, self._snapshots.beside())

    def _save_of(self, path: str, kind: str, state: Any) -> Save:
        """What a file holds that another thread than the training one wrote: the step that left its weights."""
        held = {tensor_digest(self._recorder.key, t) for _, t in stages.tensors_in(state)}
        for done, seq, digests in reversed(list(self._left)):
            if digests and held.issuperset(digests):
                return Save(kind, done, seq, self._snapshots.beside_earlier(done))
        self._recorder.gap(
            f"{path} was written beside training, and holds the weights of none of the last {LEFT_KEPT} steps"
        )
        return Save(kind, self._recorder.done, -1, "")

    def _tell_saved(self, path: str, save: Save, renamed_from: str = "") -> None:
        self._saved[path] = save
        self._recorder.tell(
            wire.Saved(
                path=path,
                step=save.step,
                format=save.kind,
                weights_seq=save.weights_seq,
                renamed_from=renamed_from,
                sidecar=save.sidecar,
                identity=_identity(path),
            )
        )
        self._recorder.settle()

    def renamed(self, source: str, target: str) -> None:
        """A file or folder was renamed: the state files at or below it have new paths, and their companions too."""
        inside = source + os.sep
        for path in [p for p in self._saved if p == source or p.startswith(inside)]:
            save = self._saved.pop(path)  # of the step that it was written at, not of this one
            self._tell_saved(target + path[len(source) :], save, renamed_from=path)
        for folder in [f for f in self._folders if f == source or f.startswith(inside)]:
            since = self._folders.pop(folder)
            new = target + folder[len(source) :]
            for path in companions(new, since):
                old = os.path.join(folder, os.path.basename(path))
                if path not in self._saved and self._is_own(old):
                    self._tell_saved(path, self._save_now(kind_of(path)), renamed_from=old)


def _identity(path: str) -> tuple[int, int, int]:
    try:
        return wire.identity_of(path)
    except OSError:
        return 0, 0, 0
