"""Every trap of `attacks/environment.py` works and is found; the same place in ordinary use is silent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sealed_site
from sealed_site import Site

from attacks.environment import PRELOAD_FILE, TRAPS, Trap, ordinary
from trainwarden.seal import latent

IDS = [trap.name for trap in TRAPS]


@pytest.fixture
def prepared(tmp_path: Path, stdlib_cut: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Trap], Site]:
    def prepare(trap: Trap) -> Site:
        if trap.needs and not shutil.which(trap.needs):
            pytest.skip(f"{trap.needs} is not installed")
        monkeypatch.setattr(latent, "LD_PRELOAD_FILE", str(tmp_path / PRELOAD_FILE))
        base = stdlib_cut
        if trap.own_base:
            base = Path(shutil.copytree(stdlib_cut, tmp_path / "base", symlinks=True))
        site = sealed_site.make_site(tmp_path, base)
        trap.prepare(site)
        site.seal_again()
        return site

    return prepare


@pytest.mark.parametrize("trap", TRAPS, ids=IDS)
def test_trap_works_and_is_found(prepared: Callable[[Trap], Site], trap: Trap) -> None:
    site = prepared(trap)
    before = site.run(trap.shows, PYTHONDONTWRITEBYTECODE="1") if trap.shows else ""
    assert site.changes() == {}
    placed = trap.act(site)
    if trap.shows:
        assert site.run(trap.shows, PYTHONDONTWRITEBYTECODE="1") != before, "the attack works"
    found = site.changes()
    for path in placed:
        assert os.path.relpath(path, site.folder) in found


@pytest.mark.parametrize("trap", TRAPS, ids=IDS)
def test_the_same_place_in_ordinary_use_is_silent(prepared: Callable[[Trap], Site], trap: Trap) -> None:
    site = prepared(trap)
    ordinary(site)
    if trap.shows:
        site.run(trap.shows)
    assert site.changes() == {}
    assert site.changes(deep=True) == {}
