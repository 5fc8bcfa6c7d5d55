"""A change while the run goes on is told once, with its bytes kept; what an ordinary run does is not told."""

from __future__ import annotations

import mmap
import os
import queue
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sealed_site import Site
from test_check import forge

from attacks.environment import EVIL
from trainwarden.model import FileChanged
from trainwarden.seal import sweep
from trainwarden.seal.inotify import Folders, Seen
from trainwarden.seal.watch import FileWatch

PATIENCE = 60  # an upper bound for a loaded machine, never waited for when the event comes


class Watched:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.told: queue.Queue[FileChanged] = queue.Queue()
        self.watch = FileWatch(site.store, site.seal, self.told.put)

    def next(self) -> FileChanged:
        return self.told.get(timeout=PATIENCE)

    def next_path(self) -> Path:
        return Path(self.next().path)

    def silent(self) -> bool:
        """Nothing was told: a later change is told first, and the last look finds nothing more."""
        marker = self.site.packages / "marker.py"
        marker.write_text("")
        change = self.next()
        self.watch.stop()
        return Path(change.path) == marker and self.told.empty() and self.watch.errors == []


@contextmanager
def watching(site: Site) -> Iterator[Watched]:
    watched = Watched(site)
    watched.watch.start()
    try:
        yield watched
    finally:
        watched.watch.stop(last_look=False)


def edit(site: Site) -> Path:
    site.package.write_text("def add(a, b):\n    return a - b\n")
    return site.package


def put(site: Site, text: str) -> None:
    new = site.folder / "new"
    new.write_text(text)
    os.replace(new, site.package)


def replace_atomically(site: Site) -> Path:
    new = site.folder / "new"
    new.write_text("tampered")
    status = site.package.stat()
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(new, site.package)
    return site.package


def new_hook(site: Site) -> Path:
    (site.packages / "evil.pth").write_text("import os\n")
    return site.packages / "evil.pth"


def new_package(site: Site) -> Path:
    (site.packages / "evil").mkdir()
    (site.packages / "evil" / "__init__.py").write_text("x = 1\n")
    return site.packages / "evil" / "__init__.py"


def forged_cache(site: Site) -> Path:
    forge(site)
    return site.cache


def edit_code(site: Site) -> Path:
    (site.code / "helper.py").write_text("ONE = 3\n")
    return site.code / "helper.py"


def shadow_package(site: Site) -> Path:
    (site.code / "sums").mkdir()
    (site.code / "sums" / "__init__.py").write_text("def add(*a): return 0\n")
    return site.code / "sums" / "__init__.py"


def edit_config(site: Site) -> Path:
    config = site.folder / "venv" / "pyvenv.cfg"
    config.write_text(config.read_text() + "x = y\n")
    return config


ATTACKS = [edit, replace_atomically, new_hook, new_package, forged_cache, edit_code, shadow_package, edit_config]


@pytest.mark.parametrize("attack", ATTACKS)
def test_change_is_told_with_its_bytes(site: Site, attack: Callable[[Site], Path]) -> None:
    with watching(site) as watched:
        path = attack(site)
        change = watched.next()
        while site.store.get(change.found) != path.read_bytes():  # an edit in place may be seen half done
            change = watched.next()
        assert Path(change.path) == path


def test_edit_behind_a_link_of_the_code_is_told(site: Site) -> None:
    module = site.folder / "elsewhere" / "module.py"
    module.parent.mkdir()
    module.write_text("x = 1\n")
    (site.code / "linked.py").symlink_to(module)
    site.seal_again()
    with watching(site) as watched:
        (module.parent / "other.py").write_text("not ours")
        module.write_text("x = 2\n")
        assert watched.next_path() == module


def test_deleted_file_and_folder_swapped_by_rename_are_told(site: Site) -> None:
    with watching(site) as watched:
        (site.code / "notes.md").unlink()
        change = watched.next()
        assert (Path(change.path), change.found) == (site.code / "notes.md", "")
        evil = site.folder / "evil"
        shutil.copytree(site.packages / "sums", evil)
        (evil / "__init__.py").write_text("tampered")
        (site.packages / "sums").rename(site.folder / "old")
        evil.rename(site.packages / "sums")
        watched.watch.stop()
        told = [change]
        while not watched.told.empty():
            told.append(watched.told.get())
        digests = {c.found for c in told if Path(c.path) == site.package}
        assert any(d and site.store.get(d) == b"tampered" for d in digests)


def test_each_content_is_told_once_and_again_after_it_was_put_back(site: Site) -> None:
    honest = site.package.read_text()
    with watching(site) as watched:
        put(site, "second")
        assert site.store.get(watched.next().found) == b"second"
        put(site, honest)
        put(site, "third")
        assert site.store.get(watched.next().found) == b"third"
        put(site, "fourth")
        assert site.store.get(watched.next().found) == b"fourth"
        watched.watch.stop()
        assert watched.told.empty()


