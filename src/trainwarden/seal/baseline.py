"""Is an installed environment what the package index shipped?

Rules
-----
* The only independent evidence are wheels whose hash a lock names. `RECORD` lies beside the files that it lists, and
  whoever changes one can change the other: a contradiction is told, an agreement is `NotChecked`.
* A cache is as shipped if this Python makes it from a source that is as shipped; a script if only its first line, which
  names the interpreter, was put in; a program of an entry point if it does nothing but call that entry point.
* What an installer writes for itself (RECORD, INSTALLER, REQUESTED, direct_url.json) is not shipped and not judged.

Trust: the lock, and this machine while it reads. Covered are site-packages and the programs beside the interpreter, not
the interpreter and its standard library.
"""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import MAGIC_NUMBER
from typing import TypeAlias

import msgspec
from packaging.utils import canonicalize_name

from trainwarden.seal.locks import Locked
from trainwarden.seal.pyc import is_cache_of, source_of
from trainwarden.seal.wheels import Shipped, Wheel

_BOOKKEEPING = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
_GENERATED = (
    "import re\nimport sys\nfrom {module} import {top}\nif __name__ == '__main__':\n"
    "    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])\n    sys.exit({call}())\n",
    "import sys\nfrom {module} import {top}\nif __name__ == '__main__':\n"
    "    sys.argv[0] = sys.argv[0].removesuffix('.exe')\n    sys.exit({call}())\n",
    "import sys\nfrom {module} import {top}\nif __name__ == '__main__':\n    if sys.argv[0].endswith('-script.pyw'):\n"
    "        sys.argv[0] = sys.argv[0][:-11]\n    elif sys.argv[0].endswith('.exe'):\n"
    "        sys.argv[0] = sys.argv[0][:-4]\n    sys.exit({call}())\n",
    "import sys\nfrom {module} import {top}\nif __name__ == '__main__':\n"
    "    if sys.argv[0].endswith('.exe'):\n        sys.argv[0] = sys.argv[0][:-4]\n    sys.exit({call}())\n",
)  # what pip, older and newer, and uv write


class AsShipped(msgspec.Struct, frozen=True, tag="as_shipped"):
    """The bytes, or what they are made from, are those of a wheel that the lock names."""

    package: str


class Changed(msgspec.Struct, frozen=True, tag="changed"):
    """The file is not what was shipped, or not what RECORD says; `found` is "" when it is gone."""

    package: str
    shipped: str  # BLAKE3, "" where only RECORD or a rule contradicts
    found: str
    against: str  # "wheel" | "RECORD" | "source" | "entry point"


class NotShipped(msgspec.Struct, frozen=True, tag="not_shipped"):
    """No wheel and no RECORD knows the file."""

    reason: str


class NotChecked(msgspec.Struct, frozen=True, tag="not_checked"):
    """There is no independent evidence about the file."""

    reason: str
    package: str = ""


Origin: TypeAlias = AsShipped | Changed | NotShipped | NotChecked


class Environment(msgspec.Struct, frozen=True):
    """An installed environment: files by absolute path with their BLAKE3, and how to read one of them."""

    sites: tuple[str, ...]
    scripts: str
    prefix: str
    files: Mapping[str, str]
    read: Callable[[str], bytes]


def compare_baseline(env: Environment, lock: Iterable[Locked], wheels: Iterable[Wheel]) -> dict[str, Origin]:
    """Where every file of the environment comes from, and the shipped files that are missing, by absolute path."""
    wheels = tuple(wheels)
    shipped = {path: s for w in wheels for s in w.files if (path := _place(env, s))}
    programs = {f"{env.scripts}/{name}": (w.package, target) for w in wheels for name, target in w.scripts.items()}
    checked = {w.package for w in wheels}
    records = _records(env)
    known = {locked.name for locked in lock}
    result: dict[str, Origin] = {}
    for path, digest in env.files.items():
        if path in shipped:
            result[path] = _against_wheel(env, path, digest, shipped[path])
        elif path in programs:
            result[path] = _against_entry_point(env, path, digest, *programs[path])
        else:
            result[path] = _against_record(env, path, digest, records, checked, known)
    for path, s in shipped.items():
        if path not in env.files and os.path.basename(path) not in _BOOKKEEPING and s.scheme in ("site", "scripts"):
            result[path] = Changed(s.package, s.digest, "", "wheel")
    for path, (package, _) in programs.items():
        if path not in env.files:
            result[path] = Changed(package, "", "", "entry point")
    return {path: _cache_origin(env, path, origin, result) for path, origin in result.items()}


