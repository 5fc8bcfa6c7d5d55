"""The cases of SabotageBench, and the ledger of those that are done.

A case is one attack's variant, a benign twin or an honest run, on one workload and seed. The sampled matrix has one
variant of each technique on one seed and audits what was not found while the run went on; the whole one (`FULL=1`) has
every variant on every seed, all audited.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.machine import ROOT
from benchmarks.sabotage.scoring import how

if TYPE_CHECKING:
    from trainwarden.redteam.interface import Technique

Row = Mapping[str, Any]

SEEDS = (0, 1, 2)
HONEST = (1, 2)  # seeds of the honest runs in the sampled matrix
HONEST_FULL = tuple(range(1, 11))


class Case(NamedTuple):
    """One cell of the matrix."""

    kind: str  # attack | twin | honest
    technique: str
    variant: str
    workload: str
    seed: int
    audit: bool = False

    @property
    def name(self) -> str:
        """What the case is called in rows, folders and verdicts."""
        words = [self.technique, *self.variant.split(), self.workload, str(self.seed)]
        return "-".join(w for w in ((self.kind, *words) if self.kind != "attack" else words) if w)


def sampled(techniques: Sequence[Technique], workload: str = "chat") -> list[Case]:
    """One variant of each technique and one seed, not audited; every twin; two honest runs."""
    attacks = [Case("attack", t.id, t.variants[0].name, workload, SEEDS[0]) for t in techniques]
    return [*_honest(workload, HONEST), *attacks, *_twins(techniques, workload)]


def whole(techniques: Sequence[Technique], workload: str = "chat") -> list[Case]:
    """Every variant on every seed, audited; every twin; ten honest runs."""
    cells = [(t.id, v.name, seed) for seed in SEEDS for t in techniques for v in t.variants]
    attacks = [Case("attack", t, v, workload, seed, audit=True) for t, v, seed in cells]
    return [*_honest(workload, HONEST_FULL), *attacks, *_twins(techniques, workload)]


def _honest(workload: str, seeds: Sequence[int]) -> list[Case]:
    return [Case("honest", "", "", workload, seed) for seed in seeds]


def _twins(techniques: Sequence[Technique], workload: str) -> list[Case]:
    return [Case("twin", t.id, t.twin.name, workload, SEEDS[0]) for t in techniques]


def to_do(cases: Sequence[Case], done: Mapping[str, Row]) -> Iterator[Case]:
    """What is left, in the order that tells most in little time: honest runs and attacks that have no row; with an
    audit, attacks that were not found while the run went on; twins. `done` may grow while this goes on.
    """
    for case in (c for c in cases if c.kind != "twin"):
        row = done.get(case.name)
        if row is None or (case.audit and not row["audited"]):
            yield case
    for case in (c for c in cases if c.kind == "attack"):
        row = done.get(case.name)
        if row and not row["audited"] and how(row) in ("missed", "not checked"):
            yield case._replace(audit=True)
    yield from (c for c in cases if c.kind == "twin" and c.name not in done)


class Ledger:
    """The rows of cases that are done, appended as they finish; those of other code are put aside."""

    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = path, code
        self.rows: dict[str, Row] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        self.rows = {row["case"]: row for row in rows if row["code"] == code}
        if len(self.rows) < len(lines):
            self._write_anew()

    def add(self, row: Row) -> None:
        """Append the row of a case; an earlier one of the same case is replaced."""
        self.rows[row["case"]] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "code": self.code}) + "\n")

    def _write_anew(self) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()), encoding="utf-8")
        partial.replace(self.path)


def code_of(*folders: str) -> str:
    """A digest over the Python files of some of the repository's folders: rows of other code do not count."""
    digest = hashlib.sha256()
    for file in sorted(f for folder in folders for f in (ROOT / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
