"""An attack that would act outside of its copy is refused, and nothing is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainwarden.redteam import guards
from trainwarden.redteam.guards import OutsideRange
from trainwarden.redteam.workloads import refuse_outside


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_path_below_the_range_is_allowed(tmp_path: Path) -> None:
    assert guards.inside(tmp_path, tmp_path / "job" / ".." / "job" / "x") == tmp_path.resolve() / "job" / "x"


@pytest.mark.parametrize("path", ["/etc/passwd", "{range}", "{range}/../elsewhere", "{range}/job/../../elsewhere"])
def test_absolute_paths_parents_and_the_range_itself_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(OutsideRange, match="not below the copy") as refused:
        guards.inside(tmp_path / "range", Path(path.format(range=tmp_path / "range")))
    assert refused.value.hint


def test_a_link_out_of_the_range_is_refused_as_folder_and_as_last_part(tmp_path: Path) -> None:
    outside, copy = tmp_path / "outside", tmp_path / "range"
    outside.mkdir()
    copy.mkdir()
    (outside / "file").write_text("precious")
    (copy / "folder").symlink_to(outside)
    (copy / "file").symlink_to(outside / "file")
    for path in (copy / "folder" / "file", copy / "folder" / "new", copy / "file"):
        with pytest.raises(OutsideRange):
            guards.inside(copy, path)
    assert sorted(p.name for p in guards.linked_elsewhere(copy)) == ["file", "folder"]


def test_a_link_within_the_range_is_followed_and_allowed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert guards.inside(tmp_path, tmp_path / "link") == (tmp_path / "real").resolve()
    assert guards.linked_elsewhere(tmp_path) == []


def test_a_foreign_process_is_not_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    for foreign in (sleeper.pid, os.getpid(), os.getppid(), 1):
        with pytest.raises(OutsideRange, match="was not started below the range"):
            guards.send(foreign, signal.SIGKILL, [])
    assert sleeper.poll() is None


def test_a_process_of_the_range_is_signalled_and_a_gone_one_is_no_error(sleeper: subprocess.Popen[bytes]) -> None:
    guards.send(sleeper.pid, signal.SIGKILL, [sleeper.pid])
    assert sleeper.wait(60) == -signal.SIGKILL
    guards.send(sleeper.pid, signal.SIGKILL, [sleeper.pid])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_allowed(host: str) -> None:
    assert guards.loopback(host)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "0.0.0.0", "::", "example.org", "", "localhost.example.org", "169.254.0.1"]
)
def test_any_other_host_is_refused(host: str) -> None:
    with pytest.raises(OutsideRange, match="not a loopback address"):
        guards.loopback(host)


@pytest.mark.parametrize("word", ["/data/out", "--out=/data/out", "../out", "~/out", "a/../../out"])
def test_a_users_command_that_names_a_place_outside_of_its_job_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(OutsideRange, match="outside of the job's folder") as refused:
        refuse_outside(word, tmp_path / "job", tmp_path / "venv", ())
    assert "--reads" in refused.value.hint


@pytest.mark.parametrize(
    "word", ["train.py", "--out", "out", "--lr=1e-3", "a/../b", "{job}/x", "{reads}/x", "{venv}/bin/x"]
)
def test_places_of_the_job_and_those_that_are_only_read_are_allowed(tmp_path: Path, word: str) -> None:
    job, venv, reads = (tmp_path / name for name in ("job", "venv", "reads"))
    refuse_outside(word.format(job=job, venv=venv, reads=reads), job, venv, (reads,))
    if word.startswith("{"):  # for their place alone: to a job elsewhere the same words are refused
        with pytest.raises(OutsideRange, match="outside of the job's folder"):
            refuse_outside(word.format(job=job, venv=venv, reads=reads), tmp_path / "other", tmp_path / "env", ())
