"""Clean rooms: the sealed environment and code rebuilt from the store, where a replay runs.

Rules
-----
* A room mirrors absolute paths: the sealed `/opt/venv/bin/python` lies at `<room>/root/opt/venv/bin/python`.
  So relative links and relative paths keep their meaning, and mapping a path is putting a prefix before it.
* Every file of a room is hashed against the seal before its first use, and checked again at every use through
  the digest cache; `deep` hashes again in any case. A room that differs is rebuilt; an object that differs is
  `StoreTampered`. A new room is asked once who it is: executable, prefixes, libpython and the whole of
  `sys.path` must lie inside it.
* Stale (`inert`) caches are left out: the original run ignored them too.
* `replace` gives a variant: a farm of links into the room but for the swapped files, whose caches are dropped.
* A workspace is one replay's own copy of the code and its place for results. What is neither environment nor
  system maps below it, so that a replay cannot write over what the original run wrote. Large data files are
  links to the original while that is unchanged: a script that writes to its own input would write there.

Trust: the store's objects by their digests, this machine's kernel and system libraries. Whoever can write to the
store and its cache as the same user can fool the quick check, not `deep`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.durable import hint_for
from trainwarden.errors import CannotDecide, StoreError
from trainwarden.model import FileEntry, Seal, SignedSeal
from trainwarden.seal.cache import Progress, digest_files, item_of
from trainwarden.seal.check import cache_of, expected, unsigned
from trainwarden.seal.command import named_paths
from trainwarden.seal.manifest import path_real
from trainwarden.seal.places import Room, Workspace, below
from trainwarden.seal.pyc import source_of
from trainwarden.seal.rebuild import Planned, blame_objects, differing, make_file, make_files, plan_files
from trainwarden.seal.scan import SINGLES
from trainwarden.store import Store

__all__ = ["Room", "Workspace", "build_room", "new_workspace", "remove_variant"]

_COPY_UP_TO = 64 * 1024 * 1024
_COPY_IN_ALL = 256 * 1024 * 1024
_WHO = (
    "import sys; maps = open('/proc/self/maps').read().splitlines();"
    "libs = {m.split(None, 5)[5] for m in maps if '/libpython' in m};"
    "print(sys.executable, sys.prefix, sys.base_prefix, *sys.path, *libs, sep='\\n')"
)


# ------------------------------------------------------------------------- building


def build_room(
    store: Store,
    seal: Seal | SignedSeal,
    target: Path | None = None,
    replace: Mapping[str, Path] | None = None,
    *,
    deep: bool = False,
    progress: Progress | None = None,
) -> Room:
    """The clean room of a seal, made or checked; workspaces go to `target`, else to the store's `rooms/work`.

    Raises:
        StoreError, StoreTampered: an object is missing or differs from the seal, or the disk is full.
        SealBroken: a manifest is not what the seal names.
        CannotDecide: the rebuilt interpreter loads something from outside the room.
    """
    plain = unsigned(seal)
    environment = expected(store, plain, "environment")
    code = expected(store, plain, "code")
    files = environment.files | code.files
    inside = _inside(plain, environment.roots, environment.files)
    name = blake3("\0".join((plain.environment.digest, plain.code.digest, plain.interpreter)).encode()).hexdigest()
    rooms = store.path.absolute() / "rooms"
    scratch = (target or rooms / "work").absolute()
    path = rooms / name[:16]
    room = Room(
        seal=plain,
        store=store.path.absolute(),
        path=path,
        python=Path(f"{path}/root{plain.interpreter}"),
        code=Path(f"{path}/root{code.roots[0]}"),
        scratch=scratch,
        env={},
        inside=inside,
        code_roots=(*code.roots, *code.singles),
    )
    room = _placed(room, path, files)
    with disk_errors(f"build a clean room in {rooms}"):
        scratch.mkdir(parents=True, exist_ok=True)
        with locked(rooms / f"{name[:16]}.lock"):
            _make_or_check(store, room, files, deep, progress)
        return _variant(store, room, files, replace) if replace else room


def _inside(seal: Seal, roots: tuple[str, ...], files: Mapping[str, FileEntry]) -> tuple[str, ...]:
    """The sealed environment's folders, single files, and the virtual environment as a whole."""
    venv = os.path.dirname(os.path.dirname(seal.interpreter))
    whole = (venv,) if f"{venv}/pyvenv.cfg" in files else ()
    held = {folder for p in files for folder in _parents(p)}
    roots = tuple(r for r in roots if r in held)  # the others were empty places when it was sealed
    singles = (p for p in files if not below(p, roots))
    return tuple(dict.fromkeys((*whole, *roots, *singles)))


