"""A slow round over all sealed files and their folders, for what no event tells.

Events name a folder's own entries. They do not tell of a write through another hard link (uv installs packages as
hard links into its cache), of a mapping written to, of a folder mounted over another, of a watched root that was
removed and made again, nor of anything while the kernel's queue is full, which an attacker can fill.

Rules
-----
* Each call of `due` asks the kernel about a part of the paths, so that a round takes `ROUND` calls, the first one
  `FIRST`. Told are paths whose device, inode, size or ctime is not what it was a round before, and on the first round
  those whose ctime is younger than the sweep itself. No program can set a ctime.
* Nothing is read: whoever is told looks for himself. Equal bytes after a change and its undoing are no change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeAlias

ROUND = 60
FIRST = 3
_SLACK_NS = 2_000_000_000  # clocks of file systems are coarser than ours

_State: TypeAlias = "tuple[int, int, int, int] | None"


class Sweep:
    """Goes round and round over paths; call `due` once a second."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = list(dict.fromkeys(paths))
        self._seen: dict[str, _State] = {}
        self._since = time.time_ns() - _SLACK_NS
        self._at = 0

    def due(self) -> Iterator[str]:
        """The paths of the next part that were touched."""
        calls = ROUND if len(self._seen) == len(self._paths) else FIRST
        part = list(islice(self._paths, self._at, self._at + len(self._paths) // calls + 1))
        self._at = self._at + len(part) if self._at + len(part) < len(self._paths) else 0
        return (path for path in part if self._touched(path))

    def _touched(self, path: str) -> bool:
        now = _state(path)
        first = now is None or now[3] > self._since
        touched = now != self._seen[path] if path in self._seen else first
        self._seen[path] = now
        return touched


def _state(path: str) -> _State:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns
