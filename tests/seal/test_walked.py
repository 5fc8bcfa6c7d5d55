"""One walk seals and compares: whatever changes after it has passed, and before the command starts, is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sealed_site
from sealed_site import Site
from test_check import forge

from attacks.environment import PRELOAD_FILE, TRAPS, Trap
from trainwarden.config import Config
from trainwarden.errors import StoreTampered
from trainwarden.model import FileChanged
from trainwarden.seal import cache as cache_module
from trainwarden.seal import inotify, latent, trees
from trainwarden.seal.check import check_seal
from trainwarden.seal.inotify import Folders, Seen
from trainwarden.seal.seal import seal_command
from trainwarden.seal.walked import SealWalk
from trainwarden.seal.walking import Boundaries, walk
from trainwarden.seal.watch import FileWatch

NEVER = float("-inf")


class Start:
    """A guarded start up to the command: sealed while it is walked, then watched."""

    def __init__(self, site: Site, folders: Folders | None = None) -> None:
        self.site = site
        self.walk = SealWalk(folders or Folders())
        self.seal = seal_command(site.store, site.command(), Config(), site.key, walk=self.walk)
        self.told: list[FileChanged] = []
        self.watch: FileWatch | None = None

    def watched(self) -> FileWatch:
        self.watch = self.watch or FileWatch(self.site.store, self.seal, self.told.append, seen=self.walk)
        return self.watch

    def before_the_command(self) -> dict[str, FileChanged]:
        """What the supervisor knows when it would start the command: by path below the test's folder."""
        watch = self.watched()
        watch.start()
        try:
            watch.settle()
            if watch.since != NEVER:
                self.told += check_seal(self.site.store, self.seal, ("code", "data"), walk=self.walk)
            else:
                self.told += check_seal(self.site.store, self.seal, walk=self.walk)
        finally:
            watch.stop(last_look=False)
        return {os.path.relpath(change.path, self.site.folder): change for change in self.told}


def rel(site: Site, path: Path) -> str:
    return os.path.relpath(path, site.folder)


def edit(site: Site) -> Path:
    site.package.write_text("def add(a, b):\n    return a - b\n")
    return site.package


def edit_and_restore_times(site: Site) -> Path:
    before = site.package.stat()
    site.package.write_text("def add(a, b):\n    return a * b\n")
    os.utime(site.package, ns=(before.st_atime_ns, before.st_mtime_ns))
    return site.package


def replace_folder(site: Site) -> Path:
    evil = site.folder / "evil"
    shutil.copytree(site.packages / "sums", evil)
    (evil / "__init__.py").write_text("tampered")
    (site.packages / "sums").rename(site.folder / "old")
    evil.rename(site.packages / "sums")
    return site.package


def swap_above_the_root(site: Site) -> Path:
    """No watched folder changes: the whole virtual environment is exchanged for an edited copy."""
    venv = site.folder / "venv"
    shutil.copytree(venv, site.folder / "copy", symlinks=True)
    venv.rename(site.folder / "away")
    (site.folder / "copy").rename(venv)
    return edit(site)


def edit_file_sealed_by_itself(site: Site) -> Path:
    config = site.folder / "venv" / "pyvenv.cfg"
    config.write_text(config.read_text() + "x = y\n")
    return config


def new_package_deep_below(site: Site) -> Path:
    path = site.packages / "evil" / "deep" / "__init__.py"
    path.parent.mkdir(parents=True)
    path.write_text("")
    return path


def forged_cache(site: Site) -> Path:
    forge(site)
    return site.cache


CHANGES = [
    edit,
    edit_and_restore_times,
    replace_folder,
    swap_above_the_root,
    edit_file_sealed_by_itself,
    new_package_deep_below,
    forged_cache,
]