def _placed(room: Room, path: Path, files: Mapping[str, FileEntry]) -> Room:
    """The same room at another place, with the variables that it needs there."""
    root = f"{path}/root"
    return msgspec.structs.replace(
        room,
        path=path,
        python=Path(root + room.seal.interpreter),
        code=Path(root + room.code_roots[0]),
        env=room_variables(path, room.seal, files),
    )


def room_variables(path: Path, seal: Seal, files: Mapping[str, FileEntry]) -> dict[str, str]:
    """What every process in a room at `path` needs set."""
    root = f"{path}/root"
    roots = tuple(path_real(r) for r in seal.environment.roots if r != SINGLES)
    found = (p for p in files if os.path.basename(p).startswith("libpython") and not below(p, roots))
    libraries = sorted({os.path.dirname(root + p) for p in found})
    env = {"PATH": os.path.dirname(root + seal.interpreter), "PYTHONDONTWRITEBYTECODE": "1"}
    if libraries:
        env["LD_LIBRARY_PATH"] = ":".join(libraries)  # comes before the RUNPATH that names the original
    return env


def _plan(store: Store, room: Room, files: Mapping[str, FileEntry], times: bool = False) -> dict[str, Planned]:
    known = (*room.inside, *room.code_roots)
    return plan_files(store, files, f"{room.path}/root", lambda path: below(path, known), times)


def _make_or_check(
    store: Store, room: Room, files: Mapping[str, FileEntry], deep: bool, progress: Progress | None
) -> None:
    root = f"{room.path}/root"
    with cache_of(store) as cache:
        plan = _plan(store, room, files)
        if os.path.isdir(root) and not differing(plan, root, None if deep else cache, progress):
            return
        plan = _plan(store, room, files, times=True)
        shutil.rmtree(room.path, ignore_errors=True)
        temp = room.path.with_name(f".{room.path.name}.{secrets.token_hex(4)}")
        try:
            make_files(store, plan, f"{temp}/root")
            os.rename(temp, room.path)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
        if wrong := differing(plan, root, cache, progress):
            shutil.rmtree(room.path, ignore_errors=True)
            blame_objects(store, plan, wrong)
    _ask_who(room)