def _place(env: Environment, s: Shipped) -> str:
    """Where installing puts it: the first site folder that has its package."""
    if s.scheme == "scripts":
        return f"{env.scripts}/{s.path}"
    if s.scheme == "data":
        return f"{env.prefix}/{s.path}"
    if s.scheme != "site" or not env.sites:
        return ""
    places = [f"{site}/{s.path}" for site in env.sites]
    return next((p for p in places if p in env.files), places[0])


def _against_wheel(env: Environment, path: str, digest: str, s: Shipped) -> Origin:
    if s.digest == digest:
        return AsShipped(s.package)
    if os.path.basename(path) in _BOOKKEEPING and ".dist-info/" in path:
        return NotChecked("written by the installer for itself", s.package)
    if s.content is not None and _only_first_line(s.content, env.read(path)):
        return AsShipped(s.package)
    return Changed(s.package, s.digest, digest, "wheel")


def _only_first_line(shipped: bytes, found: bytes) -> bool:
    """A `#!python` line that an installer has given the interpreter's place (PEP 427)."""
    first, _, rest = shipped.partition(b"\n")
    found_first, _, found_rest = found.partition(b"\n")
    return first.startswith(b"#!python") and found_first.startswith(b"#!/") and found_rest == rest


def _against_entry_point(env: Environment, path: str, digest: str, package: str, target: str) -> Origin:
    module, _, call = target.partition(":")
    found = env.read(path)
    templates = [t.format(module=module, call=call, top=call.partition(".")[0]) for t in _GENERATED]
    if _tree(found) in [_tree(t.encode()) for t in templates]:
        return AsShipped(package)
    return Changed(package, "", digest, "entry point")


def _tree(source: bytes) -> str:
    try:
        return ast.dump(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source.hex()


class _Recorded(msgspec.Struct, frozen=True):
    package: str
    digest: str  # "sha256=…" in RECORD's own form, "" when it has none


def _records(env: Environment) -> dict[str, _Recorded]:
    found: dict[str, _Recorded] = {}
    for path in env.files:
        if path.endswith(".dist-info/RECORD"):
            site = os.path.dirname(os.path.dirname(path))
            name = os.path.basename(os.path.dirname(path)).partition("-")[0]
            for row in read_record(env.read(path)):
                place = os.path.normpath(os.path.join(site, row[0]))
                found[place] = _Recorded(canonicalize_name(name), row[1])
    return found


def read_record(data: bytes) -> Iterator[tuple[str, str]]:
    """Paths and hashes of a RECORD file; lines that are none are left out."""
    try:
        for row in csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline="")):
            if len(row) == 3 and row[0] and "\0" not in row[0]:
                yield row[0], row[1]
    except csv.Error:
        return


def _against_record(
    env: Environment, path: str, digest: str, records: Mapping[str, _Recorded], checked: set[str], known: set[str]
) -> Origin:
    recorded = records.get(path)
    if recorded is None:
        return NotShipped("no wheel and no RECORD knows it")
    if os.path.basename(path) in _BOOKKEEPING and ".dist-info/" in path:
        return NotChecked("written by the installer for itself", recorded.package)
    if recorded.digest and not _fits(env.read(path), recorded.digest):
        return Changed(recorded.package, "", digest, "RECORD")
    if recorded.package in checked:
        return NotShipped(f"RECORD lists it, the wheel of {recorded.package} does not hold it")
    if recorded.package not in known:
        return NotChecked("its package is not in the lock", recorded.package)
    return NotChecked("no wheel that the lock names was given; RECORD alone is no evidence", recorded.package)


def _fits(data: bytes, digest: str) -> bool:
    kind, _, value = digest.partition("=")
    if kind not in ("sha256", "sha384", "sha512"):
        return True  # says nothing that could be contradicted
    return base64.urlsafe_b64encode(hashlib.new(kind, data).digest()).rstrip(b"=").decode() == value.rstrip("=")


def _cache_origin(env: Environment, path: str, origin: Origin, all_: Mapping[str, Origin]) -> Origin:
    """A cache is judged by its source, whatever RECORD says of it."""
    if not path.endswith(".pyc") or isinstance(origin, AsShipped) or path not in env.files:
        return origin
    source = source_of(path)
    parent = all_.get(source[0]) if source else None
    if source is None or parent is None or source[0] not in env.files:
        return origin
    if env.read(path)[:4] != MAGIC_NUMBER:
        return NotChecked("bytecode of another Python", "")
    if not is_cache_of(env.read(path), env.read(source[0]), source[0], source[1]):
        package = parent.package if not isinstance(parent, NotShipped) else ""
        return Changed(package, "", env.files[path], "source")
    match parent:
        case AsShipped():
            return parent
        case NotChecked():
            return parent
        case Changed():
            return Changed(parent.package, "", env.files[path], "source")
        case NotShipped():
            return parent
