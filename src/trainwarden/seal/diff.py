"""What changed in an environment, file by file, for a reader: which package, what kind, what differs.

Rules
-----
* Sealed bytes come from the store, changed ones from the disk or, for a change during a run, from the store.
  All of them may be hostile: they are read and compared, never imported, unmarshalled or executed.
* Source is shown as a unified diff. Bytecode is shown as a diff of its disassembly against what the sealed source
  compiles to (`disassembly.py`), with the sealed source's line beside the instructions that it was compiled to, and
  before it the names and constants that only the found bytecode has. It is not decompiled: no kept library does that
  for the Pythons that are supported, and a guess at source is no evidence.
* Native libraries are shown as a diff of sections and symbols, everything else by digest.
* Whether source and bytecode agree is decided by compiling the source here (`pyc.py`); another Python's
  bytecode is not compared, and said so.
* Bounded: files above `LARGE` are compared by digest only, and a diff ends after `lines` lines.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import MAGIC_NUMBER, cache_from_source
from itertools import islice

import msgspec

from trainwarden.errors import StoreError
from trainwarden.model import FileChanged, FileEntry, Seal
from trainwarden.seal.baseline import read_record
from trainwarden.seal.check import expected, roots_of
from trainwarden.seal.disassembly import Line, disassemble
from trainwarden.seal.elf import outline
from trainwarden.seal.manifest import path_real
from trainwarden.seal.pyc import compiled, is_cache_of, source_of
from trainwarden.seal.walking import SITE_NAMES
from trainwarden.store import Store

LARGE = 8 * 1024 * 1024
_MOST_LINES = 30_000
_LONGEST = 400  # characters of a line
_MOST_NAMED = 20
_HUNK = re.compile(r"@@ -(\d+)")
_NAMING = re.compile(r" {4}(?:LOAD_CONST|LOAD_GLOBAL|LOAD_NAME|LOAD_ATTR|LOAD_METHOD|IMPORT_NAME|IMPORT_FROM) +(.+)")
_HOOKS = {"sitecustomize.py", "usercustomize.py"}


class Side(msgspec.Struct, frozen=True):
    """One state of a file: its digest ("" when there is none) and its bytes, unless they cannot be had or are large."""

    digest: str
    data: bytes | None = None
    untold: str = ""  # why there are no bytes


class FileDiff(msgspec.Struct, frozen=True, kw_only=True):
    """One changed file. `diff` holds lines without line ends; `cut` says how many are left out."""

    path: str
    package: str
    kind: str  # "source" | "bytecode" | "native" | "startup hook" | "entry point" | "program" | "archive" | "other"
    change: str  # "changed" | "new" | "gone"
    sealed: str
    found: str
    when: str  # "now": it differs on disk; "during the run": it did then
    bytecode: str  # "agrees", "differs", or why source and bytecode are not compared
    shown: str  # what `diff` shows: "source" | "disassembly" | "sections and symbols" | "text" | "", then why nothing
    diff: tuple[str, ...]
    cut: int = 0


class Differ:
    """Explains changes against one seal. Reads the store and the disk.

    Raises (on construction):
        SealBroken, StoreError, StoreTampered: the seal's manifests cannot be had.
    """

    def __init__(self, store: Store, seal: Seal, lines: int = 200) -> None:
        self._store, self._lines = store, lines
        self._files: dict[str, FileEntry] = {}
        self._roots: list[str] = []
        for kind in ("environment", "code", "data"):
            expect = expected(store, seal, kind)
            self._files |= expect.files
            self._roots += expect.roots
        self._code = roots_of(seal, "code")
        self._owners: dict[str, str] | None = None

    def of(self, change: FileChanged, when: str = "now") -> FileDiff:
        """What changed in one file."""
        path = path_real(change.path)
        before = self._sealed(path, change.sealed)
        after = self._from_store(change.found) if when != "now" else _on_disk(path, change.found)
        kind = kind_of(path, self._files.get(path))
        shown, lines = self._shown(path, kind, before, after)
        kept = tuple(line[:_LONGEST] for line in islice(lines, self._lines))
        return FileDiff(
            path=change.path,
            package=self._package(path),
            kind=kind,
            change="new" if not change.sealed else "gone" if not change.found else "changed",
            sealed=change.sealed,
            found=change.found,
            when=when,
            bytecode=self._agreement(path, after),
            shown=shown,
            diff=kept,
            cut=sum(1 for _ in lines),
        )

    # -- bytes

    def _sealed(self, path: str, digest: str) -> Side:
        entry = self._files.get(path)
        if entry is not None and entry.link:
            return Side(digest, os.fsencode(path_real(entry.link)))
        return self._from_store(digest)

    def _from_store(self, digest: str) -> Side:
        if not digest:
            return Side("", b"")
        try:
            if self._store.object_path(digest).stat().st_size > LARGE:
                return Side(digest, None, "too large to show")
            return Side(digest, self._store.get(digest))
        except (StoreError, OSError) as e:
            return Side(digest, None, f"its bytes are not in the store: {e}")

    # -- what is shown

    def _shown(self, path: str, kind: str, before: Side, after: Side) -> tuple[str, Iterator[str]]:
        if before.data is None or after.data is None:
            return before.untold or after.untold, iter(())
        if kind == "bytecode":
            return self._bytecode(path, before.data, after.data)
        if kind == "native":
            old, new = outline(before.data) or [], outline(after.data) or []
            return ("sections and symbols", _unified(old, new)) if old or new else ("not ELF", iter(()))
        if b"\0" in before.data or b"\0" in after.data:
            return "not text", iter(())
        name = "source" if path.endswith(".py") else "text"
        return name, _unified(_lines(before.data), _lines(after.data))

    def _bytecode(self, path: str, before: bytes, after: bytes) -> tuple[str, Iterator[str]]:
        """Against the sealed cache, else against what the sealed source compiles to."""
        new = disassemble(after) if after else []
        source = source_of(path)
        entry = self._files.get(source[0]) if source else None
        text = self._from_store(entry.digest).data if entry else None
        old: list[Line] | None = []
        if before:
            old = disassemble(before)
        elif source and text is not None:
            made = compiled(text, source[0], source[1])
            old = disassemble(made) if made else []
        if old is None or new is None:
            return "no bytecode of this Python", iter(())
        return "disassembly", self._annotated(old, new, _lines(text or b""))

    def _annotated(self, old: list[Line], new: list[Line], source: list[str]) -> Iterator[str]:
        if only := _only_in(new, old):
            yield f"only in the found bytecode: {', '.join(only)}"
        at = told = 0
        for line in _unified([o.text for o in old], [n.text for n in new]):
            if hunk := _HUNK.match(line):
                at, told = max(0, int(hunk[1]) - 1), 0
            elif line[:1] in ("-", " ") and not line.startswith("---") and at < len(old):
                number, at = old[at].source, at + 1
                if number != told and 0 < number <= len(source):
                    line = f"{line:<48} │ {number}: {source[number - 1].strip()}"
                told = number
            yield line

    # -- source and bytecode

    def _agreement(self, path: str, after: Side) -> str:
        if path.endswith(".pyc"):
            source = source_of(path)
            if source is None:
                return "it has no source"
            return _compare(after.data, _on_disk(source[0], "?").data, source)
        if path.endswith(".py"):
            cache = cache_from_source(path)
            data = _on_disk(cache, "?").data
            return _compare(data, after.data, (path, 0)) if data else "there is no cache of this Python beside it"
        return "no Python source"

    # -- packages

    def _package(self, path: str) -> str:
        if self._owners is None:
            self._owners = dict(self._recorded())
        if owner := self._owners.get(path):
            return owner
        source = source_of(path)
        if source and (owner := self._owners.get(source[0])):
            return owner
        if any(path.startswith(root.rstrip("/") + "/") for root in self._code):
            return "the code"
        for root in self._roots:
            if path.startswith(root.rstrip("/") + "/") and os.path.basename(root) in SITE_NAMES:
                return path[len(root) :].strip("/").partition("/")[0] + " (of no installed package)"
            if path.startswith(root.rstrip("/") + "/") and f"{root}/os.py" in self._files:
                return "Python's standard library"
        return "none"

    def _recorded(self) -> Iterator[tuple[str, str]]:
        for path, entry in self._files.items():
            if path.endswith(".dist-info/RECORD"):
                info = os.path.dirname(path)
                data = self._from_store(entry.digest).data or b""
                name = os.path.basename(info).removesuffix(".dist-info").replace("-", " ", 1)
                for row, _ in read_record(data):
                    yield os.path.normpath(os.path.join(os.path.dirname(info), row)), name


def kind_of(path: str, entry: FileEntry | None = None) -> str:
    """What a file is to Python, by its name."""
    name = os.path.basename(path)
    if name.endswith(".pth") or name in _HOOKS or name == "pyvenv.cfg":
        return "startup hook"
    if name == "entry_points.txt":
        return "entry point"
    if name.endswith(".py"):
        return "source"
    if name.endswith(".pyc"):
        return "bytecode"
    if name.endswith((".so", ".pyd")) or ".so." in name:
        return "native"
    if name.endswith((".zip", ".egg", ".whl")):
        return "archive"
    executable = entry.mode & 0o111 if entry else os.access(path, os.X_OK)
    return "program" if executable and not (entry and entry.link) else "other"


def gone_by(changes: Iterable[FileChanged], during: Iterable[FileChanged]) -> list[FileChanged]:
    """The last state of files that changed during a run and are as sealed now."""
    now = {change.path for change in changes}
    last: Mapping[str, FileChanged] = {change.path: change for change in during}
    return [change for path, change in sorted(last.items()) if path not in now]


def _compare(cache: bytes | None, source: bytes | None, of: tuple[str, int]) -> str:
    if cache is None or source is None:
        return "one of the two cannot be read"
    if cache[:4] != MAGIC_NUMBER:
        return "bytecode of another Python"
    return "agrees" if is_cache_of(cache, source, *of) else "differs"


def _on_disk(path: str, digest: str) -> Side:
    if not digest:
        return Side("", b"")
    try:
        if os.path.islink(path):
            return Side(digest, os.fsencode(os.readlink(path)))
        if not os.path.isfile(path):
            return Side(digest, None, "it is no regular file now")
        with open(path, "rb") as f:
            data = f.read(LARGE + 1)
    except OSError as e:
        return Side(digest, None, f"it cannot be read now: {e.strerror}")
    return Side(digest, data) if len(data) <= LARGE else Side(digest, None, "too large to show")


def _only_in(new: list[Line], old: list[Line]) -> list[str]:
    """Names and constants of one disassembly that the other lacks: what tampering brings along."""
    before = {m[1] for line in old if (m := _NAMING.fullmatch(line.text))}
    found = (m[1] for line in new if (m := _NAMING.fullmatch(line.text)))
    return list(islice((n for n in dict.fromkeys(found) if n not in before), _MOST_NAMED))


def _lines(data: bytes) -> list[str]:
    return data.decode("utf-8", "backslashreplace").splitlines()


def _unified(old: list[str], new: list[str]) -> Iterator[str]:
    """A diff, or one line that says why not: on hostile lines difflib takes time without bound."""
    if max(len(old), len(new)) > _MOST_LINES:
        return iter((f"{len(old):,} and {len(new):,} lines: too many to compare",))
    return difflib.unified_diff(old, new, "sealed", "found", lineterm="")
