"""The installed environment as it lies on disk now, for a comparison with its baseline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainwarden.errors import UsageError
from trainwarden.model import Seal
from trainwarden.seal.baseline import Environment, NotChecked, Origin, compare_baseline
from trainwarden.seal.cache import DigestCache, Item, Progress, digest_files
from trainwarden.seal.interpreter import Interpreter
from trainwarden.seal.locks import Locked, read_lock
from trainwarden.seal.manifest import path_real
from trainwarden.seal.scan import SINGLES
from trainwarden.seal.walking import SITE_NAMES, Boundaries, walk
from trainwarden.seal.wheels import Wheel, find_wheels, read_wheel

_LARGEST = 1 << 31


def of_seal(seal: Seal) -> tuple[tuple[str, ...], str]:
    """Site folders and interpreter of the environment that a seal names."""
    roots = (path_real(r) for r in seal.environment.roots if r != SINGLES)
    return tuple(r for r in roots if os.path.basename(r) in SITE_NAMES), seal.interpreter


def of_interpreter(interpreter: Interpreter) -> tuple[tuple[str, ...], str]:
    """The same of an interpreter that was asked."""
    return interpreter.sites, interpreter.executable


def look_at(
    sites: Sequence[str], python: str, cache: DigestCache | None = None, progress: Progress | None = None
) -> Environment:
    """Hash site-packages and the programs beside the interpreter.

    Raises:
        UsageError: a folder cannot be listed, or there is no site-packages folder.
    """
    folders = tuple(s for s in sites if os.path.isdir(s))
    if not folders:
        raise UsageError(f"{python} has no site-packages folder", hint="name another Python with --python")
    programs = os.path.dirname(python)
    bounds = Boundaries(frozenset(folders))
    items: dict[str, Item] = {i.path: i for site in folders for i in walk(site, bounds)}
    items |= {i.path: i for i in walk(programs, bounds) if _script(i)}
    digests = digest_files(list(items.values()), cache, strict=False, progress=progress, label="the environment")
    files = {path: digests[path].digest if path in digests else "" for path in items}
    return Environment(folders, programs, os.path.dirname(programs), files, _read)


def baseline_of(
    env: Environment, lock_file: Path, wheels_folder: Path | None, progress: Progress | None = None
) -> tuple[dict[str, Origin], tuple[Locked, ...], list[Wheel]]:
    """Where every file of the environment comes from; the lock, and the wheels that it names.

    Raises:
        UsageError: the lock or a wheel cannot be read.
    """
    lock = read_lock(lock_file)
    found = find_wheels(wheels_folder, lock, progress) if wheels_folder else []
    wheels: dict[str, Wheel] = {}
    for path, locked in found:
        if progress:
            progress(len(wheels), len(found), f"wheel of {locked.name}")
        wheels.setdefault(locked.name, read_wheel(path, locked))
    return compare_baseline(env, lock, wheels.values()), lock, list(wheels.values())


def not_checked(origins: Iterable[Origin]) -> dict[str, int]:
    """Why files were not checked, and how many for each reason; an installer's own notes left out."""
    reasons: dict[str, int] = {}
    for origin in origins:
        if isinstance(origin, NotChecked) and not origin.reason.startswith("written by the installer"):
            reasons[origin.reason] = reasons.get(origin.reason, 0) + 1
    return reasons


def _script(item: Item) -> bool:
    """A program of a package: a text file that can be run, not the interpreter and what a venv brings."""
    if item.link is not None or not item.mode & 0o111:
        return False
    with open(item.path, "rb") as f:
        return f.read(2) == b"#!"


def _read(path: str) -> bytes:
    if os.path.islink(path):
        return os.fsencode(os.readlink(path))
    try:
        with open(path, "rb") as f:
            return f.read(_LARGEST)
    except OSError:
        return b""
