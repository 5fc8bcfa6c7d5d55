"""How a clean room's files come out of the store: what each one must be, making them, checking them.

Rules
-----
* A `Planned` file says everything about one path of the room, from the seal and the room's own place alone, so
  that making a room and checking one work from the same plan.
* Copied instead of linked are sources with a sealed cache (they get the time in its header), programs (their
  mode), and rewritten files. An object that has too many links already is copied too.
* Rewritten are the files that name places: `pyvenv.cfg`, `.pth`, editable finders, first lines of scripts.
  A rewritten source loses its cache. With the mirror "" nothing is rewritten: such a room is shown at the sealed
  places themselves.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.errors import StoreTampered
from trainwarden.model import FileEntry
from trainwarden.seal.cache import DigestCache, Item, Progress, digest_files, make_item
from trainwarden.seal.interpreter import finder_strings, is_finder
from trainwarden.seal.manifest import path_real
from trainwarden.seal.pyc import source_of
from trainwarden.store import Store

_CFG_PATHS = {"home", "executable", "base-prefix", "base-exec-prefix", "base-executable"}
_LONGEST_SHEBANG = 250  # the kernel reads 256 bytes (BINPRM_BUF_SIZE since Linux 5.1)
_AT_ONCE = 1 << 30
_SCRIPT_UP_TO = 1024 * 1024


class Planned(msgspec.Struct, frozen=True):
    """What one file of a room must be. One of `link`, `content` or the object `digest` gives its bytes."""

    digest: str
    mode: int
    link: str | None = None
    content: bytes | None = None
    mtime: int = -1  # seconds; −1: any
    copy: bool = False


def plan_files(
    store: Store,
    files: Mapping[str, FileEntry],
    mirror: str,
    is_inside: Callable[[str], bool],
    times: bool = True,
) -> dict[str, Planned]:
    """What every sealed path becomes below `mirror`; `is_inside` tells which named paths move with it.

    Without `times` no file's time is planned: enough to check a room, since a source with another time is
    compiled anew and runs the same.

    Raises:
        StoreError, StoreTampered: an object that must be read for it is missing or differs.
    """
    plan: dict[str, Planned] = {}
    caches: dict[str, str] = {}
    for path, entry in files.items():
        if entry.inert:
            continue
        plan[path] = _planned(store, path, entry, mirror, is_inside)
        if path.endswith(".pyc") and (source := source_of(path)):
            caches[path] = source[0]
    for path, source_path in caches.items():
        source_plan = plan.get(source_path)
        if source_plan is None or source_plan.link is not None:
            continue
        if source_plan.content is not None:
            del plan[path]
        elif times and (mtime := _header_time(store, files[path])) >= 0:
            plan[source_path] = msgspec.structs.replace(source_plan, mtime=mtime, copy=True)
    return plan


def _planned(store: Store, path: str, entry: FileEntry, mirror: str, is_inside: Callable[[str], bool]) -> Planned:
    if entry.link:
        target = path_real(entry.link)
        moved = mirror + target if target.startswith("/") and is_inside(os.path.normpath(target)) else target
        return Planned(_hash(os.fsencode(moved)), entry.mode, link=moved)
    content = _rewritten(store, path, entry, mirror, is_inside) if mirror else None
    if content is not None:
        return Planned(_hash(content), entry.mode, content=content)
    return Planned(entry.digest, entry.mode, copy=_is_program(path, entry))


def _is_program(path: str, entry: FileEntry) -> bool:
    """Executable, and not a library (those often carry the mode and are loaded without it)."""
    return bool(entry.mode & 0o111) and not path.endswith(".py") and ".so" not in os.path.basename(path)


def _hash(data: bytes) -> str:
    return blake3(data).hexdigest()


def _header_time(store: Store, entry: FileEntry) -> int:
    """The source time in a sealed cache's header; −1 for a hash-based one. The room's check covers its bytes."""
    with store.object_path(entry.digest).open("rb", buffering=0) as f:
        head = f.read(16)
    return int.from_bytes(head[8:12], "little") if len(head) == 16 and not head[4] & 1 else -1


# ------------------------------------------------------------------------- files that name places


def _rewritten(
    store: Store, path: str, entry: FileEntry, mirror: str, is_inside: Callable[[str], bool]
) -> bytes | None:
    """The file's bytes with the sealed places in it moved below `mirror`; None when it names none."""
    name = os.path.basename(path)
    if name == "pyvenv.cfg":
        return _moved_cfg(store.get(entry.digest), mirror)
    if name.endswith(".pth"):
        return _changed(store.get(entry.digest), lambda data: _moved_pth(data, mirror, is_inside))
    if is_finder(path):
        return _changed(store.get(entry.digest), lambda data: _moved_strings(data, mirror, is_inside))
    if _is_program(path, entry) and entry.size <= _SCRIPT_UP_TO:
        return _changed(store.get(entry.digest), lambda data: _moved_shebang(data, mirror, is_inside))
    return None


def _changed(data: bytes, rewrite: Callable[[bytes], bytes]) -> bytes | None:
    new = rewrite(data)
    return None if new == data else new


