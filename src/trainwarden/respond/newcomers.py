"""What came with new files of the environment: to take a package's modules away is not to take the package away.

Rules
-----
* Python imports a folder without any `__init__` too (PEP 420), and finds a distribution by its folder's name: a folder
  in which only data or nothing is left still answers `import` and `find_spec` with yes, where the sealed one said no.
* So of a folder in which new files were found and nothing is sealed, whatever has come since the run began goes along.
* A root of the seal stays, and so does what had been there before the run and was not sealed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from trainwarden.seal.check import Expected
from trainwarden.seal.walking import Boundaries, under, walk


def new_folders(new: Iterable[str], sealed: Expected) -> list[str]:
    """The highest folders that hold one of these new files and nothing sealed, below a root of the seal."""
    kept = set(_above(sealed.files))
    found: dict[str, None] = {}
    for path in new:
        top, folder = "", os.path.dirname(path)
        while folder not in kept and folder not in sealed.roots and under(folder, sealed.roots):
            top, folder = folder, os.path.dirname(folder)
        if top:
            found[top] = None
    return list(found)


def came_along(folders: Iterable[str], since_ns: int, bounds: Boundaries) -> Iterator[str]:
    """Every file in these folders that has come since, by its change time.

    Raises:
        UsageError: a folder cannot be listed.
    """
    for folder in folders:
        for item in walk(folder, bounds):
            if os.lstat(item.path).st_ctime_ns > since_ns:
                yield item.path


def all_below(folders: Iterable[str]) -> Iterator[str]:
    """These folders, and the folders in them."""
    for folder in folders:
        yield from (parent for parent, _, _ in os.walk(folder))


def _above(paths: Iterable[str]) -> Iterator[str]:
    """Every folder that one of the paths lies below."""
    seen: set[str] = set()
    for path in paths:
        folder = os.path.dirname(path)
        while folder not in seen:
            seen.add(folder)
            yield folder
            folder = os.path.dirname(folder)
