"""The supervisor runs from its own interpreter and its own copy, and starts nothing in a changed environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import Place, of_kind

from attacks.environment import library
from trainwarden import isolation
from trainwarden.model import FileChanged, Finding
from trainwarden.supervise.guarded import REFUSED

PARENT = """
import os
words = open(f"/proc/{os.getppid()}/cmdline").read().split("\\0")
maps = open(f"/proc/{os.getppid()}/maps").read()
print("isolated" if words[1:3] == ["-I", "-S"] else words, words[3])
print("libtrap" in maps, "libtrap" in open("/proc/self/maps").read(), os.environ.get("LD_PRELOAD", ""))
print(sorted(k for k in os.environ if k == "TRAINWARDEN_KEPT_ENV"))
"""


def run(place: Place, job: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = place.argv(str(place.python), *words)
    return subprocess.run(argv, cwd=job, env=place.env() | env, capture_output=True, text=True, timeout=120)


def test_the_supervisor_is_isolated_and_runs_its_own_copy(place: Place, job: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "rich.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (job / "parent.py").write_text(PARENT)
    done = run(place, job, "parent.py", PYTHONPATH=str(hostile), XDG_DATA_HOME=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    said, start = done.stdout.splitlines()[0].split()
    assert said == "isolated"
    assert Path(start).is_relative_to(tmp_path / "data" / "trainwarden" / "own")
    assert not (tmp_path / "ran").exists(), "a module that PYTHONPATH plants is not the supervisor's"


def test_preloaded_libraries_are_the_jobs_and_not_the_supervisors(place: Place, job: Path, tmp_path: Path) -> None:
    trap = library(tmp_path / "libtrap.so")
    (job / "parent.py").write_text(PARENT)
    done = run(place, job, "parent.py", LD_PRELOAD=str(trap))
    assert done.stdout.splitlines()[1:] == [f"False True {trap}", "[]"], done.stderr


def test_a_file_changed_after_the_seal_stops_the_start(place: Place, tmp_path: Path) -> None:
    """Between the seal and the command, where `approve` is called, a startup hook is planted."""
    (tmp_path / "train.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    hook = place.site / "planted.pth"
    program = f"""
import os, sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from pathlib import Path
from trainwarden.config import Config
from trainwarden.detect import Engine, all_detectors
from trainwarden.keys import SigningKey
from trainwarden.seal.command import parse_command
from trainwarden.store import Store
from trainwarden.supervise.supervisor import supervise
store = Store.open(Path({str(tmp_path / "store")!r}), create=True)
command = parse_command([{str(place.python)!r}, "train.py"], {str(tmp_path)!r}, dict(os.environ))
key = SigningKey.load_or_create(Path({str(tmp_path / "key")!r}))
plant = lambda seal: Path({str(hook)!r}).write_text("import os\\n")
watch = lambda sealed: Engine(all_detectors())
result = supervise(command, store, Config(), key, approve=plant, watcher=watch, on_event=print)
print(result.exit_code, [f.seen for f in result.findings])
"""
    try:
        argv = [sys.executable, "-c", program]
        done = subprocess.run(argv, env=place.env(), capture_output=True, text=True, timeout=120)
    finally:
        hook.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(str(REFUSED)), done.stderr
    assert "planted.pth is new" in last
    assert "not started" in done.stdout
    assert not (tmp_path / "ran").exists()


def test_the_writer_of_a_changed_file_is_logged_or_the_reason_why_not(place: Place, job: Path) -> None:
    path = place.site / "library.py"
    path.write_text("VALUE = 1\n")
    words = f"start join:0/1 steps:1 write:{path} until_acked exit:1 again start join:0/1 steps:1 bye".split()
    ended = place.run(job, str(place.python), "fake_launcher.py", *words)
    path.write_text("VALUE = 1\n")
    change = of_kind(ended.entries, FileChanged)[0]
    seen = next(f.seen for f in of_kind(ended.entries, Finding) if f.detector == "environment")
    if change.writer is None:
        assert change.untold
        assert "not told by the system" in seen
    else:
        assert f"by process {change.writer.pid}" in seen
        assert change.writer.uid in (os.getuid(), -1)


# ------------------------------------------------------------------------- the copy


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "src" / "trainwarden"
    folder.mkdir(parents=True)
    (folder / "cli.py").write_text("A = 1\n")
    monkeypatch.setattr(isolation, "_package", lambda: folder)
    return folder


def test_the_copy_is_private_whole_and_used_again(package: Path) -> None:
    copy = isolation.own_copy()
    assert copy.stat().st_mode & 0o777 == 0o700
    assert (copy / "trainwarden" / "cli.py").read_text() == "A = 1\n"
    (packages,) = copy.parent.glob("packages-*")
    for name in ("msgspec", "blake3", "cryptography"):
        assert (packages / name / "__init__.py").is_file()
    assert not (packages / "torch").exists()
    assert not list(packages.glob("*.pth"))
    assert isolation.own_copy() == copy


def test_an_edit_of_the_files_that_were_copied_does_not_reach_the_copy(package: Path) -> None:
    copy = isolation.own_copy()
    (package / "cli.py").write_text("A = 'evil'\n")
    assert (copy / "trainwarden" / "cli.py").read_text() == "A = 1\n"
    assert isolation.own_copy() != copy, "a development install is copied again"


def test_a_home_that_cannot_be_written_is_one_error_with_a_hint(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(isolation.UsageError) as e:
        isolation.restart_isolated(["run"])
    assert "XDG_DATA_HOME" in e.value.hint


def test_an_old_copy_goes_unless_a_process_runs_from_it(package: Path) -> None:
    used = isolation.own_copy()
    held = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"import fcntl, os, sys; fd = os.open({str(used)!r}, os.O_RDONLY)\n"
         "fcntl.flock(fd, fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert held.stdout is not None
    held.stdout.readline()
    os.utime(used, (1, 1))
    (package / "cli.py").write_text("B = 2\n")
    isolation.own_copy()
    assert used.is_dir()
    held.communicate()
    (package / "cli.py").write_text("C = 33\n")
    isolation.own_copy()
    assert not used.exists()