@pytest.fixture
def old(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """As if the site had lain there for long: its digests are cached and its manifests known."""
    now_ns = time.time_ns
    monkeypatch.setattr(cache_module.time, "time_ns", lambda: now_ns() + 2 * cache_module.RACY_NS)
    site.seal_again()
    site.seal_again()
    monkeypatch.setattr(cache_module.time, "time_ns", now_ns)
    return site


def test_nothing_changed_is_silent_and_one_walk_is_enough(old: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "settled_before", lambda: time.time_ns() + 1)
    start = Start(old)
    assert start.before_the_command() == {}
    assert start.watched().since == start.walk.began
    assert start.watched().errors == []
    assert check_seal(old.store, start.seal, walk=start.walk) == []


@pytest.mark.parametrize("change", CHANGES)
def test_change_between_the_walk_and_the_start_is_told(site: Site, change: Callable[[Site], Path]) -> None:
    start = Start(site)
    path = change(site)
    assert rel(site, path) in start.before_the_command()


@pytest.mark.parametrize("change", CHANGES)
def test_change_after_the_watch_began_is_told_at_once(site: Site, change: Callable[[Site], Path]) -> None:
    start = Start(site)
    watch = start.watched()
    watch.start()
    try:
        path = change(site)
        watch.settle()
        assert str(path) in {c.path for c in start.told}
    finally:
        watch.stop(last_look=False)


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.name for trap in TRAPS])
def test_every_trap_set_after_the_walk_is_found_before_the_start(
    tmp_path: Path, stdlib_cut: Path, monkeypatch: pytest.MonkeyPatch, trap: Trap
) -> None:
    if trap.needs and not shutil.which(trap.needs):
        pytest.skip(f"{trap.needs} is not installed")
    monkeypatch.setattr(latent, "LD_PRELOAD_FILE", str(tmp_path / PRELOAD_FILE))
    base = Path(shutil.copytree(stdlib_cut, tmp_path / "base", symlinks=True)) if trap.own_base else stdlib_cut
    site = sealed_site.make_site(tmp_path, base)
    trap.prepare(site)
    start = Start(site)
    placed = trap.act(site)
    found = start.before_the_command()
    assert any(rel(site, path) in found for path in placed)


class Acting(Folders):
    """Does something when a folder is entered: before it is watched, or when the next one is, after it was listed."""

    def __init__(self, folder: Path, act: Callable[[], object], after: bool) -> None:
        super().__init__()
        self._folder, self._act, self._after = str(folder), act, after
        self._listed = False

    def enter(self, fd: int, path: str, is_root: bool) -> None:
        if (path == self._folder and not self._after) or self._listed:
            self._listed = False
            self._act()
        super().enter(fd, path, is_root)
        self._listed = path == self._folder and self._after


def test_change_just_before_a_folder_is_watched_is_in_the_seal(site: Site) -> None:
    start = Start(site, Acting(site.packages / "sums", lambda: edit(site), after=False))
    assert start.before_the_command() == {}
    assert check_seal(site.store, start.seal, deep=True) == []
    site.package.write_text("def add(a, b):\n    return a + b\n")
    assert len(check_seal(site.store, start.seal)) == 1, "what was sealed is the edit"


def test_change_just_after_a_folder_was_listed_is_told(site: Site) -> None:
    (site.packages / "sums" / "inner").mkdir()
    (site.packages / "sums" / "inner" / "__init__.py").write_text("")
    added = site.packages / "sums" / "added.py"
    start = Start(site, Acting(site.packages / "sums", lambda: added.write_text("evil"), after=True))
    assert rel(site, added) in start.before_the_command()


def test_a_walk_lists_what_lies_below_the_folder_that_it_opened(site: Site) -> None:
    """Swapped above the root and put back while it is walked: not one file of the other tree is seen."""
    venv, away, copy = (site.folder / name for name in ("venv", "away", "copy"))
    shutil.copytree(venv, copy, symlinks=True)
    honest = site.package.stat().st_ino

    def swap() -> None:
        venv.rename(away)
        copy.rename(venv)

    folders = Acting(site.packages, swap, after=True)
    found = list(walk(str(site.packages), Boundaries(frozenset(), folders)))
    assert next(i.ino for i in found if i.path == str(site.package)) == honest
    assert folders.moved()


def test_write_through_a_hard_link_elsewhere_is_found_by_the_next_comparison(site: Site) -> None:
    link = site.folder / "elsewhere"
    os.link(site.package, link)
    start = Start(site)
    with link.open("r+b") as f:
        f.write(b"#")
    assert [c.path for c in check_seal(site.store, start.seal, walk=start.walk)] == [str(site.package)]


