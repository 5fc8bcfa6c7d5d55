"""What the sealed sources say their functions are, compiled by the sealed interpreter.

Rules
-----
* A source's text comes from the store under the digest that the seal names, never from the disk of the job. Ours
  (the recorder's, which lives in every rank) comes from this package's own folder.
* It is compiled by the sealed interpreter in a process of its own, with `-I -S -B` and no environment: bytecode
  depends on the Python version, and only the job's own gives the job's own. Nothing of it is executed.
* Answers are cached in the store under the digest of the source, the bytecode's magic number and the optimisation.

Trust: the store, the interpreter's binary (sealed, and compared with the seal before the start).
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

import trainwarden
from trainwarden import codeform
from trainwarden.durable import write_atomically
from trainwarden.errors import CannotDecide
from trainwarden.model import UNREADABLE, FileEntry
from trainwarden.store import Store

_BATCH = 64  # files compiled by one process
_TIMEOUT = 300
_FORM_VERSION = 2  # raise it when `codeform` changes what it says


class Def(msgspec.Struct, frozen=True, array_like=True):
    """A function as its source defines it; a default that is no literal is "?"."""

    qualname: str
    line: int
    decorators: int
    defaults: tuple[str, ...]
    keywords: dict[str, str]


class FileCode(msgspec.Struct, frozen=True):
    """What a source file holds; `error` where it cannot be compiled."""

    codes: dict[str, tuple[str, ...]] = {}  # digest → qualified names
    defs: tuple[Def, ...] = ()
    scopes: dict[str, tuple[str, ...]] = {}
    imports: dict[str, tuple[str, ...]] = {}  # names bound by imports alone → "module" or "module:name"
    error: str = ""

    def named(self, qualname: str) -> tuple[Def, ...]:
        """The definitions of that name (several where a branch decides)."""
        return tuple(d for d in self.defs if d.qualname == qualname)


class _Answer(msgspec.Struct):
    magic: str
    answers: list[Any]


class SealedFunctions:
    """Answers for one run; safe to use from several threads."""

    def __init__(
        self, store: Store, files: Mapping[str, FileEntry], interpreter: str, library_path: str = "", optimize: int = 0
    ) -> None:
        self._store = store
        self._files = files
        self._interpreter = interpreter
        self._library_path = library_path
        self._optimize = optimize
        self._own = os.path.realpath(os.path.dirname(trainwarden.__file__)) + os.sep
        self._known: dict[str, FileCode | None] = {}
        self._magic = ""
        self._lock = threading.Lock()

    def about(self, paths: Iterable[str]) -> dict[str, FileCode | None]:
        """What each file's sealed source holds; None for a file that is not sealed.

        Raises:
            CannotDecide: the sealed interpreter does not answer.
            StoreError, StoreTampered: a sealed source is missing or is not what was sealed.
        """
        wanted = list(dict.fromkeys(paths))
        with self._lock:
            missing = [p for p in wanted if p not in self._known]
            for i in range(0, len(missing), _BATCH):
                self._learn(missing[i : i + _BATCH])
            return {p: self._known[p] for p in wanted}

    def magic(self) -> str:
        """The sealed interpreter's bytecode magic number, in hex.

        Raises:
            CannotDecide: it does not answer.
        """
        if not self._magic:
            self._ask([])
        return self._magic

    def difference(self, path: str, qualname: str, live: bytes) -> tuple[str, str, str]:
        """Where a live form first differs from the sealed function: the place, the sealed and the live text."""
        source = self._source(path)
        if source is None:
            return "", "", ""
        text = source.decode("latin-1")
        question = {"path": path, "source": text, "qualname": qualname, "live": live.decode("latin-1")}
        try:
            found = self._ask([question])[0]
        except CannotDecide:
            return "", "", ""
        if isinstance(found, list) and len(found) == 3 and all(isinstance(t, str) for t in found):
            return found[0], found[1], found[2]
        return "", "", ""

    def is_ours(self, path: str) -> bool:
        """Is this a file of the recorder?"""
        return os.path.realpath(path).startswith(self._own)

    # -- internals

    def _learn(self, paths: Sequence[str]) -> None:
        sources = {p: s for p in paths if (s := self._source(p)) is not None}
        for path in paths:
            self._known[path] = None
        magic = self.magic() if sources else ""
        cached = {p: self._cached(blake3(s).hexdigest(), magic) for p, s in sources.items()}
        fresh = [p for p, found in cached.items() if found is None]
        answers = self._ask([{"path": p, "source": sources[p].decode("latin-1")} for p in fresh]) if fresh else []
        for path, answer in zip(fresh, answers, strict=True):
            found = _decoded(answer)
            self._keep(blake3(sources[path]).hexdigest(), magic, found)
            cached[path] = found
        self._known.update(cached)

    def _source(self, path: str) -> bytes | None:
        if not path.endswith(".py"):
            return None
        if self.is_ours(path):
            try:
                return Path(path).read_bytes()
            except OSError:
                return None
        entry = self._files.get(path) or self._files.get(os.path.realpath(path))
        if entry is not None and entry.link:
            entry = self._files.get(os.path.realpath(path))
        return self._store.get(entry.digest) if entry is not None and not entry.link else None

    def _cache_file(self, digest: str, magic: str) -> Path:
        name = f"{digest[2:]}-{magic}-{self._optimize}-{_FORM_VERSION}"
        return self._store.path / "cache" / "functions" / digest[:2] / name

    def _cached(self, digest: str, magic: str) -> FileCode | None:
        try:
            return msgspec.msgpack.decode(self._cache_file(digest, magic).read_bytes(), type=FileCode)
        except (OSError, *UNREADABLE):
            return None

    def _keep(self, digest: str, magic: str, found: FileCode) -> None:
        path = self._cache_file(digest, magic)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, msgspec.msgpack.encode(found))
        except OSError:
            pass  # a cache: it is worked out again next time

    def _ask(self, files: list[dict[str, str]]) -> list[Any]:
        command = [self._interpreter, "-I", "-S", "-B", codeform.__file__]
        env = {"LD_LIBRARY_PATH": self._library_path} if self._library_path else {}
        question = msgspec.json.encode({"optimize": self._optimize, "files": files})
        try:
            run = subprocess.run(command, input=question, env=env, capture_output=True, timeout=_TIMEOUT, check=True)
            answer = msgspec.json.decode(run.stdout, type=_Answer)
        except (OSError, subprocess.SubprocessError, *UNREADABLE) as e:
            raise CannotDecide(f"the sealed interpreter {self._interpreter} does not compile sealed source: {e}") from e
        if len(answer.answers) != len(files):
            raise CannotDecide(f"asked about {len(files)} sources, answered about {len(answer.answers)}")
        self._magic = answer.magic
        return answer.answers


def _decoded(answer: Any) -> FileCode:
    try:
        return msgspec.convert(answer, FileCode)
    except msgspec.ValidationError as e:
        raise CannotDecide(f"the sealed interpreter's answer is none: {e}") from e