def test_change_between_check_and_watch_is_not_missed(site: Site) -> None:
    """The order that the supervisor uses: watch first, then check."""
    edit(site)
    with watching(site) as watched:
        assert len(site.changes()) == 1
        edit_code(site)
        assert watched.next_path() == site.code / "helper.py"
        watched.watch.stop()
        assert watched.next_path() == site.package, "the last look tells what happened before the watch"


def test_ordinary_run_is_not_told(site: Site) -> None:
    with watching(site) as watched:
        assert site.run("import helper, sums; open('loss.csv', 'w').write('1')") == ""
        assert site.cache.exists()
        (site.code / "out").mkdir()
        (site.code / "out" / "model.pt").write_bytes(b"x")
        (site.code / "out" / "train.py").write_text("a copy")
        os.utime(site.package)
        (site.packages / "sums" / "cache.json").write_text("{}")
        (site.folder / "elsewhere.py").write_text("")
        assert watched.silent()


def test_store_inside_the_code_folder_is_not_told(site: Site) -> None:
    site.store.close()
    moved = site.code / ".trainwarden"
    site.store.path.rename(moved)
    site.store = type(site.store).open(moved)
    site.seal_again()
    with watching(site) as watched:
        site.store.put_bytes(b"x")
        (moved / "runs" / "x.py").write_text("")
        assert watched.silent()


def test_empty_place_that_is_filled_is_told(site: Site) -> None:
    site.seal_again(PYTHONPATH=f"{site.folder}/absent")
    with watching(site) as watched:
        path = site.folder / "absent" / "sums.py"
        path.parent.mkdir()
        path.write_text("def add(*a): return 0\n")
        assert watched.next_path() == path


# ------------------------------------------------------------------------- what no event tells


def through_a_hard_link(site: Site) -> tuple[Path, Callable[[], object]]:
    other = site.folder / "cache"  # where uv keeps what it installed
    os.link(site.package, other)
    return site.package, lambda: other.write_text(EVIL)


def through_a_mapping(site: Site) -> tuple[Path, Callable[[], object]]:
    with site.package.open("r+b") as f:
        mapped = mmap.mmap(f.fileno(), 0)

    def write() -> None:
        mapped[0:3] = b"DEF"
        mapped.flush()

    return site.package, write


def into_a_root_made_again(site: Site) -> tuple[Path, Callable[[], object]]:
    def act() -> None:
        site.packages.rename(site.folder / "old")
        shutil.copytree(site.folder / "old", site.packages)
        time.sleep(1.5)  # until the watch has seen all of that, and has no watch on the new folder
        (site.packages / "evil.pth").write_text("import os\n")

    return site.packages / "evil.pth", act


def by_a_mount(site: Site) -> tuple[Path, Callable[[], object]]:
    other = site.folder / "other"
    shutil.copytree(site.packages / "sums", other)
    (other / "__init__.py").write_text(EVIL)
    words = ["mount", "--bind", str(other), str(site.packages / "sums")]
    return site.package, lambda: subprocess.run(words, check=True)


@pytest.mark.parametrize("way", [through_a_hard_link, through_a_mapping, into_a_root_made_again, by_a_mount])
def test_change_that_no_event_tells_is_found_while_the_run_goes_on(
    site: Site, way: Callable[[Site], tuple[Path, Callable[[], object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "ROUND", 1)
    if way is by_a_mount and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    path, act = way(site)
    site.seal_again()
    with watching(site) as watched:
        time.sleep(2.5)  # the first rounds; what comes is younger
        try:
            act()
            assert path in iter(watched.next_path, None)  # which gives up, and fails, when nothing more is told
        finally:
            if way is by_a_mount:
                subprocess.run(["umount", str(site.packages / "sums")], check=True)


def test_rounds_look_at_everything_and_tell_only_what_was_touched(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}" for n in range(100)]
    for path in paths[:90]:
        path.write_text("x")
    old = sweep.Sweep(map(str, paths))
    old._since = time.time_ns() + 10**12  # all these files are old
    told = [path for _ in range(sweep.FIRST) for path in old.due()]
    assert told == [str(p) for p in paths[90:]], "what is not there at first is told"
    assert [p for _ in range(2 * sweep.ROUND) for p in old.due()] == []
    paths[5].write_text("yy")
    os.replace(paths[6], paths[7])
    assert sorted(p for _ in range(sweep.ROUND) for p in old.due()) == sorted(map(str, (paths[5], paths[6], paths[7])))


def test_a_watch_that_stood_still_looks_at_everything_and_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the same user stops the watcher (SIGSTOP) and fills the kernel's queue: no event comes."""

    class Clock:
        ahead = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.ahead

    clock = Clock()
    monkeypatch.setattr("trainwarden.seal.watch.time", clock)
    monkeypatch.setattr(Folders, "read", lambda self: Seen(frozenset(), frozenset(), False))
    watched = Watched(site)
    watched.watch.start()
    edit(site)
    clock.ahead = 60.0
    assert watched.next_path() == site.package
    watched.watch.stop(last_look=False)
    assert watched.watch.errors[0].startswith("it stood still for 6")
