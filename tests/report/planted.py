"""One planted run a test session, copied for every test that may damage it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import story

from trainwarden.casefile import CaseFile, load_case
from trainwarden.keys import SigningKey
from trainwarden.store import RunDir, Store

KEY = SigningKey(bytes(range(1, 33)))
OTHER = SigningKey(bytes(range(2, 34)))


class Planted(NamedTuple):
    """A store with one run, and where its checkpoints lie."""

    store: Store
    run: RunDir
    out: Path

    def case(self, key: str = KEY.public) -> CaseFile:
        return load_case(self.store, self.run.id, key)


def plant(folder: Path, plot: story.Plot = story.PLOT) -> Planted:
    """A new store with the run of `plot`."""
    store = Store.open(folder / "store", create=True)
    run = story.plant(store, KEY, folder / "out", plot)
    return Planted(store, run, folder / "out")


def copied(source: Planted, folder: Path) -> Planted:
    """The same run in a store of its own. Checkpoint paths in the log still name the first one's files."""
    shutil.copytree(source.store.path, folder / "store")
    store = Store.open(folder / "store")
    return Planted(store, store.run(source.run.id), source.out)
