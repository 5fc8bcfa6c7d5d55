"""Lock files: which wheels, by hash, an environment was meant to be made of.

Understood are `pylock.toml` (PEP 751, through `packaging`), and pip's requirements files with `--hash` (pip's
documentation, "Secure installs"). A line without a hash pins a version and no bytes; it is kept, without hashes, so
that the packages it names are reported as not checked.

Trust: the lock itself. It is independent of the environment only if whoever can write the one cannot write the other.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
from packaging.pylock import Pylock, PylockValidationError, is_valid_pylock_path
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from trainwarden.durable import hint_for
from trainwarden.errors import UsageError

STRONG = ("sha256", "sha384", "sha512")
_HASH = re.compile(r"--hash[= ]")
_HEX = re.compile(r"[0-9a-f]+")
_MOST = 64 * 1024 * 1024
_HINT = "expected is pylock.toml, or a requirements file whose lines carry --hash=sha256:…"


class Locked(msgspec.Struct, frozen=True):
    """One package of a lock: its canonical name, version, and the hashes ("sha256:hex") of files it may come from."""

    name: str
    version: str
    hashes: frozenset[str]


def read_lock(path: Path) -> tuple[Locked, ...]:
    """The packages of a lock file.

    Raises:
        UsageError: it cannot be read or is no lock file.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read the lock {path}: {e.strerror}", hint=hint_for(e)) from e
    if len(data) > _MOST:
        raise UsageError(f"the lock {path} has {len(data)} bytes, at most {_MOST} are read", hint=_HINT)
    return parse_lock(data, path)


def parse_lock(data: bytes, path: Path) -> tuple[Locked, ...]:
    """The packages in the bytes of a lock file called `path`; its name tells the format, as PEP 751 has it.

    Raises:
        UsageError: they are no lock file.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise UsageError(f"the lock {path} is not UTF-8: {e}", hint=_HINT) from e
    locked = _pylock(text, path) if is_valid_pylock_path(path) else _requirements(text, path)
    if not locked:
        raise UsageError(f"the lock {path} names no package", hint=_HINT)
    return locked


def _pylock(text: str, path: Path) -> tuple[Locked, ...]:
    try:
        lock = Pylock.from_dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, PylockValidationError, RecursionError) as e:
        raise UsageError(f"the lock {path} cannot be read: {e}", hint=_HINT) from e
    found = []
    for package in lock.packages:
        files = [*(package.wheels or ()), *([package.archive] if package.archive else ())]
        hashes = frozenset(h for f in files for kind, value in f.hashes.items() if (h := _hash(kind, value)))
        found.append(Locked(str(package.name), str(package.version or ""), hashes))
    return tuple(found)


def _hash(kind: str, value: str) -> str:
    """A hash that is good enough, in one form; "" for any other."""
    kind, value = kind.lower(), value.lower()
    return f"{kind}:{value}" if kind in STRONG and _HEX.fullmatch(value) else ""


def _requirements(text: str, path: Path) -> tuple[Locked, ...]:
    found = []
    for number, line in _logical_lines(text):
        if line.startswith("-"):
            continue  # an option for all of the file: an index, another file
        spec, *options = re.split(r"\s+(?=--)", line)
        try:
            requirement = Requirement(spec)
        except InvalidRequirement as e:
            raise UsageError(f"{path}, line {number}: {str(e).splitlines()[0]}", hint=_HINT) from e
        pins = [s.version for s in requirement.specifier if s.operator in ("==", "===")]
        given = (o[len("--hash=") :].strip().partition(":")[::2] for o in options if _HASH.match(o))
        hashes = frozenset(h for kind, value in given if (h := _hash(kind, value)))
        found.append(Locked(canonicalize_name(requirement.name), pins[0] if pins else "", hashes))
    return tuple(found)


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with backslash continuations joined, comments and empty ones left out, and where each begins."""
    lines: list[tuple[int, str]] = []
    held, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        start = start if held else number
        line = re.sub(r"(^|\s)#.*$", "", line.rstrip("\r"))
        if line.endswith("\\"):
            held += line[:-1] + " "
            continue
        whole = (held + line).strip()
        held = ""
        if whole:
            lines.append((start, whole))
    if held.strip():
        lines.append((start, held.strip()))
    return lines
