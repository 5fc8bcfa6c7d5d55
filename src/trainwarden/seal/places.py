"""Rooms and workspaces as places: where a path of the original run is found in a replay.

Rules
-----
* Pure mapping, but for one look whether a system path was restored as data.
* `map_path` never answers with a place that the original run wrote to: what is neither sealed environment nor
  system maps below the scratch folder.
* Of the environment variables, lists of folders and values that name something sealed are mapped, and values of
  variables whose name says output; others (`HOME`, caches) stay, since they name inputs more often than results.
  What is written there all the same goes to `map_path`'s place (`record.elsewhere`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from trainwarden.model import Seal

_SYSTEM = ("/dev", "/proc", "/sys", "/bin", "/sbin", "/lib", "/lib64", "/usr", "/etc")
_PATH_LISTS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
_IN_COPY = re.compile(r"run-[0-9a-f]{16}-[0-9a-f]{8}/root(/.*)")
_DROPPED = re.compile(r"PYENV_.*|__PYVENV_LAUNCHER__")
_OUTPUT_VARIABLE = re.compile(
    r"(^|_)(OUT|OUTPUT|SAVE|LOG|LOGS|RESULTS?|RUNS?|CKPT|CHECKPOINTS?)(_|$)|^WANDB_DIR$", re.IGNORECASE
)


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A clean environment with the sealed code, shared by replays; nothing is written into it."""

    seal: Seal
    store: Path
    path: Path  # sealed absolute paths lie below `path / "root"`
    python: Path
    code: Path  # the first code root
    scratch: Path  # where workspaces are made
    env: dict[str, str]  # what every process in the room needs set; `environ` gives the whole
    inside: tuple[str, ...]  # real folders and files of the sealed environment
    code_roots: tuple[str, ...]  # real folders of the sealed code, then files of it that are sealed by themselves
    replaced: tuple[str, ...] = ()  # original paths that a variant swaps

    def map_path(self, path: str) -> str:
        """The place of a sealed absolute path in the room; what is unknown lies below `scratch/abs`."""
        path = sealed_place(self.store, path)
        if below(path, self.inside) or below(path, self.code_roots):
            return f"{self.path}/root{path}"
        return path if _is_system(path) else f"{self.scratch}/abs{path}"

    def environ(self, env: Mapping[str, str]) -> dict[str, str]:
        """The original environment variables with the places in them mapped, and the room's own."""
        return _environ(self, self.map_path, env)


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    """One replay's own writable copy of the code, its data and its place for results."""

    room: Room
    path: Path
    code: Path
    cwd: Path
    scratch: Path

    def map_path(self, path: str) -> str:
        """The place of an original absolute path in this replay: the environment in the room, all else here."""
        path = sealed_place(self.room.store, path)
        if below(path, self.room.inside):
            return f"{self.room.path}/root{path}"
        here = f"{self.scratch}/abs{path}"
        return path if _is_system(path) and not os.path.lexists(here) else here

    def map_argument(self, word: str) -> str:
        """A word of the command with the absolute path in it mapped (`/a/b`, `--x=/a/b`); others unchanged."""
        if word.startswith("/"):
            return self.map_path(word)
        name, equals, value = word.partition("=")
        return f"{name}={self.map_path(value)}" if equals and value.startswith("/") else word

    def environ(self, env: Mapping[str, str]) -> dict[str, str]:
        """As `Room.environ`, with code and results in this workspace."""
        return _environ(self.room, self.map_path, env) | {"PWD": str(self.cwd)}

    def remove(self) -> None:
        """Delete the workspace."""
        shutil.rmtree(self.path, ignore_errors=True)


def below(path: str, folders: tuple[str, ...]) -> bool:
    """Is `path` one of the folders or below one?"""
    return any(path == f or path.startswith(f + "/") for f in folders)


def sealed_place(store: Path, path: str) -> str:
    """A path, normalised; one in the clean room of a run that was a copy is the sealed path that it stands for."""
    path = os.path.normpath(path)
    found = _IN_COPY.match(path.removeprefix(f"{store}/rooms/")) if path.startswith(f"{store}/rooms/") else None
    return found[1] if found else path


def _is_system(path: str) -> bool:
    return path == "/" or below(path, _SYSTEM)


def _environ(room: Room, map_path: Callable[[str], str], env: Mapping[str, str]) -> dict[str, str]:
    """Lists of folders are mapped where they name the sealed; a variable is where it is one, or names an output."""
    known = (*room.inside, *room.code_roots)

    def mapped(path: str) -> str:
        return map_path(path) if below(sealed_place(room.store, path), known) else path

    return mirrored_environ(mapped, room.env, env, map_path)


def mirrored_environ(
    mapped: Callable[[str], str],
    own: Mapping[str, str],
    env: Mapping[str, str],
    output: Callable[[str], str] = lambda path: path,
) -> dict[str, str]:
    """`env` with `mapped` lists of folders and values, `output` for variables that name results, and the room's own."""
    result: dict[str, str] = {}
    for name, value in env.items():
        if _DROPPED.fullmatch(name):
            continue
        if name in _PATH_LISTS:
            value = ":".join(mapped(p) for p in value.split(":"))
        elif value.startswith("/"):
            place = mapped(value)
            value = output(value) if place == value and _OUTPUT_VARIABLE.search(name) else place
        result[name] = value
    for name, value in own.items():
        result[name] = f"{value}:{result[name]}" if name in _PATH_LISTS and result.get(name) else value
    return result
