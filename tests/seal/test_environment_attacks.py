"""Every trap of `attacks/environment/` works and is found at both times: laid between the seal and the start it
stops the start, laid during the run it is a finding. The same place in ordinary use is silent."""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sealed_site
from sealed_site import Site

from attacks.environment import PRELOAD_FILE, TRAPS, Trap, ordinary
from trainwarden.detect.environment import Environment
from trainwarden.model import Entry, FileChanged, Severity, Writer
from trainwarden.seal import latent
from trainwarden.seal.check import check_seal
from trainwarden.seal.watch import FileWatch
from trainwarden.supervise.environment import EnvironmentGuard

PATIENCE = 60.0  # an upper bound for a loaded machine, never waited for when the event comes
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
    refusal = guard(site, []).may_start()
    if all(found[os.path.relpath(path, site.folder)].kind == "environment" for path in placed):
        assert "changed since the seal" in refusal
    else:
        assert refusal == "", "edited code is told and never refused: a run without approvals seals it at its start"


@pytest.mark.parametrize("trap", TRAPS, ids=IDS)
def test_trap_laid_during_the_run_is_a_finding(prepared: Callable[[Trap], Site], trap: Trap) -> None:
    site = prepared(trap)
    told: queue.Queue[FileChanged] = queue.Queue()
    watch = FileWatch(site.store, site.seal, told.put)
    watch.start()
    try:
        placed = {str(path) for path in trap.act(site)}
        change = told.get(timeout=PATIENCE)
        while change.path not in placed:
            change = told.get(timeout=PATIENCE)
    finally:
        watch.stop(last_look=False)
    log: list[Entry] = []
    on_run = guard(site, log)
    on_run.changed(change)
    (finding,) = Environment().observe(0, log[0], None)
    assert finding.severity is (Severity.HIGH if change.kind == "environment" else Severity.MEDIUM)
    assert change.path in finding.seen
    assert "by process 4711 of user 1000" in finding.seen


class Ledger:
    def __init__(self, log: list[Entry]) -> None:
        self.log = log

    def submit(self, entry: Entry, done: Callable[[int], None] = lambda _: None) -> bool:
        self.log.append(entry)
        done(len(self.log) - 1)
        return True

    def flush(self, timeout: float) -> None:
        """Everything is there at once."""


def guard(site: Site, log: list[Entry]) -> EnvironmentGuard:
    """What stands between the disk and a start, with a kernel that names process 4711 as the writer of everything."""
    writer = Writer(pid=4711, uid=1000, program="/bin/sh", argv=("sh",))
    return EnvironmentGuard(
        site.store,
        Ledger(log),
        lambda kinds: check_seal(site.store, site.seal, kinds),
        refuse=True,
        writer=lambda _: writer,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("trap", TRAPS, ids=IDS)
def test_the_same_place_in_ordinary_use_is_silent(prepared: Callable[[Trap], Site], trap: Trap) -> None:
    site = prepared(trap)
    ordinary(site)
    if trap.shows:
        site.run(trap.shows)
    assert site.changes() == {}
    assert site.changes(deep=True) == {}
