"""A copied virtual environment is one of its own: its programs run in the copy, and the original is not touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainwarden.errors import UsageError
from trainwarden.redteam.environment import copy_venv, site_of
from trainwarden.redteam.workloads import own_job


def test_programs_of_a_copied_environment_run_in_the_copy(tmp_path: Path) -> None:
    venv, copy = tmp_path / "venv", tmp_path / "range" / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site_of(venv) / "told.py").write_text("import sys\nPREFIX = sys.prefix\n")
    program = venv / "bin" / "tells"
    program.write_text(f"#!{venv}/bin/python\nimport told\nprint(told.PREFIX)\n")
    program.chmod(0o755)
    copy_venv(venv, copy)
    said = subprocess.run([str(copy / "bin" / "tells")], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(copy)
    (site_of(copy) / "told.py").write_text("PREFIX = 'what a stopped session left'\n")
    copy_venv(venv, copy)
    assert "sys.prefix" in (site_of(copy) / "told.py").read_text()
    assert "sys.prefix" in (site_of(venv) / "told.py").read_text()


def test_a_folder_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a virtual environment"):
        copy_venv(tmp_path, tmp_path / "copy")


def test_a_users_job_is_run_by_the_copys_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    python = venv / "bin" / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for word in ("python", str(python)):
        job = own_job(tmp_path, [word, "train.py"], steps=20, first=10, out="out", checkpoints="*")
        assert (job.venv, job.command) == (venv, ("python", "train.py"))
