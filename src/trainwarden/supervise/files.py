"""Files of state and data that ranks write and read, hashed from outside by one thread, in the order told.

Rules
-----
* A rank only names a path; what is logged is what this process read there. Only regular files are read.
* Every saved file is copied into the object store as it is hashed, so that an audit can start from it when
  the original is edited or deleted later. There is no bound but half of the free disk: a file above that is
  hashed and not copied, and a gap says so. Files that were read and not saved here are copied up to
  `keep_bytes`.
* The signing key and the runs of the store are never copied, whatever a rank asks for.
* A saved file that is gone or overwritten before it could be read is a gap: the rank tells inode, size and mtime with
  the path, and other bytes than those that it wrote are never logged as its own.
"""

from __future__ import annotations

import os
import queue
import shutil
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from trainwarden.errors import TrainWardenError, UsageError
from trainwarden.keys import key_path
from trainwarden.model import CheckpointLoaded, CheckpointSaved, DataOpened, Detail, Gap
from trainwarden.store import RunDir, Store
from trainwarden.supervise.ledger import Ledger
from trainwarden.supervise.weights import NOT_CHECKED, WeightCheck
from trainwarden.wire import identity_of

MAX_OPENED = 2_000  # unsealed data files logged in one run
_NOT_DATA = ("/dev/", "/proc/", "/sys/")


@dataclass(frozen=True)
class SavedFile:
    """A rank's statement that it wrote `path` when it had done `step` steps."""

    attempt: int
    rank: int
    step: int
    path: str
    format: str
    weights: Detail | None = None
    renamed_from: str = ""
    sidecar: str = ""
    reached: int = -1
    identity: tuple[int, int, int] = (0, 0, 0)  # inode, size, mtime in ns as the rank told them; zeros: not told


class KnownFiles:
    """Which step a checkpoint file was recorded at: by path and digest, else by digest alone.

    The same bytes can be saved at several steps (a part that does not train). By digest alone the earliest of
    them counts, so that such a file never makes a job look further than it is.
    """

    def __init__(self, earlier: Iterable[CheckpointSaved] = ()) -> None:
        self._at: dict[tuple[str, str], int] = {}
        self._first: dict[str, int] = {}
        for saved in earlier:
            self.add(saved)

    def add(self, saved: CheckpointSaved) -> None:
        self._at[saved.path, saved.digest] = saved.step
        self._first[saved.digest] = min(saved.step, self._first.get(saved.digest, saved.step))

    def step(self, path: str, digest: str) -> int:
        """The step, −1 when the file is not known."""
        return self._at.get((path, digest), self._first.get(digest, -1))


