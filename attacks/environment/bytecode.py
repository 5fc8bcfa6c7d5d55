"""Traps in Python's sources and their caches."""

from __future__ import annotations

import os
import py_compile
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.environment.trap import EVIL, HOOK

if TYPE_CHECKING:
    from sealed_site import Site


def edit(site: Site) -> list[Path]:
    site.package.write_text(EVIL)
    return [site.package]


def edit_keeping_time(site: Site) -> list[Path]:
    before = site.package.stat()
    site.package.write_text(EVIL)
    os.utime(site.package, ns=(before.st_atime_ns, before.st_mtime_ns))
    return [site.package]


def edit_with_record(site: Site) -> list[Path]:
    record = site.packages / "sums-1.0.dist-info" / "RECORD"
    edit(site)
    record.write_text(f"sums/__init__.py,,{len(EVIL)}\n")
    return [site.package]


def with_record(site: Site) -> None:
    info = site.packages / "sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    (info / "RECORD").write_text("sums/__init__.py,,\n")


def forge_cache(site: Site) -> list[Path]:
    return [_forged(site, site.cache, py_compile.PycInvalidationMode.TIMESTAMP)]


def forge_unchecked(site: Site) -> list[Path]:
    return [_forged(site, site.cache, py_compile.PycInvalidationMode.UNCHECKED_HASH)]


def _forged(site: Site, cache: Path, mode: py_compile.PycInvalidationMode) -> Path:
    """A cache of other code that claims to be made from the sealed source: its time and size are in the header."""
    fake = site.folder / "fake.py"
    fake.write_text(EVIL)
    status = site.package.stat()
    os.utime(fake, ns=(status.st_atime_ns, status.st_mtime_ns))
    cache.parent.mkdir(parents=True, exist_ok=True)
    py_compile.compile(str(fake), cfile=str(cache), dfile=str(site.package), invalidation_mode=mode)
    return cache


def with_prefix(site: Site) -> None:
    site.env["PYTHONPYCACHEPREFIX"] = str(site.folder / "caches")


def forge_in_prefix(site: Site) -> list[Path]:
    relative = str(site.package.parent).lstrip("/")
    return [
        _forged(site, site.folder / "caches" / relative / site.cache.name, py_compile.PycInvalidationMode.TIMESTAMP)
    ]


def sourceless(site: Site) -> list[Path]:
    module = site.packages / "plugin.pyc"
    source = site.folder / "plugin.py"
    source.write_text(HOOK)
    py_compile.compile(str(source), cfile=str(module))
    return [module]


def edit_stdlib(site: Site) -> list[Path]:
    path = site.stdlib / "json" / "__init__.py"
    path.write_text(path.read_text() + "\n" + HOOK)
    return [path]
