"""The room that a run lives in: what it covers, what it leaves, and how a replay reads what was recorded in a copy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sealed_site import Site, base_env

from trainwarden.errors import StoreTampered, UsageError
from trainwarden.seal.live import Kind, LiveRoom, altered, build_live_room
from trainwarden.seal.room import build_room, new_workspace

ASK = "import sums; print(sums.add(1, 1), sums.__file__)"


def live(site: Site, kind: Kind, **env: str) -> LiveRoom:
    return build_live_room(site.store, site.seal, site.command(**env), kind)


def test_a_copy_runs_the_sealed_environment_and_the_jobs_own_code(site: Site) -> None:
    room = live(site, Kind.COPY)
    site.package.write_text("def add(a, b):\n    return -1\n")
    (site.code / "helper.py").write_text("ONE = 5\n")
    words = room.launch(site.command())
    out = subprocess.run(words, cwd=site.code, env=room.environ(base_env()), capture_output=True, text=True, check=True)
    assert out.stdout == "6\n"  # code stays live, the library does not


def test_a_namespace_room_holds_the_sealed_bytes_as_they_were(site: Site) -> None:
    room = live(site, Kind.NAMESPACE)
    for path in (site.package, site.python.parent / "addup", site.python.parents[1] / "pyvenv.cfg"):
        assert Path(f"{room.path}/root{path}").read_bytes() == path.read_bytes()
    assert os.access(f"{room.path}/root{site.python.parent / 'addup'}", os.X_OK)
    assert room.launch(site.command()) == [str(site.python), "train.py"]
    assert not [s for s, _ in room.binds if not os.path.exists(s)]


@pytest.mark.parametrize("kind", list(Kind))
def test_nothing_in_a_room_has_a_bit_that_allows_writing(site: Site, kind: Kind) -> None:
    room = live(site, kind)
    for folder, _, names in os.walk(f"{room.path}/root"):
        places = [folder, *(os.path.join(folder, name) for name in names)]
        assert [p for p in places if not os.path.islink(p) and os.stat(p).st_mode & 0o222] == []


@pytest.mark.parametrize("kind", list(Kind))
def test_an_altered_file_an_extra_and_a_missing_one_are_named(site: Site, kind: Kind) -> None:
    room = live(site, kind)
    assert altered(site.store, site.seal, room) == []
    place = Path(f"{room.path}/root{site.package}")
    place.parent.chmod(0o755)
    place.unlink()
    (place.parent / "extra.py").write_text("")
    assert altered(site.store, site.seal, room) == [str(site.package), str(site.package.parent / "extra.py")]


def test_a_tampered_object_makes_no_room(site: Site) -> None:
    (digest,) = {site.store.put_bytes(b"\1\2\3")}
    path = site.store.object_path(digest)
    path.chmod(0o644)
    path.write_bytes(b"\3\2\1")
    with pytest.raises(StoreTampered):
        live(site, Kind.COPY)


def test_a_folder_with_more_than_importable_files_is_left_and_one_without_is_covered(site: Site) -> None:
    mixed, plain = site.folder / "mixed", site.folder / "plain"
    for folder in (mixed, plain):
        folder.mkdir()
        (folder / "one.py").write_text("")
    (mixed / "table.txt").write_text("")
    env = {"PYTHONPATH": f"{mixed}:{plain}"}
    site.seal_again("train.py", **env)
    room = live(site, Kind.COPY, **env)
    assert room.left == (str(mixed),)
    assert not room.covers(str(mixed / "one.py"))
    assert room.environ(env)["PYTHONPATH"] == f"{mixed}:{room.path}/root{plain}"


def test_results_inside_an_installed_folder_are_refused(site: Site) -> None:
    (site.packages / "out").mkdir()
    words = ("train.py", "--out", str(site.packages / "out"))
    site.seal_again(*words)
    with pytest.raises(UsageError, match="would hide") as e:
        build_live_room(site.store, site.seal, site.command(*words), Kind.NAMESPACE)
    assert e.value.hint


def test_replay_of_a_run_in_a_copy_finds_the_sealed_places(site: Site) -> None:
    room, space = live(site, Kind.COPY), new_workspace(build_room(site.store, site.seal))
    assert room.place(str(site.package)) != str(site.package)
    assert space.map_path(room.place(str(site.package))) == space.map_path(str(site.package))
    recorded = room.environ({**base_env(), "TOOL": str(site.python)})
    assert space.environ(recorded)["TOOL"] == space.map_path(str(site.python))
    assert str(room.path) not in space.environ(recorded)["PATH"]


@pytest.mark.parametrize("kind", list(Kind))
def test_a_room_is_used_again_and_an_altered_one_is_left_alone_for_a_new_one(site: Site, kind: Kind) -> None:
    first = live(site, kind)
    assert live(site, kind).path == first.path
    place = Path(f"{first.path}/root{site.package}")
    place.parent.chmod(0o755)
    place.unlink()
    place.write_text("tampered")
    second = live(site, kind)
    assert second.path != first.path
    assert place.read_text() == "tampered"
    assert altered(site.store, site.seal, second) == []
