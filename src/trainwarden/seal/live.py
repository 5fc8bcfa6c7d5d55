"""Clean rooms for the run itself: the sealed environment from the store, where the guarded command cannot be reached.

Rules
-----
* Rebuilt is the environment and nothing else: code, data and results stay where they are, live and writable.
* `NAMESPACE`: the room holds the files as they were sealed and is bound over their own absolute paths in a mount
  namespace of the command (`supervise/enter.py`), read-only. `COPY`, where the kernel allows no namespace: the room
  mirrors the paths as a replay's does, and interpreter, arguments and variables are led into it.
* A room is never rebuilt under a command that runs in it: one that differs is left alone, and a new one is made.
* A folder of which only the importable files were sealed (`PYTHONPATH`, editable installs) is covered if nothing
  else lies in it; else the room would hide what it lacks, so it is `left`: seen as it is, and guarded as without a
  room. So is one that holds code, data, results or the store. A *link* sealed by itself cannot be covered.

Trust: as `room`. A mount point lies in folders of the original. Who may rename those can lead the sealed name past
the mount; `holes` sees that, it does not prevent it. A copy is read-only by its mode bits, which root and the
same user can change; it is compared with the seal again before each start of a process. What names the original
place by itself (a path compiled into a library, written in a script) leaves a copy, and does not leave a namespace.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.errors import UsageError
from trainwarden.model import FileEntry, Seal, SignedSeal
from trainwarden.seal.check import Expected, boundaries_of, cache_of, expected, unsigned
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.interpreter import ask_interpreter
from trainwarden.seal.manifest import path_real
from trainwarden.seal.places import below, mirrored_environ
from trainwarden.seal.rebuild import Planned, blame_objects, differing, make_files, plan_files
from trainwarden.seal.room import disk_errors, locked, room_variables
from trainwarden.seal.scan import SINGLES, environment_roots
from trainwarden.seal.walking import walk
from trainwarden.store import Store

_CODE_HINT = "keep the job's own files outside of the installed environment, or run without --clean-room"


class Kind(StrEnum):
    NAMESPACE = "namespace"
    COPY = "copy"


class LiveRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A room that a command runs in. `covered` are sealed folders and files as the seal names them."""

    kind: Kind
    path: Path  # sealed absolute paths lie below `path / "root"`
    covered: tuple[str, ...]
    left: tuple[str, ...]
    binds: tuple[tuple[str, str], ...]  # (place in the room, real place that it is shown at); empty for a copy
    interpreter: str
    variables: Mapping[str, str]

    def covers(self, path: str) -> bool:
        """Does the command see the room at this sealed path?"""
        return below(os.path.normpath(path), self.covered)

    def place(self, path: str) -> str:
        """Where the command of a copy finds a path: covered ones in the room, others where they are."""
        return f"{self.path}/root{os.path.normpath(path)}" if self.covers(path) else path

    def launch(self, command: LaunchCommand) -> list[str]:
        """The command's words, the executable found and named in full, in a copy led into the room."""
        rest = command.argv[1:]
        if self.kind is Kind.NAMESPACE:
            return [command.executable, *rest]
        python = self.place(self.interpreter)
        if command.launcher == "python" and not command.executable.endswith(".py"):
            return [python, *rest]
        if os.path.realpath(command.executable) == os.path.realpath(self.interpreter):
            return [python, *rest]
        return [python, self.place(command.executable), *rest]

    def environ(self, env: Mapping[str, str]) -> dict[str, str]:
        """The command's environment variables; in a copy, places of the sealed environment are led into the room."""
        return dict(env) if self.kind is Kind.NAMESPACE else mirrored_environ(self.place, self.variables, env)


def build_live_room(store: Store, seal: Seal | SignedSeal, command: LaunchCommand, kind: Kind) -> LiveRoom:
    """The clean room for a run, made, or checked and used again.

    Raises:
        StoreError, StoreTampered: an object is missing or differs from the seal, or the disk is full.
        SealBroken: the manifest is not what the seal names.
        UsageError: code, data or results lie inside an installed folder that the room would hide.
    """
    plain = unsigned(seal)
    sealed = expected(store, plain, "environment")
    covered, left = _divided(store, plain, sealed, command, kind)
    files = {p: e for p, e in sealed.files.items() if below(p, covered)}
    rooms = store.path.absolute() / "rooms"
    named = "\0".join((kind, plain.environment.digest, plain.interpreter, *covered))
    name = f"run-{blake3(named.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    with disk_errors(f"build a clean room in {rooms}"), locked(rooms / f"{name}.lock"):
        path = _intact(store, rooms, name, files, covered, kind) or _made(store, rooms, name, files, covered, kind)
    return LiveRoom(
        kind=kind,
        path=path,
        covered=covered,
        left=left,
        binds=tuple(_binds(path, covered, files)) if kind is Kind.NAMESPACE else (),
        interpreter=plain.interpreter,
        variables=room_variables(path, plain, files),
    )


def altered(store: Store, seal: Seal | SignedSeal, room: LiveRoom) -> list[str]:
    """Sealed paths whose file in the room is not the sealed one any more, through the digest cache.

    Raises:
        StoreError, StoreTampered, SealBroken: the room cannot be compared.
    """
    sealed = expected(store, seal, "environment")
    files = {p: e for p, e in sealed.files.items() if room.covers(p)}
    return _differing(store, room.path, files, room.covered, room.kind)


