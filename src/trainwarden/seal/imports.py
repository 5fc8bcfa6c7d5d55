"""Folders that could be imported only because somebody tries: namespace packages beside the sealed code.

A folder without `__init__` is importable too (PEP 420), but only where no module of its name is installed. Much
sealed source tries imports that fail on this machine (`try: import apex`); a folder of that name beside the script
would answer them. Any other new folder (results, copies of the code) is none of our business.

Rules
-----
* Names are read from the sealed bytes of all sources by a pattern, not by running or parsing them: too many rather
  than too few. They are computed when such a folder appears, and cached by the manifests' digests.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import msgspec
from blake3 import blake3

from trainwarden.durable import write_atomically
from trainwarden.model import UNREADABLE, FileEntry
from trainwarden.seal.cache import Item
from trainwarden.seal.walking import Boundaries, importable, walk
from trainwarden.store import Store

_IMPORT = re.compile(rb"^[ \t]*(?:import|from)[ \t]+([^\n#;]+)", re.MULTILINE)
_CALL = re.compile(rb"(?:import_module|find_spec|__import__)\([ \t\n]*[\"']([A-Za-z_]\w*)")
_NAME = re.compile(rb"[A-Za-z_]\w*")


class Installed(Protocol):
    """The sealed environment: files by path, and the folders that Python imports from."""

    @property
    def files(self) -> dict[str, FileEntry]: ...

    @property
    def roots(self) -> tuple[str, ...]: ...


def namespace_files(
    store: Store, sealed: Mapping[str, FileEntry], bounds: Boundaries, environment: Callable[[], Installed]
) -> Iterator[Item]:
    """Importable files of new namespace packages beside sealed sources that some sealed source would import.

    `sealed` is the code; the environment is asked for only when there is such a folder.

    Raises:
        UsageError: a folder cannot be listed.
        StoreError, StoreTampered: a sealed source is not in the store.
    """
    folders = {os.path.dirname(p) for p in sealed if p.endswith(".py")}
    held = {parent for p in sealed for parent in _parents(p)}
    found: dict[str, list[Item]] = {}
    tops = sorted(f for f in folders if f"{f}/__init__.py" not in sealed and os.path.isdir(f))
    for folder in tops:
        for place in _folders(folder):
            if place in held or place in bounds.skip or not os.path.basename(place).isidentifier():
                continue
            if inside := [i for i in walk(place, bounds) if importable(i.path)]:
                found[place] = inside
    if not found:
        return
    installed = environment()
    everything = {**installed.files, **sealed}
    wanted = tried_names(store, everything) - _provided(everything, {*tops, *installed.roots})
    for place, inside in found.items():
        if os.path.basename(place) in wanted:
            yield from inside


def tried_names(store: Store, everything: Mapping[str, FileEntry]) -> frozenset[str]:
    """Top-level names that sealed sources import.

    Raises:
        StoreError, StoreTampered: a sealed source is not in the store.
    """
    sources = sorted({e.digest for p, e in everything.items() if p.endswith(".py") and not e.link})
    cached = store.path / "cache" / f"imports-{blake3(''.join(sources).encode()).hexdigest()[:32]}.json"
    try:
        names = msgspec.json.decode(cached.read_bytes(), type=list[str])
    except (OSError, *UNREADABLE):
        names = sorted({name for digest in sources for name in imported_names(store.get(digest))})
        write_atomically(cached, msgspec.json.encode(names))
    return frozenset(names)


def imported_names(source: bytes) -> set[str]:
    """Every top-level name that looks imported in Python source."""
    found = {m.decode() for m in _CALL.findall(source)}
    for words in _IMPORT.findall(source):
        for part in words.split(b" import ")[0].split(b","):
            if match := _NAME.match(part.strip()):
                found.add(match[0].decode())
    return found


def _provided(everything: Iterable[str], tops: set[str]) -> set[str]:
    """Names that a sealed module or a package with `__init__` answers: a folder without one comes after it."""
    names = set(sys.builtin_module_names)
    for path in everything:
        folder, name = os.path.split(path)
        stem = name.partition(".")[0]
        if stem == "__init__":
            folder, stem = os.path.split(folder)
        if folder in tops and importable(name):
            names.add(stem)
    return names


def _folders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return [e.path for e in found if e.is_dir(follow_symlinks=True) and e.name != "__pycache__"]
    except OSError:
        return []


def _parents(path: str) -> Iterator[str]:
    while len(path) > 1:
        path = os.path.dirname(path)
        yield path
