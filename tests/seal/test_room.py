"""A replay runs from sealed bytes only, whatever has happened to the original since."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sealed_site import Site, base_env

from trainwarden.config import Config, SealConfig
from trainwarden.errors import CannotDecide, StoreError, StoreTampered
from trainwarden.model import Manifest
from trainwarden.seal.check import load_manifest
from trainwarden.seal.room import Room, Workspace, build_room, new_workspace, remove_variant

WHERE = "import sys, sums; print(sys.executable, sys.prefix, sums.__file__, *sys.path, sep='\\n')"


def run(space: Workspace, *words: str | Path) -> str:
    env = space.environ(base_env())
    done = subprocess.run([str(w) for w in words], cwd=space.cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(space: Workspace, code: str) -> str:
    return run(space, space.room.python, "-c", code)


def test_room_uses_only_its_own_copies(site: Site) -> None:
    space = new_workspace(build_room(site.store, site.seal))
    lines = python(space, WHERE).splitlines()
    assert all(line == "" or line.startswith(f"{space.room.path}/root/") for line in lines)
    assert run(space, space.room.python, "train.py") == "2\n"


def test_libpython_of_a_shared_build_is_the_rooms_own(site: Site) -> None:
    space = new_workspace(build_room(site.store, site.seal))
    maps = "print(*{m.split()[-1] for m in open('/proc/self/maps') if '/libpython' in m})"
    loaded = python(space, maps).split()
    assert all(path.startswith(str(space.room.path)) for path in loaded)


def test_sabotaged_original_does_not_reach_the_room(site: Site) -> None:
    site.package.write_text("def add(a, b):\n    return -1\n")
    (site.packages / "sitecustomize.py").write_text("raise SystemExit('hooked')\n")
    (site.code / "helper.py").write_text("ONE = 100\n")
    space = new_workspace(build_room(site.store, site.seal))
    assert run(space, space.room.python, "train.py") == "2\n"
    shutil.rmtree(site.packages)
    assert run(space, space.room.python, "train.py") == "2\n"


def test_console_scripts_start_the_rooms_python(site: Site) -> None:
    space = new_workspace(build_room(site.store, site.seal))
    script = site.python.parent / "addup"
    script.write_text("#!/bin/sh\nexit 9\n")
    assert run(space, space.map_path(str(script))) == "3\n"


def test_sealed_caches_are_used_and_stale_ones_are_not(site: Site) -> None:
    site.run("import sums")
    site.seal_again()
    space = new_workspace(build_room(site.store, site.seal))
    verbose = [str(space.room.python), "-v", "-c", "import sums"]
    out = subprocess.run(verbose, env=space.environ(base_env()), cwd=space.cwd, capture_output=True, text=True)
    cached = f"matches {space.map_path(str(site.package))}"
    assert f"{space.map_path(str(site.cache))} {cached}" in out.stderr
    site.package.write_text("def add(a, b):\n    return b + a\n")  # same size: only the time tells
    os.utime(site.package, (2_000_000, 2_000_000))
    site.seal_again()
    space = new_workspace(build_room(site.store, site.seal))
    assert not os.path.exists(space.map_path(str(site.cache)))
    assert run(space, space.room.python, "train.py") == "2\n"


def test_intact_room_is_used_again_and_a_broken_one_rebuilt(site: Site) -> None:
    room = build_room(site.store, site.seal)
    package = Path(room.map_path(str(site.package)))
    inode = package.stat().st_ino
    assert build_room(site.store, site.seal) == room
    assert package.stat().st_ino == inode
    package.unlink()
    package.write_text("def add(a, b):\n    return 0\n")
    (package.parent / "extra.py").write_text("")
    build_room(site.store, site.seal)
    assert "a + b" in package.read_text()
    assert not (package.parent / "extra.py").exists()


def test_startup_hook_without_a_sealed_cache_leaves_its_room_as_it_was_made(site: Site) -> None:
    """Asking the room who it is imports such hooks: a cache written then had it rebuilt at every use."""
    (site.packages / "hook.py").write_text("")
    (site.packages / "hook.pth").write_text("import hook\n")
    site.seal_again()
    room = build_room(site.store, site.seal)
    assert not list(Path(room.map_path(str(site.packages))).glob("__pycache__/hook.*"))
    inode = Path(room.map_path(str(site.package))).stat().st_ino
    build_room(site.store, site.seal)
    assert Path(room.map_path(str(site.package))).stat().st_ino == inode


def test_tampered_object_is_refused(site: Site) -> None:
    digest = next(e.digest for t in manifest(site, "environment").trees for e in t if e.path == "sums/table.bin")
    path = site.store.object_path(digest)
    path.chmod(0o644)
    path.write_bytes(b"\3\2\1")
    with pytest.raises(StoreTampered):
        build_room(site.store, site.seal)


def test_object_tampered_through_the_rooms_hard_link_is_refused(site: Site) -> None:
    room = build_room(site.store, site.seal)
    linked = Path(room.map_path(str(site.packages / "sums" / "fast.so")))
    linked.chmod(0o644)
    linked.write_bytes(b"\x7fELF tampered!!")
    with pytest.raises(StoreTampered):
        build_room(site.store, site.seal)


def test_missing_object_is_a_clear_error(site: Site) -> None:
    digest = next(e.digest for t in manifest(site, "environment").trees for e in t if e.path == "sums/fast.so")
    site.store.object_path(digest).unlink()
    with pytest.raises(StoreError) as e:
        build_room(site.store, site.seal)
    assert e.value.hint


def test_environment_that_reaches_outside_cannot_be_decided(site: Site) -> None:
    (site.packages / "far.pth").write_text("import sys; sys.path.append('/elsewhere')\n")
    site.seal_again()
    with pytest.raises(CannotDecide, match="/elsewhere"):
        build_room(site.store, site.seal)


def test_editable_installs_are_redirected(site: Site) -> None:
    for name in ("flat", "found"):
        (site.folder / name).mkdir()
        (site.folder / name / f"{name}_mod.py").write_text(f"NAME = '{name}'\n")
    (site.packages / "e.pth").write_text(f"{site.folder}/flat\n{site.code}\n")
    (site.packages / "__editable___found_finder.py").write_text(
        f"import sys\nMAPPING = {{'found': '{site.folder}/found'}}\nsys.path.append(MAPPING['found'])\n"
    )
    (site.packages / "f.pth").write_text("import __editable___found_finder\n")
    site.seal_again()
    space = new_workspace(build_room(site.store, site.seal))
    shutil.rmtree(site.folder / "flat")
    shutil.rmtree(site.folder / "found")
    out = python(space, "import flat_mod, found_mod; print(flat_mod.__file__, found_mod.__file__, sep='\\n')")
    assert all(line.startswith(str(space.room.path)) for line in out.splitlines())


# ------------------------------------------------------------------------- variants


def test_variant_runs_the_swapped_file_though_a_sealed_cache_exists(site: Site) -> None:
    site.run("import sums")
    site.seal_again()
    tampered = site.folder / "tampered.py"
    tampered.write_text("def add(a, b):\n    return a - b\n")
    room = build_room(site.store, site.seal)
    variant = build_room(site.store, site.seal, replace={str(site.package): tampered})
    assert run(new_workspace(variant), variant.python, "train.py") == "0\n"
    assert run(new_workspace(room), room.python, "train.py") == "2\n"
    lines = python(new_workspace(variant), WHERE).splitlines()
    assert all(line == "" or line.startswith(f"{variant.path}/root/") for line in lines)
    remove_variant(variant)
    assert not variant.path.exists()
    assert build_room(site.store, site.seal) == room


def test_variant_with_a_forged_cache_a_new_hook_and_swapped_code(site: Site) -> None:
    forged = site.folder / "forged.pyc"
    source = site.folder / "forged.py"
    source.write_text("def add(a, b):\n    return 40 + a\n")
    compiler = (
        "import py_compile as p, sys; p.compile(*sys.argv[1:], invalidation_mode=p.PycInvalidationMode.UNCHECKED_HASH)"
    )
    subprocess.run([sys.executable, "-c", compiler, source, forged], check=True)
    hook = site.folder / "hook.py"
    hook.write_text("import builtins\nbuiltins.HOOKED = True\n")
    helper = site.folder / "helper.py"
    helper.write_text("ONE = 2 if HOOKED else 0\n")
    variant = build_room(
        site.store,
        site.seal,
        replace={
            str(site.cache): forged,
            str(site.packages / "sitecustomize.py"): hook,
            str(site.code / "helper.py"): helper,
        },
    )
    assert run(new_workspace(variant), variant.python, "train.py") == "42\n"


# ------------------------------------------------------------------------- workspaces


def test_workspaces_are_apart_and_the_original_is_out_of_reach(site: Site) -> None:
    (site.code / "train.py").write_text("open('out.txt', 'w').write('replay')\nopen('helper.py', 'w').write('')\n")
    site.seal_again()
    (site.code / "out.txt").write_text("original")
    room = build_room(site.store, site.seal)
    one, two = new_workspace(room), new_workspace(room)
    run(one, room.python, "train.py")
    assert (site.code / "out.txt").read_text() == "original"
    assert (site.code / "helper.py").read_text() == "ONE = 1\n"
    assert (two.code / "helper.py").read_text() == "ONE = 1\n"
    assert build_room(site.store, site.seal) == room
    one.remove()
    assert not one.path.exists()


@pytest.mark.parametrize("absolute", [True, False])
def test_what_links_of_the_code_lead_to_is_the_sealed_in_a_workspace(site: Site, absolute: bool) -> None:
    elsewhere = site.folder / "elsewhere"
    (elsewhere / "tools").mkdir(parents=True)
    (elsewhere / "module.py").write_text("x = 'sealed'\n")
    (elsewhere / "tools" / "__init__.py").write_text("y = 'sealed'\n")
    start = elsewhere if absolute else Path("../elsewhere")
    (site.code / "linked.py").symlink_to(start / "module.py")
    (site.code / "tools").symlink_to(start / "tools")
    site.seal_again()
    for path in (elsewhere / "module.py", elsewhere / "tools" / "__init__.py"):
        path.write_text("x = y = 'sabotaged'\n")
    room = build_room(site.store, site.seal)
    for each in (room, build_room(site.store, site.seal, replace={str(site.code / "helper.py"): site.package})):
        assert python(new_workspace(each), "import linked, tools; print(linked.x, tools.y)") == "sealed sealed\n"


def test_map_path(site: Site) -> None:
    room = build_room(site.store, site.seal, target=site.folder / "replays")
    space = new_workspace(room)
    assert space.path.parent == site.folder / "replays"
    assert room.map_path(str(site.python)) == str(room.python)
    assert room.map_path(str(site.code)) == str(room.code)
    assert space.map_path(str(site.python)) == str(room.python)
    assert space.map_path(f"{site.packages}/new/../x.py") == f"{room.path}/root{site.packages}/x.py"
    assert space.map_path(str(site.code / "out")) == str(space.code / "out")
    assert space.map_path("/somewhere/out.pt") == f"{space.scratch}/abs/somewhere/out.pt"
    assert room.map_path("/somewhere/out.pt") == f"{room.scratch}/abs/somewhere/out.pt"
    for system in ("/dev/null", "/usr/bin/env", "/proc/self/maps"):
        assert space.map_path(system) == system
    assert space.map_argument(f"--out={site.code}/o") == f"--out={space.code}/o"
    assert space.map_argument("--lr=0.1") == "--lr=0.1"
    assert space.map_argument("out/x") == "out/x"


def test_environment_variables_are_mapped(site: Site) -> None:
    room: Room = build_room(site.store, site.seal)
    space = new_workspace(room)
    env = space.environ(
        {
            "PATH": f"{site.python.parent}:/usr/bin",
            "PYTHONPATH": f"{site.code}:lib",
            "VIRTUAL_ENV": str(site.folder / "venv"),
            "OUTPUT_DIR": "/results",
            "HOME": "/home/me",
            "PYENV_ROOT": "/x",
            "OMP_NUM_THREADS": "1",
        }
    )
    bin_folder = str(room.python.parent)
    assert env["PATH"] == f"{bin_folder}:{bin_folder}:/usr/bin"
    assert env["PYTHONPATH"] == f"{space.code}:lib"
    assert env["VIRTUAL_ENV"] == str(room.python.parent.parent)
    assert env["OUTPUT_DIR"] == f"{space.scratch}/abs/results"
    assert (env["HOME"], env["OMP_NUM_THREADS"]) == ("/home/me", "1")
    assert "PYENV_ROOT" not in env


def test_data_is_found_by_relative_and_absolute_paths_and_restored_when_changed(site: Site) -> None:
    data = site.folder / "data"
    (data / "empty").mkdir(parents=True)
    (data / "x.txt").write_text("sealed")
    (data / "link").symlink_to("x.txt")
    (site.code / "train.py").write_text("import sys; print(*(open(p).read() for p in sys.argv[1:]))\n")
    site.seal_again("train.py", str(data), "../data/x.txt")
    (data / "x.txt").write_text("poisoned")
    space = new_workspace(build_room(site.store, site.seal))
    words = ["train.py", space.map_argument(f"{data}/x.txt"), "../data/x.txt", "../data/link"]
    assert run(space, space.room.python, *words) == "sealed sealed sealed\n"


def test_changed_data_that_was_not_kept_cannot_be_decided(site: Site) -> None:
    data = site.folder / "data.txt"
    data.write_text("sealed")
    site.seal_again("train.py", str(data), config=Config(seal=SealConfig(keep_data_mb=0)))
    room = build_room(site.store, site.seal)
    space = new_workspace(room)
    assert Path(space.map_path(str(data))).read_text() == "sealed"
    data.write_text("changed")
    with pytest.raises(CannotDecide) as e:
        new_workspace(room)
    assert "keep_data_mb" in e.value.hint


def test_virtual_environment_inside_the_code_folder(site: Site) -> None:
    inner = site.code / ".venv"
    shutil.copytree(site.folder / "venv", inner, symlinks=True)
    site.python = inner / "bin" / "python"
    site.packages = Path(str(site.packages).replace(str(site.folder / "venv"), str(inner)))
    site.seal_again()
    assert set(site.seal.seal.code.roots) == {str(site.code)}
    assert all(".venv" not in e.path for t in manifest(site, "code").trees for e in t)
    space = new_workspace(build_room(site.store, site.seal))
    assert run(space, ".venv/bin/python", "train.py") == "2\n"
    assert site.changes() == {}


def manifest(site: Site, kind: str) -> Manifest:
    return load_manifest(site.store, getattr(site.seal.seal, kind))