def _moved_cfg(data: bytes, mirror: str) -> bytes:
    lines = []
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip().lower() in _CFG_PATHS and value.strip().startswith("/"):
            line = f"{key.strip()} = {mirror}{value.strip()}"
        lines.append(line)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _moved_pth(data: bytes, mirror: str, is_inside: Callable[[str], bool]) -> bytes:
    lines = data.decode("utf-8", "surrogateescape").splitlines(keepends=True)
    moved = [
        mirror + line if line.startswith("/") and is_inside(os.path.normpath(line.strip())) else line for line in lines
    ]
    return "".join(moved).encode("utf-8", "surrogateescape")


def _moved_strings(data: bytes, mirror: str, is_inside: Callable[[str], bool]) -> bytes:
    for path in sorted(set(finder_strings(data)), key=len, reverse=True):
        if is_inside(path):
            for quote in (b"'", b'"'):
                data = data.replace(quote + path.encode() + quote, quote + (mirror + path).encode() + quote)
    return data


def _moved_shebang(data: bytes, mirror: str, is_inside: Callable[[str], bool]) -> bytes:
    if not data.startswith(b"#!"):
        return data
    lines = data.split(b"\n", 2)
    if len(lines) > 1 and lines[1].startswith(b"'''exec' /"):  # pip's form for long paths
        path = os.fsdecode(lines[1][len(b"'''exec' ") :].split(b" ")[0])
        if is_inside(path):
            lines[1] = lines[1].replace(os.fsencode(path), os.fsencode(mirror + path), 1)
        return b"\n".join(lines)
    path, _, options = os.fsdecode(lines[0][2:].strip()).partition(" ")
    if not is_inside(path):
        return data
    first = os.fsencode(f"#!{mirror}{path} {options}".rstrip())
    if len(first) > _LONGEST_SHEBANG:
        python = os.fsencode(f"'{mirror}{path}' {options}".rstrip())
        first = b"#!/bin/sh\n'''exec' " + python + b" \"$0\" \"$@\"\n' '''"
    return b"\n".join([first, *lines[1:]])


# ------------------------------------------------------------------------- making and checking


def make_files(store: Store, plan: Mapping[str, Planned], root: str) -> None:
    """Put every planned file below `root`, a new folder.

    Raises:
        StoreError: an object is missing.
        OSError: the folder cannot be written.
    """
    made: set[str] = set()
    for path, planned in plan.items():
        place = root + path
        folder = os.path.dirname(place)
        if folder not in made:
            os.makedirs(folder, exist_ok=True)
            made.add(folder)
        make_file(store, planned, place)


def make_file(store: Store, planned: Planned, place: str) -> None:
    """Put one planned file at a place where nothing is yet.

    Raises:
        StoreError: its object is missing.
        OSError: it cannot be written.
    """
    if planned.link is not None:
        os.symlink(planned.link, place)
        return
    if planned.content is not None:
        Path(place).write_bytes(planned.content)
        os.chmod(place, planned.mode)
        return
    source = f"{store.objects}/{planned.digest[:2]}/{planned.digest[2:]}"
    try:
        if planned.copy or not _linked(source, place):
            _copy(source, place, planned)
    except FileNotFoundError:
        store.object_path(planned.digest)  # says what is missing
        raise


def _copy(source: str, place: str, planned: Planned) -> None:
    """As shutil does, in fewer calls: a room has fifteen thousand of them."""
    read = os.open(source, os.O_RDONLY)
    try:
        write = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            while os.sendfile(write, read, None, _AT_ONCE):  # from where the last call stopped
                pass
            os.fchmod(write, planned.mode)
            if planned.mtime >= 0:
                os.utime(write, (planned.mtime, planned.mtime))
        finally:
            os.close(write)
    finally:
        os.close(read)


def _linked(source: str, place: str) -> bool:
    """A hard link, unless the file systems differ or forbid it, or the object has too many links."""
    try:
        os.link(source, place)
    except OSError as e:
        if e.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            return False
        raise
    return True


def differing(
    plan: Mapping[str, Planned], root: str, cache: DigestCache | None, progress: Progress | None = None
) -> list[str]:
    """Paths below `root` that are missing, extra, or not as planned.

    Raises:
        UsageError: a folder cannot be listed.
    """
    items = {item.path[len(root) :]: item for item in _everything(root)}
    wrong = list(items.keys() ^ plan.keys())
    digests = digest_files(
        [i for p, i in items.items() if p in plan], cache, strict=False, progress=progress, label="checking the room"
    )
    for path in items.keys() & plan.keys():
        item, planned = items[path], plan[path]
        digest = digests.get(item.path)
        late = planned.mtime >= 0 and item.mtime_ns // 1_000_000_000 != planned.mtime
        if digest is None or digest.digest != planned.digest or item.link != planned.link or late:
            wrong.append(path)
    return sorted(wrong)


def _everything(root: str) -> Iterable[Item]:
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    link = os.readlink(entry.path) if entry.is_symlink() else None
                    yield make_item(entry.path, entry.stat(follow_symlinks=False), link)


def blame_objects(store: Store, plan: Mapping[str, Planned], wrong: Iterable[str]) -> None:
    """Say which stored object is at fault for a room that is wrong right after it was made.

    Raises:
        StoreTampered: one of the objects, or the room was altered while it was made.
    """
    listed = list(wrong)
    for path in listed:
        if (planned := plan.get(path)) and planned.link is None and planned.content is None:
            store.check(planned.digest)
    raise StoreTampered(
        f"{len(listed)} files of a new clean room are not what was sealed, first {listed[0]!r}",
        hint="something writes into the store while it is used",
    )
