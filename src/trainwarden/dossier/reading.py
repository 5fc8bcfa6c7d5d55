"""Reads a dossier from disk: a zip file, or the folder that it was written as. Nothing is judged here."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from trainwarden.dossier.container import MAX_BYTES
from trainwarden.durable import hint_for
from trainwarden.errors import UsageError


def read_file(path: Path) -> bytes:
    """The bytes of a dossier's zip file.

    Raises:
        UsageError: it cannot be read, or is larger than a dossier can be.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UsageError(f"{path} has {size:,} bytes, a dossier has {MAX_BYTES:,} at most")
        return path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}", hint=hint_for(e)) from e


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it; what is no plain file counts as an empty one.

    Raises:
        UsageError: something cannot be read, or there is more than a dossier can have.
    """
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    try:
        for path in sorted(folder.rglob("*")):
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                continue
            plain = stat.S_ISREG(status.st_mode)
            left -= status.st_size
            if left < 0:
                raise UsageError(f"{folder} has more than {MAX_BYTES:,} bytes")
            found[str(path.relative_to(folder))] = path.read_bytes() if plain else b""
    except OSError as e:
        raise UsageError(f"cannot read {folder}: {e.strerror}", hint=hint_for(e)) from e
    return found
