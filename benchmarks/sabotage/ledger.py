"""The ledger of SabotageBench's cases that are done, and how long a row of it counts."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

Row = Mapping[str, Any]

# What a row depends on, beside its technique's file and its workload: how runs are struck, and who looks at them.
_RED = "src/trainwarden/redteam"
STRUCK = (f"{_RED}/place.py", f"{_RED}/running.py", "benchmarks/sabotage/jobs.py")
LOOKED = (
    *(f"src/trainwarden/{name}" for name in ("audit", "detect", "keys", "log", "record", "seal", "supervise")),
    *("src/trainwarden/wire", "src/trainwarden/codeform.py", f"{_RED}/judging.py", f"{_RED}/trial.py"),
)


class Ledger:
    """The rows of cases that are done, appended as they finish, each with the state of the code that made it.

    A row counts as long as nothing changed that its run was struck by: its technique's file, what techniques share,
    its workload. One that an earlier state of recorder, detectors or audit looked at still counts, names that state's
    commit and is made again when there is time (`earlier`): a change of one detector does not undo hours, nor hide.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        self.rows: dict[str, Row] = {row["case"]: row for row in rows if row.get("struck") == struck(row)}
        if len(self.rows) < len(lines):
            self._write_anew()

    def add(self, row: Row) -> None:
        """Append the row of a case; an earlier one of the same case is replaced."""
        row = {**row, "struck": struck(row), "looked": code_of(*LOOKED), "commit": commit()}
        self.rows[row["case"]] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _write_anew(self) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()), encoding="utf-8")
        partial.replace(self.path)


def earlier(row: Row) -> bool:
    """Whether another state of the code looked at a run than the present one."""
    return bool(row["looked"] != code_of(*LOOKED))


def struck(row: Row) -> str:
    """The state of the code that the run of a row is struck by."""
    return f"{code_of(*STRUCK, *_files(row['technique']), *source_of(row['workload']))}-{_settings(row['workload'])}"


@cache
def _files(technique: str) -> tuple[str, ...]:
    """The file of a technique, and those of the catalogue that it imports."""
    pending = list((ROOT / "attacks").glob(f"t{technique}_*.py")) if technique else []
    found: set[Path] = set()
    while pending:
        file = pending.pop()
        found.add(file)
        named = re.findall(r"^from attacks\.([\w.]+) import", file.read_text(encoding="utf-8"), re.MULTILINE)
        texts = [ROOT / "attacks/_shared/scene.py"] if file.stem == "payload" else []  # travels as text
        imported = [ROOT / "attacks" / f"{name.replace('.', '/')}.py" for name in named]
        pending += [f for f in (*imported, *texts) if f not in found]
    return tuple(sorted(str(f.relative_to(ROOT)) for f in found))


@cache
def _settings(workload: str) -> str:
    """A digest over what a workload is set to."""
    from trainwarden.redteam.workloads import WORKLOADS

    told = repr(sorted((k, str(v)) for k, v in vars(WORKLOADS[workload]).items() if k != "has")).replace(str(ROOT), "")
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def source_of(workload: str) -> tuple[str, ...]:
    """The folders of the repository that a workload's job is made of."""
    from trainwarden.redteam.workloads import WORKLOADS

    job = WORKLOADS.get(workload)
    folders = (job.source, *job.also) if job else ()
    return tuple(str(folder.relative_to(ROOT)) for folder in folders)


@cache
def code_of(*places: str) -> str:
    """A digest over the Python files below some of the repository's folders, or files, comments and docstrings left
    out."""
    files = {
        f for place in places for f in ((ROOT / place).rglob("*.py") if (ROOT / place).is_dir() else [ROOT / place])
    }
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + _meaning(file.read_text(encoding="utf-8")) + b"\0")
    return digest.hexdigest()[:16]


def _meaning(source: str) -> bytes:
    """The source as it is compiled: without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree).encode()


@cache
def commit() -> str:
    """The repository's commit, with a plus where files differ from it."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