def _ask_who(room: Room) -> None:
    """The room's Python must find itself, its libraries and everything importable inside the room.

    Raises:
        CannotDecide: it does not start, or names a place outside.
    """
    env = room.environ({"PATH": os.defpath})
    try:
        run = subprocess.run(
            [room.python, "-I", "-B", "-c", _WHO], cwd=room.path, env=env, capture_output=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise CannotDecide(f"the rebuilt Python {room.python} does not start: {e}") from e
    answer = os.fsdecode(run.stdout).splitlines()
    outside = [line for line in answer if line and not line.startswith(f"{room.path}/root/")]
    if run.returncode != 0 or not answer or outside:
        shutil.rmtree(room.path, ignore_errors=True)
        seen = f"it uses {outside[0]}" if outside else os.fsdecode(run.stderr).strip()[-300:]
        raise CannotDecide(
            f"the rebuilt Python {room.python} does not stay in its clean room: {seen}",
            hint="a replay there would not be a replay from sealed inputs",
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """An error of the file system as a `StoreError` that says what could not be done."""
    try:
        yield
    except OSError as e:
        raise StoreError(f"cannot {what}: {e.strerror or e}", hint=hint_for(e)) from e


# ------------------------------------------------------------------------- variants


def _variant(
    store: Store,
    room: Room,
    files: Mapping[str, FileEntry],
    replace: Mapping[str, Path],
) -> Room:
    """A room where single files are swapped or added. Files that name the room's place are made anew."""
    path = room.scratch / f"variant-{secrets.token_hex(6)}"
    swapped = {os.path.normpath(p): source for p, source in replace.items()}
    variant = msgspec.structs.replace(_placed(room, path, files), replaced=tuple(swapped))
    placed = {
        p: planned
        for p, planned in _plan(store, variant, files).items()
        if planned.content is not None
        or (planned.link or "").startswith("/")
        or (planned.copy and planned.mode & 0o111)
    }
    dropped = {
        p
        for p in files
        if p.endswith(".pyc") and (source := source_of(p)) and source[0] in swapped and p not in swapped
    }
    own = {*placed, *swapped, *dropped}
    folders = {parent for p in own for parent in _parents(p)}
    for folder in sorted(folders):
        os.makedirs(f"{path}/root{folder}", exist_ok=True)
        original = f"{room.path}/root{folder}"
        for name in os.listdir(original) if os.path.isdir(original) else ():
            child = f"{folder.rstrip('/')}/{name}"
            if child not in own and child not in folders:
                os.symlink(f"{room.path}/root{child}", f"{path}/root{child}")
    for p, planned in placed.items():
        if p not in swapped:
            make_file(store, planned, f"{path}/root{p}")
    for p, source_file in swapped.items():
        shutil.copyfile(source_file, f"{path}/root{p}")
        os.chmod(f"{path}/root{p}", files[p].mode | 0o200 if p in files else 0o644)
    return variant


def _parents(path: str) -> Iterator[str]:
    while path != "/":
        path = os.path.dirname(path)
        yield path


def remove_variant(room: Room) -> None:
    """Delete a variant; a shared room is left alone."""
    if room.replaced:
        shutil.rmtree(room.path, ignore_errors=True)


# ------------------------------------------------------------------------- workspaces


def new_workspace(room: Room) -> Workspace:
    """A fresh workspace: the sealed code copied, the data copied, linked or restored, empty output folders made.

    Raises:
        CannotDecide: a data file has changed or is gone, and the store kept no copy.
        StoreError, StoreTampered: a needed object is missing or differs, or the disk is full.
    """
    store = Store.open(room.store)
    with disk_errors(f"make a workspace in {room.scratch}"):
        room.scratch.mkdir(parents=True, exist_ok=True)
        path = room.scratch / f"replay-{secrets.token_hex(6)}"
        space = Workspace(
            room=room,
            path=path,
            code=Path(f"{path}/abs{room.code_roots[0]}"),
            cwd=Path(f"{path}/abs{room.seal.cwd}"),
            scratch=path,
        )
        try:
            space.code.mkdir(parents=True)
            space.cwd.mkdir(parents=True, exist_ok=True)
            _copy_code(store, space)
            _bring_data(store, space)
            _link_environment(space)
            for output in named_paths(room.seal.argv[1:], room.seal.cwd)[1]:
                if os.path.isdir(output) and not below(output, room.inside):
                    os.makedirs(f"{path}/abs{output}", exist_ok=True)
        except BaseException:
            space.remove()
            raise
    return space


def _copy_code(store: Store, space: Workspace) -> None:
    room = space.room
    added = (p for p in room.replaced if below(p, room.code_roots) and not below(p, room.inside))
    sealed = expected(store, room.seal, "code").files
    for path in dict.fromkeys((*sealed, *added)):
        source, place = f"{room.path}/root{path}", f"{space.path}/abs{path}"
        if not os.path.lexists(source):
            continue  # a stale cache, or one that a swap has dropped
        os.makedirs(os.path.dirname(place), exist_ok=True)
        target = os.readlink(source) if os.path.islink(source) else None
        if os.path.isdir(source):  # a folder of the code, wherever the room has put it: its files are copied by name
            os.symlink(_workspace_link(space, path_real(sealed[path].link)), place)
        elif target is None or target.startswith(f"{room.store}/rooms/"):
            shutil.copy2(source, place)
            os.chmod(place, os.stat(place).st_mode | 0o200)
        else:
            os.symlink(target, place)


def _workspace_link(space: Workspace, target: str) -> str:
    """Where a sealed link to a folder leads in a workspace: code is copied there, anything else stays where it is."""
    coded = target.startswith("/") and below(os.path.normpath(target), space.room.code_roots)
    return f"{space.path}/abs{target}" if coded else target


def _link_environment(space: Workspace) -> None:
    """A virtual environment inside the code folder is found there by relative paths too."""
    for path in sorted(space.room.inside):
        place = f"{space.path}/abs{path}"
        if below(path, space.room.code_roots) and not os.path.lexists(place):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.symlink(f"{space.room.path}/root{path}", place)


def _bring_data(store: Store, space: Workspace) -> None:
    expect = expected(store, space.room.seal, "data")
    items = [item for path in expect.files if (item := item_of(path))]
    with cache_of(store) as cache:
        now = digest_files(items, cache, strict=False)
    left = _COPY_IN_ALL
    for path, entry in expect.files.items():
        place = Path(f"{space.path}/abs{path}")
        if below(path, space.room.inside) or os.path.lexists(place):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        unchanged = path in now and now[path].digest == entry.digest
        if entry.link:
            target = path_real(entry.link)
            os.symlink(space.map_path(target) if target.startswith("/") else target, place)
        elif unchanged and (entry.size > _COPY_UP_TO or entry.size > left):
            place.symlink_to(path)
        elif unchanged or store.has(entry.digest):
            left -= entry.size
            _copy_data(store, path if unchanged else "", entry, place)
        else:
            raise CannotDecide(
                f"the data file {path} is no longer what was sealed ({entry.digest}) and no copy was kept",
                hint="restore it, or raise [seal] keep_data_mb for the next run",
            )


def _copy_data(store: Store, original: str, entry: FileEntry, place: Path) -> None:
    if not original:
        store.check(entry.digest)
    shutil.copyfile(original or store.object_path(entry.digest), place)
    place.chmod(entry.mode | 0o600)
