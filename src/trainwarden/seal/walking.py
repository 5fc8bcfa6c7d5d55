"""What lies below a folder, and what of it could run.

Rules
-----
* Links are not followed; version control folders, other virtual environments and what the caller seals on its own are
  not entered.
* A folder that is watched is told to the kernel before it is listed (`walked.py` says what follows from that).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import msgspec

from trainwarden.seal.cache import Item, item_of, make_item, unreadable
from trainwarden.seal.inotify import Folders
from trainwarden.seal.latent import in_library_folder, not_searched

SITE_NAMES = {"site-packages", "dist-packages"}
_SKIPPED = {".git", ".hg", ".svn", ".trainwarden", "node_modules"}
_IMPORTABLE = (".py", ".pyc", ".so", ".pyd")
_LOADABLE = (*_IMPORTABLE, ".pyo", ".pth", ".zip", ".egg", ".egg-link")


class Boundaries(msgspec.Struct, frozen=True):
    """What a walk is bound to: folders that it does not enter (the store, and those that are sealed on their own), and
    who is told of each folder before it is listed.
    """

    skip: frozenset[str]
    watch: Folders | None = None

    def with_(self, folders: Iterable[str]) -> Boundaries:
        """These and `folders`."""
        return msgspec.structs.replace(self, skip=self.skip | frozenset(folders))

    def watched_by(self, watch: Folders | None) -> Boundaries:
        """The same, and `watch` is told."""
        return msgspec.structs.replace(self, watch=watch)


def importable(path: str) -> bool:
    """Could an `import` load this file, from its name alone?"""
    return path.endswith(_IMPORTABLE) or ".so." in os.path.basename(path)


def loadable(item: Item) -> bool:
    """Could a new file of that name change what Python runs: import, startup hook, entry point, program?"""
    path = item.path
    if path.endswith(_LOADABLE) or ".so." in path or (item.mode & 0o111 and item.link is None):
        return True
    if item.link is not None and os.path.isdir(path):
        return True
    folder = os.path.dirname(path)
    return folder.endswith(("/__pycache__", ".dist-info", ".egg-info"))


def walk(root: str, boundaries: Boundaries, *, prune: Callable[[str], bool] = lambda _: False) -> Iterator[Item]:
    """Every regular file and symbolic link below `root`, links not followed.

    Each folder is opened from the one above it: what is listed lies below the folder that `root` led to at first,
    whatever is put in the place of a folder above it meanwhile.

    Raises:
        UsageError: a folder cannot be listed.
    """
    held: list[tuple[int, str, list[str]]] = []  # open folders from the root down, and names in them to be entered

    def enter(path: str, name: str) -> list[Item]:
        above, no_link = (held[-1][0], os.O_NOFOLLOW) if held else (None, 0)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link, dir_fd=above)
        except FileNotFoundError:
            return []
        except NotADirectoryError:  # a root that is, or a folder that has become, a file
            item = item_of(path)
            return [item] if item else []
        except OSError as e:
            raise unreadable(path, e) from e
        held.append((fd, path, []))
        items, folders = _listed(fd, path, len(held) == 1, boundaries)
        held[-1][2].extend(n for n in folders if not prune(f"{path.rstrip('/')}/{n}"))
        return items

    try:
        yield from enter(root, root)
        while held:
            fd, path, names = held[-1]
            if names:
                name = names.pop()
                yield from enter(f"{path.rstrip('/')}/{name}", name)
            else:
                held.pop()
                os.close(fd)
    finally:
        for fd, _, _ in held:
            os.close(fd)


def _listed(fd: int, path: str, is_root: bool, boundaries: Boundaries) -> tuple[list[Item], list[str]]:
    """The files of an open folder, and the names of the folders in it that a walk enters."""
    if boundaries.watch is not None:
        boundaries.watch.enter(fd, path, is_root)
    try:
        with os.scandir(fd) as found:
            listed = list(found)
    except OSError as e:
        raise unreadable(path, e) from e
    if not is_root and any(entry.name == "pyvenv.cfg" for entry in listed):
        return [], []
    items: list[Item] = []
    folders: list[str] = []
    start = f"{path.rstrip('/')}/"
    for entry in listed:
        name = entry.name
        try:
            if entry.is_file(follow_symlinks=False):
                items.append(make_item(start + name, entry.stat(follow_symlinks=False), None))
            elif entry.is_symlink():
                link = os.readlink(name, dir_fd=fd)
                items.append(make_item(start + name, entry.stat(follow_symlinks=False), link))
            elif entry.is_dir(follow_symlinks=False):
                outer_site = is_root and name in SITE_NAMES
                if not (outer_site or name in _SKIPPED or start + name in boundaries.skip):
                    folders.append(name)
        except FileNotFoundError:
            continue
    return items, folders


def walk_libraries(root: str, boundaries: Boundaries) -> Iterator[Item]:
    """The files of an `LD_LIBRARY_PATH` folder that the dynamic loader looks at.

    Raises:
        UsageError: the folder cannot be listed.
    """
    found = walk(root, boundaries, prune=lambda folder: not_searched(root, folder))
    return (item for item in found if in_library_folder(root, item) and loadable(item))


def under(path: str, folders: Iterable[str]) -> bool:
    """Is `path` one of the folders or below one?"""
    return any(path == f or path.startswith(f.rstrip("/") + "/") for f in folders)
