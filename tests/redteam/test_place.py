"""The range: what attacks change is put back, links and other users' files stay as they are, one user at a time."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from trainwarden.errors import CannotDecide, UsageError
from trainwarden.redteam.guards import OutsideRange, linked_elsewhere
from trainwarden.redteam.place import Range
from trainwarden.redteam.workloads import Workload


@pytest.fixture
def place(tmp_path: Path) -> Range:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text("print('step 1')\n")
    job = Workload("toy", source=source, command=("python", "train.py"), steps=20, first=10, lead=10, every=4)
    made = Range(tmp_path / "range", job)
    (made.env / "lib").mkdir(parents=True)
    made.fresh()
    return made


def test_a_fresh_job_is_a_copy_with_a_home_of_its_own(place: Range) -> None:
    assert (place.job / "train.py").read_text() == "print('step 1')\n"
    variables = place.variables
    for name in ("HOME", "TMPDIR", "TRAINWARDEN_STORE", "TRAINWARDEN_KEY", "XDG_DATA_HOME"):
        assert Path(variables[name]).is_relative_to(place.folder)


def test_what_an_attack_changes_in_the_environment_is_put_back_to_the_byte_and_the_time(place: Range) -> None:
    kept = place.env / "lib" / "a.py"
    kept.write_text("honest")
    os.utime(kept, ns=(10**18, 10**18))
    (place.env / "lib" / "pkg").mkdir()
    (place.env / "lib" / "pkg" / "x").write_text("x")
    place.edit(kept, lambda text: text + b" no more")
    place.edit(kept, lambda text: text + b" at all")
    place.write(place.env / "lib" / "new.pth", "import x")
    place.remove(place.env / "lib" / "pkg")
    assert kept.read_text() == "honest no more at all"
    place.undo()
    assert (kept.read_text(), kept.stat().st_mtime_ns) == ("honest", 10**18)
    assert sorted(p.name for p in (place.env / "lib").iterdir()) == ["a.py", "pkg"]
    assert (place.env / "lib" / "pkg" / "x").read_text() == "x"


def test_what_a_crashed_session_left_is_put_back_by_the_next(place: Range) -> None:
    (place.env / "lib" / "a.py").write_text("honest")
    place.write(place.env / "lib" / "a.py", "evil")
    again = Range(place.folder, place.workload)
    again.undo()
    assert (place.env / "lib" / "a.py").read_text() == "honest"


def test_a_hard_link_to_a_file_outside_is_never_written_through(place: Range, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_text("precious")
    os.link(outside, place.job / "linked")
    place.write(place.job / "linked", "evil")
    assert (outside.read_text(), (place.job / "linked").read_text()) == ("precious", "evil")


def test_every_act_refuses_what_lies_outside(place: Range, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_text("precious")
    (place.job / "link").symlink_to(outside)
    inside = place.job / "train.py"
    for act in (
        lambda: place.write(outside, "evil"),
        lambda: place.write(place.job / "link", "evil"),
        lambda: place.edit(place.job / "link", bytes.upper),
        lambda: place.remove(outside),
        lambda: place.copy(inside, outside),
        lambda: place.copy(outside, inside),
        lambda: place.move(inside, outside),
    ):
        with pytest.raises(OutsideRange):
            act()
    assert outside.read_text() == "precious"
    place.remove(place.job / "link")
    assert outside.exists(), "a link is removed, not what it leads to"


def test_an_edit_that_changes_nothing_is_no_attack(place: Range) -> None:
    with pytest.raises(CannotDecide, match="changes nothing"):
        place.edit(place.job / "train.py", lambda text: text)


def test_edited_files_keep_their_mode_and_if_wanted_their_times(place: Range) -> None:
    file = place.job / "train.py"
    file.chmod(0o750)
    before = file.stat()
    place.edit(file, lambda text: text + b"#", keep_times=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o750
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_a_range_is_held_by_one_at_a_time(place: Range) -> None:
    with (
        Range(place.folder, place.workload),
        pytest.raises(UsageError, match="in use"),
        Range(place.folder, place.workload),
    ):
        pass
    with Range(place.folder, place.workload):
        pass


def test_a_job_whose_links_lead_out_is_not_copied(place: Range, tmp_path: Path) -> None:
    (place.workload.source / "out").symlink_to(tmp_path)
    with pytest.raises(OutsideRange, match="leads out of"):
        place.open()


def test_a_folder_that_links_lead_to_is_copied_beside_the_job(place: Range, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "shared.py").write_text("shared\n")
    (place.workload.source / "shared.py").symlink_to(Path("..") / "other" / "shared.py")
    job = dataclasses.replace(place.workload, below="source", also=(other,))
    assert linked_elsewhere(job.source) != []
    assert linked_elsewhere(job.source, *job.also) == []
    again = Range(place.folder, job)
    again.fresh()
    copied = again.job / "source" / "shared.py"  # a file: the seal of the job's folder covers it
    assert (copied.is_symlink(), copied.read_text()) == (False, "shared\n")
    assert (again.job / "other" / "shared.py").exists()
