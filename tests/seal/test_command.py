"""Every supported form of a launch command, and a clear error for the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trainwarden.errors import UsageError
from trainwarden.seal.command import LaunchCommand, parse_command

PYTHON = sys.executable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("print(1)\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "x=y").write_text("")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, first in (
        ("torchrun", f"#!{PYTHON}"),
        ("accelerate", f"#!/bin/sh\n'''exec' {PYTHON} \"$0\" \"$@\"\n' '''"),
        ("mytrain", f"#!/usr/bin/env {PYTHON}"),
        ("prog", "#!/bin/sh"),
    ):
        (bin_folder / name).write_text(first + "\n")
        (bin_folder / name).chmod(0o755)
    (bin_folder / "notexec").write_text("")
    return tmp_path


def parse(folder: Path, *words: str) -> LaunchCommand:
    return parse_command(words, str(folder), {"PATH": f"{folder}/bin:{os.environ['PATH']}"})


@pytest.mark.parametrize(
    ("words", "launcher", "script", "module", "world"),
    [
        ([PYTHON, "train.py", "--lr", "1"], "python", "train.py", "", 0),
        ([PYTHON, "-u", "-Wignore", "-X", "dev", "./train.py"], "python", "train.py", "", 0),
        ([PYTHON, "--check-hash-based-pycs", "always", "train.py"], "python", "train.py", "", 0),
        ([PYTHON, "-um", "pkg.mod", "-m", "x"], "python", "", "pkg.mod", 0),
        ([PYTHON, "-mpkg"], "python", "", "pkg", 0),
        ([PYTHON, "-c", "print(1)", "train.py"], "python", "", "", 0),
        (["torchrun", "--nproc-per-node", "2", "train.py"], "torchrun", "train.py", "", 2),
        (["torchrun", "--nproc_per_node=2", "--nnodes=3", "train.py"], "torchrun", "train.py", "", 6),
        (["torchrun", "--standalone", "--nnodes", "2:2", "train.py", "--nnodes=9"], "torchrun", "train.py", "", 2),
        (["torchrun", "--nproc-per-node=gpu", "train.py"], "torchrun", "train.py", "", 0),
        (["torchrun", "--nnodes=1:4", "train.py"], "torchrun", "train.py", "", 0),
        (["torchrun", "--nproc-per-node=2", "-m", "pkg.mod", "a"], "torchrun", "", "pkg.mod", 2),
        ([PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=4", "train.py"], "torchrun", "train.py", "", 4),
        (["accelerate", "launch", "--multi_gpu", "--num_processes", "8", "train.py"], "accelerate", "train.py", "", 8),
        (["mytrain", "--x"], "script", "", "", 0),
        (["bin/mytrain"], "script", "", "", 0),
    ],
)
def test_forms(folder: Path, words: list[str], launcher: str, script: str, module: str, world: int) -> None:
    command = parse(folder, *words)
    assert command.launcher == launcher
    assert command.script == (str(folder / script) if script else "")
    assert (command.module, command.world) == (module, world)
    assert command.interpreter == PYTHON
    assert command.argv == tuple(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command"),
        (["nonesuch"], "no such command"),
        (["./nonesuch"], "no such command"),
        (["prog", "train.py"], "not a Python command"),
        (["bin/notexec"], "not executable"),
        ([PYTHON], "names no script"),
        ([PYTHON, "-"], "names no script"),
        ([PYTHON, "absent.py"], "no such script"),
        (["torchrun", "--nproc-per-node", "2"], "names no training script"),
        ([PYTHON, "train.py", "\udce9"], "not valid UTF-8"),
    ],
)
def test_errors_have_a_hint(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as e:
        parse(folder, *words)
    assert e.value.hint


def test_words_that_name_files_outputs_and_seeds(folder: Path) -> None:
    words = [
        "train.py",
        "--data=data",
        "x=y",
        "--out",
        "data",
        "--seed",
        "5",
        "model.seed=-7",
        "--seedling",
        "3",
        "none",
    ]
    command = parse(folder, PYTHON, *words)
    assert command.paths == (str(folder / "data"), str(folder / "x=y"))
    assert command.outputs == (str(folder / "data"),)
    assert command.seeds == {"seed": 5, "model.seed": -7}


def test_virtual_environment_is_named_by_its_own_link(folder: Path) -> None:
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(os.path.realpath(PYTHON))
    (venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(PYTHON))}\n")
    assert parse(folder, "venv/bin/python", "train.py").interpreter == str(venv / "bin" / "python")
