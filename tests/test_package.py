"""What the package promises as a whole: its spine, light imports, no torch where none is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainwarden

SPINE = {
    *("Audit", "CaseFile", "Checkpoint", "Config", "Diverged", "Entry", "Explanation", "Finding", "Inconclusive"),
    *("LogReader", "Matched", "Recorded", "Seal", "SignedSeal", "SigningKey", "Stage", "Standing", "StepRecord"),
    *("Store", "TrainWardenError", "TreeHead", "Verdict", "build_room", "check_seal", "load", "load_case"),
    *("load_config", "parse_command", "prove", "seal_command", "supervise", "verify_log", "verify_run", "write_html"),
}
LOADED_BY_RUNS = """
import sys
from trainwarden.cli import main
code = main(sys.argv[1:])
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "transformers"}))
sys.exit(code)
"""


def python(code: str, *args: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=cwd,
        env={**os.environ, "TRAINWARDEN_KEY": str(cwd / "key")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_spine_is_what_the_docs_promise_and_every_name_is_there() -> None:
    assert set(trainwarden.__all__) == SPINE
    assert list(trainwarden.__all__) == sorted(trainwarden.__all__)
    for name in trainwarden.__all__:
        assert getattr(trainwarden, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainwarden.nothing  # noqa: B018


def test_importing_the_package_loads_the_standard_library_only(tmp_path: Path) -> None:
    told = python(
        "import json, sys; before = set(sys.modules); import trainwarden; "
        "print(json.dumps(sorted({n.partition('.')[0] for n in set(sys.modules) - before})))",
        cwd=tmp_path,
    )
    assert set(json.loads(told)) - {"trainwarden"} <= sys.stdlib_module_names


def test_runs_needs_no_torch(tmp_path: Path) -> None:
    from trainwarden.store import Store

    Store.open(tmp_path / ".trainwarden", create=True).close()
    assert python(LOADED_BY_RUNS, "runs", cwd=tmp_path).splitlines()[-1] == "[]"


def test_the_command_line_is_built_without_torch(tmp_path: Path) -> None:
    told = python(
        "import sys; from trainwarden.cli import build_parser; build_parser(); print('torch' in sys.modules)",
        cwd=tmp_path,
    )
    assert told.strip() == "False"


def test_wheel_holds_the_package_and_neither_attacks_nor_workloads() -> None:
    import tomllib

    root = Path(__file__).resolve().parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/trainwarden"]
    assert project["project"]["scripts"] == {"trainwarden": "trainwarden.cli:main"}
    package = root / "src" / "trainwarden"
    assert (package / "py.typed").is_file()
    assert (package / "record" / "inject" / "sitecustomize.py").is_file()
    assert not [p for p in package.rglob("*") if {"attacks", "workloads"} & set(p.parts[len(package.parts) :])]
