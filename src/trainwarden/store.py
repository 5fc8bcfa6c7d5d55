"""The local store: content-addressed objects and the folders of runs (layout in docs/architecture.md).

Rules
-----
* An object's name is the BLAKE3 of its bytes. It is written once, whole, mode 0444, and never rewritten.
* Reading re-hashes: bytes that no longer match their name are `StoreTampered`, never returned.
* `put_*` is durable on return. With `fsync=False` the object is staged, readable through this `Store` only,
  until one `sync()` makes all staged objects durable and gives them their names: a crash before that leaves
  no object at all rather than a torn one.
* Staged files lie in a folder that their process holds a lock on; the folders of dead processes are removed.

Trust: whoever can write the store can remove objects or plant wrong ones. Both are noticed on reading,
neither is prevented.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import shutil
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.durable import (
    fsync_folder,
    hint_for,
    new_locked_folder,
    read_up_to,
    remove_unlocked_folders,
    sync_file_system,
    write_all,
)
from trainwarden.errors import StoreError, StoreTampered, UsageError

STORE_ENV = "TRAINWARDEN_STORE"
FOLDER = ".trainwarden"
_KNOWN = {"objects", "cache", "rooms", "runs", "seals"}
# Made with the first actor, evidence, dossier, freeze, and statement or decision of a gate.
_ADDED = {"actors", "actors.toml", "custody", "dossiers", "frozen", "gate"}
_STAGING = "staging"  # under objects/; every other name there has two characters
_CHUNK = 4 * 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-z]{4}")
_ALPHABET = string.digits + string.ascii_lowercase


class RunDir(msgspec.Struct, frozen=True):
    """The folder of one run."""

    id: str
    path: Path

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def details(self) -> Path:
        return self.path / "details"

    @property
    def private(self) -> Path:
        return self.path / "private"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def pinned(self) -> Path:
        """Snapshots that audits under way need, whatever becomes of the originals."""
        return self.path / "snapshots" / "pinned"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine"

    @property
    def shipping(self) -> Path:
        return self.path / "shipping"

    @property
    def seal_file(self) -> Path:
        return self.path / "seal.json"


class Store:
    """One installation's folder, held open; safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects = path / "objects"
        self._guard = threading.Lock()
        self._staging: Path | None = None
        self._staging_lock = -1
        self._staged: dict[str, Path] = {}

    @classmethod
    def open(cls, path: Path | None = None, create: bool = False) -> Store:
        """Open the store at `path`, else `$TRAINWARDEN_STORE`, else the nearest `.trainwarden/` upwards.

        With `create` a store that is not there yet is made (in the current folder when none was named).

        Raises:
            StoreError: there is none, it is not a store, or it cannot be created.
        """
        path = (path or _find()).absolute()
        store = cls(path)
        with store_errors(f"open the store {path}"):
            if not store.objects.is_dir():
                store._create(create)
        if create:
            remove_unlocked_folders(store.objects / _STAGING)
        return store

    def _create(self, create: bool) -> None:
        if self.path.is_dir() and {p.name for p in self.path.iterdir()} - _KNOWN - _ADDED:
            raise StoreError(f"{self.path} is a folder, but not a store", hint="name an empty or a new folder")
        if not create:
            raise StoreError(
                f"there is no store at {self.path}",
                hint=f"`trainwarden run -- COMMAND` makes one; or name it in {STORE_ENV}",
            )
        self.objects.mkdir(parents=True, exist_ok=True)
        for name in _KNOWN:
            (self.path / name).mkdir(exist_ok=True)
        fsync_folder(self.path)

    # ------------------------------------------------------------------ objects

    def put_bytes(self, data: bytes, *, fsync: bool = True) -> str:
        """Store `data`; return its digest.

        Raises:
            StoreError: the store cannot be written.
        """
        digest = blake3(data).hexdigest()
        if self.has(digest):
            return digest
        with store_errors(f"write to the store {self.path}"):
            temp = self._new_temp()
            with _removed_on_error(temp), temp.open("wb", buffering=0) as f:
                write_all(f.fileno(), data)
                self._seal_temp(f.fileno(), fsync)
            self._place(temp, digest, fsync)
        return digest

    def put_file(self, path: Path, *, fsync: bool = True) -> str:
        """Store the bytes of the file at `path` as they were when copied; return their digest.

        Raises:
            UsageError: the file cannot be read.
            StoreError: the store cannot be written.
        """
        with _source_errors(path), path.open("rb", buffering=0) as source:
            head = read_up_to(source.fileno(), _CHUNK)
            if len(head) < _CHUNK:
                return self.put_bytes(head, fsync=fsync)
            return self._put_stream(path, source.fileno(), head, fsync)

    def _put_stream(self, path: Path, source: int, head: bytes, fsync: bool) -> str:
        hasher = blake3()
        with store_errors(f"write to the store {self.path}"):
            temp = self._new_temp()
            with _removed_on_error(temp), temp.open("wb", buffering=0) as f:
                chunk = head
                while chunk:
                    hasher.update(chunk)
                    write_all(f.fileno(), chunk)
                    with _source_errors(path):
                        chunk = read_up_to(source, _CHUNK)
                self._seal_temp(f.fileno(), fsync)
            digest = hasher.hexdigest()
            if self.has(digest):
                temp.unlink()
            else:
                self._place(temp, digest, fsync)
        return digest

    def sync(self) -> None:
        """Make every staged object durable and give it its name.

        Raises:
            StoreError: the store cannot be written; the objects stay staged.
        """
        with self._guard, store_errors(f"write to the store {self.path}"):
            if not self._staged:
                return
            sync_file_system(self.objects)
            for digest in list(self._staged):
                target = self._final_path(digest)
                target.parent.mkdir(exist_ok=True)
                os.replace(self._staged[digest], target)
                del self._staged[digest]
            sync_file_system(self.objects)

    def get(self, digest: str) -> bytes:
        """The bytes stored under `digest`, re-hashed.

        Raises:
            StoreError: there is no such object, or it cannot be read.
            StoreTampered: the bytes are not those that were stored.
        """
        with store_errors(f"read object {digest}"):
            data = self.object_path(digest).read_bytes()
        _compare(digest, blake3(data).hexdigest())
        return data

    def check(self, digest: str) -> None:
        """Re-hash the object without keeping it in memory.

        Raises:
            StoreError, StoreTampered: as `get`.
        """
        hasher = blake3()
        with store_errors(f"read object {digest}"), self.object_path(digest).open("rb", buffering=0) as f:
            while chunk := f.read(_CHUNK):
                hasher.update(chunk)
        _compare(digest, hasher.hexdigest())

    def has(self, digest: str) -> bool:
        """Is there an object of that name? (Its bytes are not looked at.)"""
        path = self._final_path(digest)
        if path.is_file():
            return True
        with self._guard:
            return digest in self._staged or path.is_file()

    def object_path(self, digest: str) -> Path:
        """Where the object lies (if staged: until the next `sync`); who reads it there must re-hash it.

        Raises:
            StoreError: there is no such object.
        """
        path = self._final_path(digest)
        if path.is_file():
            return path
        with self._guard:
            staged = self._staged.get(digest)
        if staged is None and not path.is_file():
            raise StoreError(
                f"object {digest} is not in the store {self.path}",
                hint="it was removed, or the run was recorded in another store",
            )
        return staged or path

    def _final_path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"not a digest: {digest[:80]!r}")
        return self.objects / digest[:2] / digest[2:]

    def _seal_temp(self, fd: int, fsync: bool) -> None:
        os.fchmod(fd, 0o444)
        if fsync:
            os.fsync(fd)

    def _place(self, temp: Path, digest: str, fsync: bool) -> None:
        with self._guard, _removed_on_error(temp):
            if not fsync:
                if self._staged.setdefault(digest, temp) is not temp:
                    temp.unlink()
                return
            target = self._final_path(digest)
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                fsync_folder(self.objects)
            os.replace(temp, target)
            fsync_folder(target.parent)

    # ------------------------------------------------------------------ staging

    def _new_temp(self) -> Path:
        with self._guard:
            if self._staging is None:
                self._staging, self._staging_lock = new_locked_folder(self.objects / _STAGING)
            return self._staging / secrets.token_hex(8)

    def close(self) -> None:
        """Sync what is staged and give up the staging folder.

        Raises:
            StoreError: as `sync`.
        """
        self.sync()
        with self._guard:
            if self._staging is not None:
                shutil.rmtree(self._staging, ignore_errors=True)
                os.close(self._staging_lock)
                self._staging, self._staging_lock = None, -1

    # ------------------------------------------------------------------ runs

    def create_run(self) -> RunDir:
        """Make the folders of a new run; its id sorts by time of creation.

        Raises:
            StoreError: the store cannot be written.
        """
        parent = self.path / "runs"
        with store_errors(f"create a run in {parent}"):
            parent.mkdir(exist_ok=True)
            while True:
                run = RunDir(run_id := _new_run_id(time.time_ns()), parent / run_id)
                try:
                    run.path.mkdir()
                    break
                except FileExistsError:
                    continue
            for folder in (run.log, run.details, run.snapshots, run.quarantine):
                folder.mkdir()
            run.private.mkdir(mode=0o700)
            fsync_folder(run.path)
            fsync_folder(parent)
        return run

    def runs(self) -> list[str]:
        """The ids of all runs, oldest first.

        Raises:
            StoreError: the store cannot be read.
        """
        with store_errors(f"list the runs in {self.path}"):
            parent = self.path / "runs"
            found = parent.iterdir() if parent.is_dir() else iter(())
            return sorted(p.name for p in found if _RUN_ID.fullmatch(p.name) and p.is_dir())

    @property
    def frozen(self) -> Path:
        """The folder that has a file named after each run that is frozen."""
        return self.path / "frozen"

    def run(self, name: str) -> RunDir:
        """The run with that id, or the one whose id begins or ends so, or the newest for "last".

        Raises:
            UsageError: there is none, or more than one.
        """
        ids = self.runs()
        if name == "last" and ids:
            name = ids[-1]
        found = [i for i in ids if i == name] or [
            i for i in ids if name and (i.startswith(name) or i.endswith("-" + name))
        ]
        if len(found) == 1:
            return RunDir(found[0], self.path / "runs" / found[0])
        if found:
            raise UsageError(
                f"{name!r} names {len(found)} runs",
                hint="say which: " + ", ".join(found[:8] + ["…"] * (len(found) > 8)),
            )
        close = difflib.get_close_matches(name, ids, n=3, cutoff=0.5) or ids[-3:]
        raise UsageError(
            f"no such run: {name!r}",
            hint=f"did you mean {' or '.join(close)}?" if close else f"there is no run in {self.path} yet",
        )


def _find() -> Path:
    named = os.environ.get(STORE_ENV)
    if named:
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FOLDER).is_dir():
            return folder / FOLDER
    return here / FOLDER


def _new_run_id(now_ns: int) -> str:
    """UTC second, then two characters for the part of the second (0.8 ms each) and two random ones."""
    seconds, rest = divmod(now_ns, 1_000_000_000)
    part = rest * 1296 // 1_000_000_000
    suffix = _ALPHABET[part // 36] + _ALPHABET[part % 36] + "".join(secrets.choice(_ALPHABET) for _ in "ab")
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime(seconds)) + suffix


def _compare(expected: str, found: str) -> None:
    if found != expected:
        raise StoreTampered(
            f"the object stored as {expected} has the digest {found}",
            hint="its bytes were changed after they were stored: keep them as evidence, restore a good copy",
        )


@contextmanager
def _removed_on_error(temp: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn errors of the disk into `StoreError` with a hint."""
    try:
        yield
    except OSError as e:
        raise StoreError(f"cannot {what}: {e.strerror or e}", hint=hint_for(e)) from e


@contextmanager
def _source_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror or e}", hint=hint_for(e)) from e
