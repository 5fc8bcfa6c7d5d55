"""Data that a run opened and its seal does not list: given to a replay as it was first read, and said to be.

Rules
-----
* The log has the digest of such a file, and nobody approved it: it is the run's own word, as a snapshot is.
* Given are files that were older than the seal. What a job wrote itself and read again, its replay writes again.
* A script that names such a file by an absolute path reads the original in a replay too. What a replay read outside
  of its workspace must have the bytes that the seal or the log knows; else nothing that it shows is a verdict.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from trainwarden.audit.recorded import Recorded
from trainwarden.model import DataOpened
from trainwarden.seal.cache import digest_files, item_of
from trainwarden.seal.check import cache_of, expected
from trainwarden.seal.room import Workspace

_COPY_UP_TO = 64 * 1024 * 1024


def place(recorded: Recorded, space: Workspace) -> None:
    """Put the files that the run opened, and that the workspace lacks, at their places in it.

    One that has changed and of which no copy was kept is left out: the replay then fails on it by name.
    """
    for file in recorded.opened.values():
        target = Path(space.map_path(file.path))
        if file.changed_ns > recorded.seal.seal.created_ns or not target.is_relative_to(space.scratch):
            continue
        if target.exists() or target.is_symlink():
            continue
        if source := _source(recorded, file):
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.size > _COPY_UP_TO:
                target.symlink_to(source)
            else:
                shutil.copyfile(source, target)


def strayed(recorded: Recorded, space: Workspace, read: Iterable[str]) -> Iterator[str]:
    """Why nothing that a replay shows is a verdict: files that it read elsewhere and that are not what they were."""
    places = (space.scratch, space.room.path)
    outside = {p for p in read if not any(Path(p).is_relative_to(place) for place in places)}
    known = {path: file.digest for path, file in recorded.opened.items()}
    for kind in ("code", "data") if outside else ():
        files = expected(recorded.store, recorded.seal, kind).files
        known |= {path: entry.digest for path, entry in files.items() if not entry.link}
    now = _digests(recorded, outside & known.keys())
    for path in sorted(outside & known.keys()):
        if now.get(path) != known[path]:
            yield (
                f"the script reads {path} by its absolute path, and that file is no longer what the run read: "
                f"{known[path][:12]} then, {now[path][:12] if path in now else 'gone'} now"
            )


def _source(recorded: Recorded, file: DataOpened) -> Path | None:
    if _digests(recorded, [file.path]).get(file.path) == file.digest:
        return Path(file.path)
    if recorded.store.has(file.digest):
        recorded.store.check(file.digest)
        return recorded.store.object_path(file.digest)
    return None


def _digests(recorded: Recorded, paths: Iterable[str]) -> dict[str, str]:
    items = [item for p in paths if (item := item_of(p))]
    linked = [i for i in items if i.link is not None]
    with cache_of(recorded.store) as cache:
        found = digest_files([i for i in items if i.link is None], cache, strict=False)
    return {p: d.digest for p, d in found.items()} | {
        i.path: blake3(Path(i.path).read_bytes()).hexdigest() for i in linked if Path(i.path).is_file()
    }
