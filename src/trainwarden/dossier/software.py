"""Which code makes the pages: the version of the package, and a digest over the sources and templates that do."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blake3 import blake3

_PACKAGE = Path(__file__).parents[1]
_RENDER = ("dossier", "report", "respond/account")
_KINDS = (".py", ".html", ".css")


@cache
def software() -> str:
    """`VERSION+DIGEST`: two that are equal make the same pages from the same register."""
    try:
        number = version("trainwarden")
    except PackageNotFoundError:  # run from its sources
        number = "0"
    files = (f for part in _RENDER for f in (_PACKAGE / part).rglob("*") if f.suffix in _KINDS)
    hasher = blake3()
    for path in sorted(files):
        hasher.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + blake3(path.read_bytes()).digest())
    return f"{number}+{hasher.hexdigest(8)}"