class FileDesk:
    """Hashes, copies, compares and logs files. Calls from any thread; work is done in one."""

    def __init__(
        self,
        store: Store,
        run: RunDir,
        ledger: Ledger,
        known: KnownFiles,
        check: WeightCheck,
        sealed: Callable[[str], bool],
        keep_bytes: int,
        on_read: Callable[[str], None] = lambda path: None,
    ) -> None:
        self._on_read = on_read  # a rank reads this sealed file
        self._store, self._run, self._ledger = store, run, ledger
        self._known, self._check, self._sealed = known, check, sealed
        self._keep_bytes = keep_bytes
        self._opened: set[str] = set()
        self._missing: dict[str, SavedFile] = {}
        self._renamed: set[str] = set()  # paths that a rank has told to have new names
        self._newest: dict[str, SavedFile] = {}
        self._steps: dict[str, int] = {}  # of logged files, by where they were last told to be
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(1_000)
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-files")
        self._thread.start()

    # -- for the sessions

    def saved(self, file: SavedFile) -> None:
        """A file was written: hash, copy, compare with the record, log.

        Ranks that share a folder find each other's files in it: the same file of the same step is logged once.
        """
        known = self._newest.get(file.path)
        if known is not None and any(file.identity) and _same_file(known, file):
            return
        self._newest[file.path] = file
        self._jobs.put(lambda: self._on_saved(file))

    def loaded(self, attempt: int, rank: int, path: str, timeout: float = 60.0) -> int:
        """A file of state was read: hash it, log it, and return the step that the log knows it by, or −1."""
        answer: queue.Queue[int] = queue.Queue()
        self._jobs.put(lambda: answer.put(self._on_loaded(attempt, rank, path)))
        try:
            return answer.get(timeout=timeout)
        except queue.Empty:
            return -1

    def opened(self, attempt: int, rank: int, path: str) -> None:
        """A file was opened for reading: log it unless the seal lists it."""
        if path in self._opened or path.startswith(_NOT_DATA) or len(self._opened) > MAX_OPENED:
            return
        self._opened.add(path)
        if len(self._opened) > MAX_OPENED:
            reason = f"more than {MAX_OPENED} data files outside of the seal were opened; the rest is not logged"
            self._ledger.submit(Gap(attempt=attempt, rank=rank, step=-1, reason=reason))
            return
        self._jobs.put(lambda: self._on_opened(attempt, rank, path))

    def drain(self, timeout: float = 60.0) -> bool:
        """Wait until everything asked for so far has been submitted to the ledger."""
        done = threading.Event()
        self._jobs.put(done.set)
        return done.wait(timeout)

    def close(self) -> None:
        """Finish what waits, and log the files that never could be read."""
        self._jobs.put(None)
        self._thread.join(120.0)
        for file in self._missing.values():
            self._gap(file, f"the checkpoint file {file.path} was gone before it could be hashed")

    # -- in the desk's own thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _on_saved(self, file: SavedFile) -> None:
        self._missing.pop(file.renamed_from, None)
        self._renamed.add(file.renamed_from)
        if self._newest.get(file.path) is not file:
            self._gap(file, f"the checkpoint file {file.path} was overwritten before it could be hashed")
            return
        try:
            before = identity_of(file.path)
            digest, size, kept = self._take(file.path, limit=None)
            after = identity_of(file.path)
        except (OSError, TrainWardenError) as e:
            if os.path.exists(file.path):
                self._gap(file, f"the checkpoint file {file.path} could not be hashed: {e}")
            elif file.path not in self._renamed:
                self._missing[file.path] = file  # renamed already, which a rank has yet to tell, or deleted
            return
        if any(file.identity) and not before == file.identity == after:
            self._gap(file, f"the checkpoint file {file.path} was overwritten before it could be hashed")
            return
        if not kept:
            self._gap(file, f"the checkpoint file {file.path} of {size} bytes was not copied: not enough free disk")
        entry = CheckpointSaved(
            attempt=file.attempt,
            rank=file.rank,
            step=file.step,
            path=file.path,
            digest=digest,
            size=size,
            format=file.format,
            weights=self._compare(file, digest) if kept else NOT_CHECKED,
            sidecar=self._sidecar(file),
            renamed_from=file.renamed_from,
            reached=file.reached,
        )
        if self._newest.get(file.path) is not file and entry.weights.startswith("differs"):
            self._gap(file, f"the checkpoint file {file.path} was overwritten while it was being hashed")
            return
        self._known.add(entry)
        self._steps.pop(file.renamed_from, None)
        self._steps[file.path] = file.step
        self._ledger.submit(entry)

    def _compare(self, file: SavedFile, digest: str) -> str:
        if file.weights is None or file.format != "safetensors":
            return NOT_CHECKED
        try:
            return self._check.compare(self._store.object_path(digest), file.weights, file.path)
        except (ValueError, OSError, TrainWardenError) as e:
            self._gap(file, f"the checkpoint file {file.path} could not be compared with the record: {e}")
            return NOT_CHECKED

    def _sidecar(self, file: SavedFile) -> str:
        if not file.sidecar:
            return ""
        path = Path(os.path.realpath(self._run.path / file.sidecar))
        if not path.is_relative_to(os.path.realpath(self._run.snapshots)):
            self._gap(file, f"the complement {file.sidecar!r} lies outside of the run's snapshots and was not read")
            return ""
        try:
            return self._store.put_file(path)
        except TrainWardenError as e:
            self._gap(file, f"the complement of {file.path} could not be kept: {e}")
            return ""

    def _on_loaded(self, attempt: int, rank: int, path: str) -> int:
        try:
            digest, _, _ = self._take(path, limit=self._keep_bytes)
        except (OSError, TrainWardenError) as e:
            reason = f"the state file {path} that was read could not be hashed: {e}"
            self._ledger.submit(Gap(attempt=attempt, rank=rank, step=-1, reason=reason))
            return -1
        step = self._known.step(path, digest)
        sealed = step < 0 and self._sealed(path)
        gone = self._gone_above(step) if step >= 0 else ""
        self._ledger.submit(
            CheckpointLoaded(
                attempt=attempt,
                rank=rank,
                path=path,
                digest=digest,
                known_step=step,
                sealed=sealed,
                newer_gone=gone,
            )
        )
        return step

    def _gone_above(self, step: int) -> str:
        """A file of the newest checkpoint that is no longer there, where that is of a later step."""
        newest = max(self._steps.values(), default=-1)
        if newest <= step:
            return ""
        return min((path for path, at in self._steps.items() if at == newest and not os.path.exists(path)), default="")

    def _on_opened(self, attempt: int, rank: int, path: str) -> None:
        if self._sealed(path):
            self._on_read(path)
            return
        try:
            changed = os.stat(path).st_ctime_ns
            digest, size, _ = self._take(path, limit=self._keep_bytes)
        except (OSError, TrainWardenError):
            return  # a folder, a socket, a temporary file that is gone: not data that a replay could miss
        if self._known.step(path, digest) < 0:
            self._ledger.submit(
                DataOpened(attempt=attempt, rank=rank, path=path, digest=digest, size=size, changed_ns=changed)
            )

    def _take(self, path: str, limit: int | None) -> tuple[str, int, bool]:
        """Digest and size of a file, and whether it was copied into the store."""
        size = self._regular(path)
        room = shutil.disk_usage(self._store.path).free // 2
        if size > (room if limit is None else min(limit, room)):
            return _hash(path), size, False
        return self._store.put_file(Path(path)), size, True

    def _regular(self, path: str) -> int:
        """The size of a regular file that may be copied."""
        real = Path(os.path.realpath(path))
        store = Path(os.path.realpath(self._store.path))
        if real == Path(os.path.realpath(key_path())) or real.is_relative_to(store / "runs"):
            raise UsageError(f"{path} is part of TrainWarden itself")
        status = os.stat(real)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file")
        return status.st_size

    def _gap(self, file: SavedFile, reason: str) -> None:
        self._ledger.submit(Gap(attempt=file.attempt, rank=file.rank, step=file.step, reason=reason))


def _same_file(one: SavedFile, other: SavedFile) -> bool:
    return (one.attempt, one.step, one.identity) == (other.attempt, other.step, other.identity)


def _hash(path: str) -> str:
    hasher = blake3()
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while chunk := os.read(fd, 1 << 22):
            hasher.update(chunk)
    finally:
        os.close(fd)
    return hasher.hexdigest()