def holes(room: LiveRoom, pid: int) -> list[str]:
    """Covered places where the process `pid` would no longer see the room; empty for a copy.

    Raises:
        OSError: the process is gone, or cannot be looked at.
    """
    os.stat(f"/proc/{pid}/root/.")
    found: list[str] = []
    for source, target in room.binds:
        wanted = os.stat(source)
        try:
            seen = os.stat(f"/proc/{pid}/root{target}", follow_symlinks=False)
        except OSError:
            found.append(target)
            continue
        if (seen.st_dev, seen.st_ino) != (wanted.st_dev, wanted.st_ino):
            found.append(target)
    real = {target for _, target in room.binds}
    found += [p for p in room.covered if os.path.lexists(p) and not below(os.path.realpath(p), tuple(real))]
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------- what a room covers


def _divided(
    store: Store, seal: Seal, sealed: Expected, command: LaunchCommand, kind: Kind
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sealed folders and single files that a room can stand for, and the folders that it cannot."""
    installed = set(environment_roots(ask_interpreter(command.interpreter, command.cwd, command.env)))
    live = _live_places(store, seal, command)
    bounds = boundaries_of(store, seal)
    covered: list[str] = []
    left: list[str] = []
    for root in sealed.roots:
        if not os.path.isdir(root):
            continue  # an empty place (`latent.py`): there is nothing to stand for, and the guard goes on looking at it
        inside = next((p for p in live if below(p, (root,))), "")
        if inside and root in installed:
            raise UsageError(f"a clean room of {root} would hide {inside}, which belongs to the job", hint=_CODE_HINT)
        whole = root in installed or all(item.path in sealed.files for item in walk(root, bounds))
        (covered if whole and not inside else left).append(root)
    folders = tuple(r for r in covered if not below(os.path.dirname(r), tuple(covered)))
    alone = ((p, e) for p, e in sealed.files.items() if not below(p, sealed.roots))
    singles = [p for p, e in alone if kind is Kind.COPY or not e.link]
    return (*folders, *singles), tuple(left)


def _live_places(store: Store, seal: Seal, command: LaunchCommand) -> list[str]:
    """What must stay as it is: the working folder, code, data, results, the store."""
    roots = [path_real(r) for ref in (seal.code, seal.data) for r in ref.roots if r != SINGLES]
    singles = [p for p in expected(store, seal, "data").files if not below(p, tuple(roots))]
    return [command.cwd, str(store.path.absolute()), *command.outputs, *roots, *singles]


def _binds(path: Path, covered: tuple[str, ...], files: Mapping[str, FileEntry]) -> Iterator[tuple[str, str]]:
    """Folders and regular files, outermost first, each once by its real place."""
    places = {os.path.realpath(p): p for p in covered if p not in files or not files[p].link}
    for real, named in sorted(places.items()):
        if not below(os.path.dirname(real), tuple(places)):
            yield f"{path}/root{named}", real


# ------------------------------------------------------------------------- making and checking


def _plan(
    store: Store, path: Path, files: Mapping[str, FileEntry], covered: tuple[str, ...], kind: Kind, times: bool
) -> dict[str, Planned]:
    """As a replay's room, but that programs keep their mode and nothing may be written."""
    mirror = f"{path}/root" if kind is Kind.COPY else ""
    plan = plan_files(store, files, mirror, lambda p: below(p, covered), times)
    return {p: _read_only(p, planned) for p, planned in plan.items()}


def _read_only(path: str, planned: Planned) -> Planned:
    program = bool(planned.mode & 0o111) and ".so" not in os.path.basename(path) and planned.link is None
    return msgspec.structs.replace(planned, mode=planned.mode & ~0o222, copy=planned.copy or program)


def _differing(
    store: Store, path: Path, files: Mapping[str, FileEntry], covered: tuple[str, ...], kind: Kind
) -> list[str]:
    with cache_of(store) as cache:
        return differing(_plan(store, path, files, covered, kind, False), f"{path}/root", cache)


def _intact(
    store: Store, rooms: Path, name: str, files: Mapping[str, FileEntry], covered: tuple[str, ...], kind: Kind
) -> Path | None:
    """A room made earlier that is still what was sealed."""
    for path in sorted(p for p in rooms.glob(f"{name}-*") if (p / "root").is_dir()):
        if not _differing(store, path, files, covered, kind):
            return path
    return None


def _made(
    store: Store, rooms: Path, name: str, files: Mapping[str, FileEntry], covered: tuple[str, ...], kind: Kind
) -> Path:
    path = rooms / f"{name}-{secrets.token_hex(4)}"
    plan = _plan(store, path, files, covered, kind, True)
    make_files(store, plan, f"{path}/root")
    for folder in covered:
        if folder not in files:
            os.makedirs(f"{path}/root{folder}", exist_ok=True)
    for folder, _, _ in os.walk(f"{path}/root"):
        os.chmod(folder, 0o555)
    with cache_of(store) as cache:
        wrong = differing(plan, f"{path}/root", cache)
    if wrong:
        blame_objects(store, plan, wrong)
    return path
