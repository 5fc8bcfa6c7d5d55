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
    from trainwarden.redteam.workloads import Workload

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


def sampled(techniques: Sequence[Technique], workload: str, workloads: Mapping[str, Workload]) -> list[Case]:
    """A variant of each technique on one seed, not audited, and every twin, each on the first of `workloads` that has
    what it needs; of these, those of one workload, and two honest runs of it.
    """
    attacks, twins = [], []
    for t in techniques:
        able = [(name, v) for name in workloads for v in t.variants if _has(v.needs, name, workloads)]
        home, variant = next(iter(able), (next(iter(workloads)), t.variants[0]))
        if home == workload:
            attacks.append(Case("attack", t.id, variant.name, workload, SEEDS[0]))
        if _homes(t.twin.needs, workloads)[0] == workload:
            twins.append(Case("twin", t.id, t.twin.name, workload, SEEDS[0]))
    return [*_honest(workload, HONEST), *attacks, *twins]


def whole(techniques: Sequence[Technique], workload: str, workloads: Mapping[str, Workload]) -> list[Case]:
    """Every variant on every seed, audited; every twin; ten honest runs: all that can be carried out on a workload."""
    attacks = [
        Case("attack", t.id, v.name, workload, seed, audit=True)
        for seed in SEEDS
        for t in techniques
        for v in t.variants
        if workload in _homes(v.needs, workloads)
    ]
    fit = [t for t in techniques if workload in _homes(t.twin.needs, workloads)]
    twins = [Case("twin", t.id, t.twin.name, workload, SEEDS[0]) for t in fit]
    return [*_honest(workload, HONEST_FULL), *attacks, *twins]


def _homes(needs: Sequence[str], workloads: Mapping[str, Workload]) -> list[str]:
    """The workloads that have what is needed; if none has, the first, where it is told as not carried out."""
    return [name for name in workloads if _has(needs, name, workloads)] or list(workloads)[:1]


def _has(needs: Sequence[str], name: str, workloads: Mapping[str, Workload]) -> bool:
    return workloads[name].has.issuperset(needs)


def _honest(workload: str, seeds: Sequence[int]) -> list[Case]:
    return [Case("honest", "", "", workload, seed) for seed in seeds]


def to_do(cases: Sequence[Case], done: Mapping[str, Row]) -> Iterator[Case]:
    """What is left, in the order that tells most in little time: honest runs and attacks that have no row; with an
    audit, attacks that were not found while the run went on; twins; with an audit, attacks of which evidence by replay
    is still due, so that place and cause get known. `done` may grow while this goes on.
    """
    for case in (c for c in cases if c.kind != "twin"):
        row = done.get(case.name)
        if row is None or (case.audit and not row["audited"]):
            yield case
    attacks = [c for c in cases if c.kind == "attack"]
    for case in attacks:
        row = done.get(case.name)
        if row and not row["audited"] and how(row) in ("missed", "not checked"):
            yield case._replace(audit=True)
    yield from (c for c in cases if c.kind == "twin" and c.name not in done)
    for case in attacks:
        row = done.get(case.name)
        if row and not row["audited"] and any(e["state"] == "not checked" for e in row["expected"]):
            yield case._replace(audit=True)


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
