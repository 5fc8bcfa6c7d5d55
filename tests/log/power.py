"""A disk whose power can be cut at any call: what a folder may hold afterwards, by what was synced and what was not.

`Disk.on` stands between a program and `os` below one folder. Bytes are durable once their file was synced, a name once
its folder was. After a cut, `after` lays out what the next start may find: `LOST`, nothing that was not synced; `KEPT`,
everything, as when only the process died; `MIXED`, of every name and file one or the other, or a torn beginning.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LOST, KEPT, MIXED = "lost", "kept", "mixed"
_CALLS = ("open", "write", "pwrite", "fsync", "replace", "link", "unlink", "mkdir", "ftruncate")


class Cut(BaseException):
    """The power went here."""


class Disk:
    """A folder with two memories: what it holds now, and what is durable of it."""

    def __init__(self, root: Path, cut_at: int = -1) -> None:
        self.root, self.cut_at, self.calls, self.dead = root, cut_at, 0, False
        self._names: dict[int, dict[str, int]] = {}  # folder → name → file or folder, as last synced
        self._bytes: dict[int, bytes] = {}
        self._held: dict[int, int] = {}  # an open descriptor of each, so that no number is used twice
        self._guard = threading.RLock()
        root.mkdir()
        self._hold(root)

    @contextmanager
    def on(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Let every call go through this disk; nothing is really synced."""
        with monkeypatch.context() as patch:
            for name in _CALLS:
                patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
            yield

    def after(self, kind: str, to: Path, draw: random.Random) -> Path:
        """The folder that the next start finds, laid out at `to`."""
        self._lay(os.stat(self.root).st_ino, to, kind, draw)
        return to

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._guard:
                changes = name != "open" or args[1] & os.O_CREAT
                if changes:
                    if self.dead or self.calls == self.cut_at:
                        self.dead = True
                        raise Cut
                    self.calls += 1
                if name == "fsync":
                    return self._sync(args[0])
                result = real(*args, **kwargs)
                if changes and name in ("open", "mkdir"):
                    self._hold(args[0])
                return result

        return call

    def _hold(self, path: Path) -> None:
        number = os.stat(path).st_ino
        if number not in self._held:
            self._held[number] = os.open(path, os.O_RDONLY)

    def _sync(self, fd: int) -> None:
        number = os.fstat(fd).st_ino
        self._hold(Path(f"/proc/self/fd/{fd}"))  # it may have been made by other means than `os`
        if os.path.isdir(f"/proc/self/fd/{self._held[number]}"):
            self._names[number] = self._listed(number)
        else:
            self._bytes[number] = self._content(number)

    def _listed(self, number: int) -> dict[str, int]:
        fd = self._held[number]
        return {name: os.stat(name, dir_fd=fd).st_ino for name in os.listdir(fd)}

    def _content(self, number: int) -> bytes:
        return os.pread(self._held[number], 1 << 30, 0)

    def _lay(self, number: int, to: Path, kind: str, draw: random.Random) -> None:
        if not os.path.isdir(f"/proc/self/fd/{self._held[number]}"):
            to.write_bytes(self._found(number, kind, draw))
            return
        to.mkdir()
        synced, now = self._names.get(number, {}), self._listed(number)
        for name in now:
            self._hold(Path(f"/proc/self/fd/{self._held[number]}") / name)
        for name in sorted(synced.keys() | now.keys()):
            state = draw.choice((LOST, KEPT)) if kind == MIXED else kind
            inside = (synced if state == LOST else now).get(name)
            if inside is not None:
                self._lay(inside, to / name, kind, draw)

    def _found(self, number: int, kind: str, draw: random.Random) -> bytes:
        synced, now = self._bytes.get(number, b""), self._content(number)
        if kind == MIXED:
            kept = len(synced) if now.startswith(synced) else 0  # what was appended may be torn, what was there may not
            torn = now[: draw.randint(kept, len(now))]
            return draw.choice((synced, now, torn))
        return synced if kind == LOST else now
