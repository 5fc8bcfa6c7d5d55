"""The rest of a checkpoint that is kept as a folder: what lies beside the state files that were seen being written."""

from __future__ import annotations

import os

COMPANION_BYTES = 64 << 20
COMPANION_FILES = 64
_LOGS = (".log", ".jsonl", ".csv", ".tsv")  # appended to at every step, and no state is read from them


def companions(folder: str, since: float) -> list[str]:
    """Small files written beside a state file at the same time, but for logs: the rest of a checkpoint in a folder."""
    found = []
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    for entry in entries:
        if entry.is_file(follow_symlinks=False) and not entry.name.startswith(".") and not entry.name.endswith(_LOGS):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # renamed or removed by another thread meanwhile
            if status.st_mtime >= since and status.st_size <= COMPANION_BYTES:
                found.append(entry.path)
    return found[:COMPANION_FILES]


def kind_of(path: str) -> str:
    """The format of a state file by its name."""
    if path.endswith(".safetensors"):
        return "safetensors"
    return "torch" if path.endswith((".pt", ".pth", ".bin", ".ckpt")) else "other"
