"""A seal that is made file by file when it is asked for, so that a test need not hash a whole torch environment."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from trainwarden.model import FileEntry
from trainwarden.store import Store


@pytest.fixture(scope="session")
def memory_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all tests that compile torch's sources: what they say is cached in it."""
    return Store.open(tmp_path_factory.mktemp("memory") / "store", create=True)


class SealedOnDemand(Mapping[str, FileEntry]):
    """A seal over the standard library and site-packages as they are, and over given files as they were."""

    def __init__(self, store: Store, given: Mapping[str, str]) -> None:
        self._store = store
        self._given = given
        site = os.path.dirname(os.path.dirname(_torch_file()))
        paths = sysconfig.get_paths()
        self._roots = tuple({*(p + "/" for p in (paths["stdlib"], paths["purelib"], paths["platlib"])), site + "/"})
        self._interpreter = (sys.executable, os.path.realpath(sys.executable))

    def __getitem__(self, path: str) -> FileEntry:
        if path in self._given:
            data = self._given[path].encode()
        elif self._is_installed(path):
            data = Path(path).read_bytes()
        else:
            raise KeyError(path)
        return FileEntry(path=path, digest=self._store.put_bytes(data, fsync=False), size=len(data))

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and (path in self._given or self._is_installed(path))

    def _is_installed(self, path: str) -> bool:
        lib = os.path.dirname(sysconfig.get_paths()["stdlib"]) + "/libpython"
        inside = path.startswith((*self._roots, lib)) or path in self._interpreter
        return inside and os.path.isfile(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def _torch_file() -> str:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return str(spec.origin)