def test_stale_cache_made_to_fit_again_is_told(site: Site) -> None:
    """Not a byte changes: the times of the source are set back to those that its cache was made for."""
    site.run("import sums")
    before = site.package.stat()
    os.utime(site.package, (1, 1))
    start = Start(site)
    os.utime(site.package, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rel(site, site.cache) in start.before_the_command()
    assert [c.path for c in check_seal(site.store, start.seal, walk=start.walk)] == [str(site.cache)]


def test_dropped_events_make_everything_be_compared_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(site)
    edit(site)
    lost = [Seen(frozenset(), frozenset(), True)]
    read = Folders.read
    monkeypatch.setattr(Folders, "read", lambda folders: lost.pop() if lost and read(folders) else read(folders))
    watch = start.watched()
    watch.start()
    watch.settle()
    assert watch.since == NEVER
    assert str(site.package) in {c.path for c in start.told}
    watch.stop(last_look=False)


def test_folder_that_cannot_be_watched_is_a_hole_and_everything_is_compared(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        inotify_init1 = staticmethod(inotify._libc.inotify_init1)

        @staticmethod
        def inotify_add_watch(*_: object) -> int:
            return -1

    monkeypatch.setattr(inotify, "_libc", Full)
    start = Start(site)
    edit(site)
    found = start.before_the_command()
    assert rel(site, site.package) in found
    assert start.watched().since == NEVER
    assert any("gives no watch" in error for error in start.watched().errors)


def test_another_seal_than_the_walks_own_is_compared_whole(site: Site) -> None:
    approved = site.seal
    edit(site)
    start = Start(site)
    start.seal = approved
    assert rel(site, site.package) in start.before_the_command()
    assert start.watched().since == NEVER


def test_mount_above_or_below_a_root_is_noticed_and_one_elsewhere_is_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = ["1 0 0:1 / / rw - ext4 /dev/x rw"]
    monkeypatch.setattr(inotify, "_mounts", lambda: tuple(mounts))
    start = Start(site)
    folders = start.walk.folders
    assert folders is not None
    assert not folders.moved()
    mounts.append(f"2 1 0:2 / {site.folder}/data rw - tmpfs tmpfs rw")
    assert not folders.moved()
    mounts.append(f"3 1 0:3 / {site.packages}/sums rw - tmpfs tmpfs rw")
    assert folders.moved()
    assert not folders.moved(), "told once"
    mounts.append(f"4 1 0:4 / {site.folder} rw - tmpfs tmpfs rw")
    assert folders.moved()


# ------------------------------------------------------------------ manifests that are known


def test_known_manifest_is_not_made_again_and_one_difference_makes_it_anew(
    old: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    digest_files = trees.digest_files
    monkeypatch.setattr(trees, "digest_files", lambda *a, **k: asked.append(str(k["label"])) or digest_files(*a, **k))
    first = old.seal.seal
    assert old.seal_again().seal.environment == first.environment
    assert asked == []
    old.package.chmod(0o600)
    second = old.seal_again().seal
    assert second.environment != first.environment, "the mode is part of a manifest"
    assert "sealing environment" in asked


def test_state_of_a_walk_is_the_same_in_every_process(site: Site) -> None:
    """Python's sets come in another order in each: none of that may reach the state, or no manifest is ever known."""
    code = (
        "import os, sys; from trainwarden.seal.command import parse_command; from trainwarden.seal.scan import *\n"
        "from trainwarden.seal.interpreter import ask_interpreter; from trainwarden.seal.walked import state_of\n"
        "command = parse_command([sys.argv[1], 'train.py'], os.getcwd(), {'PATH': os.environ['PATH']})\n"
        "asked = ask_interpreter(command.interpreter, command.cwd, command.env)\n"
        "print(state_of(scan_environment(asked, command, {}, Boundaries(frozenset()))).hex())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code, str(site.python)],
            cwd=site.code,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert len(set(found)) == 1
    assert found[0].strip()


@pytest.mark.parametrize("restored", [False, True])
def test_known_manifest_is_not_used_for_other_bytes(old: Site, restored: bool) -> None:
    (edit_and_restore_times if restored else edit)(old)
    before = old.seal.seal.environment
    assert old.seal_again().seal.environment != before
    assert old.changes(deep=True) == {}


def test_known_manifest_whose_bytes_were_changed_in_the_store_is_not_used(old: Site) -> None:
    ref = old.seal.seal.environment
    stored = old.store.object_path(ref.digest)
    stored.chmod(0o644)
    stored.write_bytes(b"{}")
    with pytest.raises(StoreTampered):
        old.seal_again()
    (old.packages / "new.py").write_text("")
    old.seal_again()


def test_files_too_young_to_be_cached_leave_no_known_manifest(site: Site) -> None:
    site.seal_again()
    with trees.cache_of(site.store) as cache:
        rows = cache._db.execute("SELECT known FROM manifests").fetchall()
    kinds = {msgspec.msgpack.decode(row, type=cache_module.Known).ref.kind for (row,) in rows}
    assert kinds.isdisjoint({"environment", "code"})


def test_changed_file_that_cannot_be_judged_makes_everything_be_compared(site: Site) -> None:
    """The manifest is gone from the store: what changed cannot be judged, so the start must not rest on the watch."""
    start = Start(site)
    watch = start.watched()
    watch.start()
    try:
        edit(site)
        site.store.object_path(start.seal.seal.environment.digest).unlink()
        watch.settle()
        assert watch.errors
        assert watch.since == NEVER
    finally:
        watch.stop(last_look=False)
