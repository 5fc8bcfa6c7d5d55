"""Wheels as evidence of what the package index shipped: every file that installing one puts somewhere (PEP 427).

Rules
-----
* A wheel counts only if a lock names its hash; its own RECORD and name prove nothing.
* Members with absolute paths or `..` end the reading. Sizes are bounded; contents are hashed as they are unpacked
  and never written anywhere.
* Places are told by scheme: `site` (purelib and platlib), `scripts`, `data`, `headers`.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec
from blake3 import blake3
from packaging.utils import canonicalize_name

from trainwarden.errors import UsageError
from trainwarden.seal.cache import Progress
from trainwarden.seal.locks import STRONG, Locked

_MOST_MEMBERS = 500_000
_MOST_BYTES = 64 * 1024**3
_MOST_META = 16 * 1024 * 1024
_CHUNK = 4 * 1024 * 1024
_SITE = ("purelib", "platlib")


class Shipped(msgspec.Struct, frozen=True):
    """One file of a wheel: where it goes, its BLAKE3, and its bytes if installing rewrites them (a script)."""

    package: str
    scheme: str  # "site" | "scripts" | "data" | "headers"
    path: str
    digest: str
    content: bytes | None = None


class Wheel(msgspec.Struct, frozen=True):
    """A wheel whose hash the lock names."""

    package: str
    version: str
    path: str
    files: tuple[Shipped, ...]
    scripts: dict[str, str]  # console and GUI entry points: program → "module:object"


def find_wheels(folder: Path, lock: Iterable[Locked], progress: Progress | None = None) -> list[tuple[Path, Locked]]:
    """Files below `folder` whose hash the lock names: wheels, or the bodies in pip's HTTP cache.

    Raises:
        UsageError: the folder cannot be listed, or a file in it not read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder of wheels", hint="fill one: pip download -r LOCK -d wheels")
    wanted = {h: locked for locked in lock for h in locked.hashes}
    kinds = {h.partition(":")[0] for h in wanted}
    paths = [Path(base, name) for base, _, names in os.walk(folder) for name in sorted(names)]
    paths = [p for p in paths if p.suffix in (".whl", ".body") and p.is_file()]
    total = sum(p.stat().st_size for p in paths)
    found, done = [], 0
    for path in sorted(paths):
        digests = _digests(path, kinds)
        done += path.stat().st_size
        if progress:
            progress(done, total, "wheels")
        if locked := next((wanted[d] for d in digests if d in wanted), None):
            found.append((path, locked))
    return found


def _digests(path: Path, kinds: Iterable[str]) -> list[str]:
    hashers = [hashlib.new(kind) for kind in sorted(kinds) if kind in STRONG]
    try:
        with path.open("rb") as f:
            while chunk := f.read(_CHUNK):
                for hasher in hashers:
                    hasher.update(chunk)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}", hint="check its permissions") from e
    return [f"{h.name}:{h.hexdigest()}" for h in hashers]


def read_wheel(path: Path, locked: Locked, progress: Callable[[int], None] | None = None) -> Wheel:
    """What a wheel ships.

    Raises:
        UsageError: it is no wheel of that package, or its contents are out of bounds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path, locked, progress)
    except (zipfile.BadZipFile, OSError, zlib.error, RuntimeError, NotImplementedError, EOFError, ValueError) as e:
        raise UsageError(f"{path} cannot be read as a wheel: {e}", hint="download it again") from e


def _read(archive: zipfile.ZipFile, path: Path, locked: Locked, progress: Callable[[int], None] | None) -> Wheel:
    members = [m for m in archive.infolist() if not m.is_dir()]
    if len(members) > _MOST_MEMBERS or sum(m.file_size for m in members) > _MOST_BYTES:
        raise UsageError(f"{path} holds {len(members)} files, more than is read", hint="is it a wheel?")
    info = {m.filename.partition("/")[0] for m in members if m.filename.endswith(".dist-info/WHEEL")}
    if len(info) != 1 or canonicalize_name(next(iter(info)).partition("-")[0]) != locked.name:
        named = ", ".join(sorted(info)) or "nothing"
        raise UsageError(f"{path} has the hash of {locked.name} and holds {named}", hint="is the lock right?")
    files = [shipped for m in members if (shipped := _member(archive, m, locked.name, progress))]
    entry_points = f"{info.pop()}/entry_points.txt"
    known = {m.filename for m in members}
    scripts = _scripts(_bounded(archive, entry_points)) if entry_points in known else {}
    return Wheel(locked.name, locked.version, str(path), tuple(files), scripts)


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, package: str, progress: Callable[[int], None] | None
) -> Shipped | None:
    parts = PurePosixPath(member.filename).parts
    if member.filename.startswith("/") or ".." in parts or "\0" in member.filename or not parts:
        raise UsageError(f"a wheel of {package} names {member.filename!r}", hint="it is not installed by any tool")
    scheme = "site"
    if parts[0].endswith(".data") and len(parts) > 2:
        scheme, parts = parts[1], parts[2:]
        scheme = "site" if scheme in _SITE else scheme
    content = bytearray()
    hasher = blake3()
    left = member.file_size
    with archive.open(member) as f:
        while chunk := f.read(_CHUNK):
            left -= len(chunk)
            hasher.update(chunk)
            if scheme == "scripts" and len(content) < _MOST_META:
                content += chunk
    if left:
        raise UsageError(f"{member.filename!r} is not as long as its archive says", hint="download the wheel again")
    if progress:
        progress(member.file_size)
    kept = bytes(content) if scheme == "scripts" else None
    return Shipped(package, scheme, "/".join(parts), hasher.hexdigest(), kept)


def _bounded(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as f:
        return f.read(_MOST_META).decode("utf-8", "replace")


def _scripts(text: str) -> dict[str, str]:
    """Programs that an installer makes from entry points (the entry points specification of PyPA)."""
    parser = configparser.ConfigParser(delimiters=("=",), strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    sections: Iterator[Mapping[str, str]] = (parser[s] for s in ("console_scripts", "gui_scripts") if s in parser)
    return {name: target.partition("[")[0].strip() for section in sections for name, target in section.items()}
