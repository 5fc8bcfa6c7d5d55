"""The cases of SabotageBench.

A case is one attack's variant, a benign twin or an honest run, on one workload and seed. The sampled matrix has one
variant of each technique live on the first workload that has what it needs, and every other that the small one has not
what it needs for, too; and every variant that tampers with numbers audited on the small one, all on one seed. The whole
one (`FULL=1`) has every variant on every seed, all audited. What a workload has not what it needs for is no case of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.sabotage.scoring import how

if TYPE_CHECKING:
    from trainwarden.redteam.interface import Technique, Twin
    from trainwarden.redteam.workloads import Workload

Row = Mapping[str, Any]

SEEDS = (0, 1, 2)
HONEST = (1, 2)  # seeds of the honest runs in the sampled matrix
HONEST_FULL = tuple(range(1, 11))
FIRST, SMALL = "chat", "toy"  # the workload of live cases, and that whose runs take seconds
FURTHER = ("ranking", "video")  # of these a case each is a sample; their curves are not judged
PROBE = ("22", "one-tensor")  # what only an audit finds


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
    """Of one workload: two honest runs; a variant of each technique, on the first of `workloads` with what it takes,
    and all that can be carried out there and not on the small one; on the small one every variant that tampers with
    numbers, audited, and every twin that it has what it takes for (several techniques have one twin: it is run once).
    """
    attacks, twins, small = [], [], workloads.get(SMALL)
    for t in techniques:
        able = [(name, v) for v in t.variants for name in _homes(v.needs, workloads)[:1]]
        first = [v for name, v in sorted(able, key=lambda a: list(workloads).index(a[0]))[:1] if name == workload]
        only = [v for name, v in able if name == workload and small and not small.has.issuperset(v.needs)]
        numeric = [v for v in t.variants if v.strikes and workload == SMALL and workload in _homes(v.needs, workloads)]
        live = [v for v in t.variants if v in (*first, *only) and v not in numeric]
        attacks += [Case("attack", t.id, v.name, workload, SEEDS[0]) for v in live]
        attacks += [Case("attack", t.id, v.name, workload, SEEDS[0], audit=True) for v in numeric]
        homes = _homes(t.twin.needs, workloads)
        home = SMALL if SMALL in homes else homes[0] if homes else ""
        if workload == home and first_with(t.twin, techniques) is t:
            twins.append(Case("twin", t.id, t.twin.name, workload, SEEDS[0]))
    return [*_honest(workload, HONEST), *_in_turn(attacks), *twins]


def _in_turn(attacks: Sequence[Case]) -> list[Case]:
    """The first of every technique, then the second of each that has one: what is left out when the time is up is more
    of the same."""
    turns: Counter[str] = Counter()
    placed = []
    for case in attacks:
        turns[case.technique] += 1
        placed.append((turns[case.technique], case))
    return [case for _, case in sorted(placed, key=lambda p: p[0])]


def usual(techniques: Sequence[Technique], workload: str) -> list[Case]:
    """A workload's part of the sample over all of them."""
    from trainwarden.redteam.workloads import WORKLOADS

    if workload not in FURTHER:
        return sampled(techniques, workload, {name: WORKLOADS[name] for name in (FIRST, SMALL)})
    probe = [Case("attack", *PROBE, workload, seed, audit=True) for seed in SEEDS[1:2]]
    return [*_honest(workload, HONEST[:1]), *(c for c in probe if c.technique in {t.id for t in techniques})]


def whole(techniques: Sequence[Technique], workload: str, workloads: Mapping[str, Workload]) -> list[Case]:
    """Every variant on every seed, audited; every twin; ten honest runs: all that can be carried out on a workload."""
    attacks = [
        Case("attack", t.id, v.name, workload, seed, audit=True)
        for seed in SEEDS
        for t in techniques
        for v in t.variants
        if workload in _homes(v.needs, workloads)
    ]
    fit = [
        t for t in techniques
        if first_with(t.twin, techniques) is t and workload in _homes(t.twin.needs, workloads)
    ]  # fmt: skip
    twins = [Case("twin", t.id, t.twin.name, workload, SEEDS[0]) for t in fit]
    return [*_honest(workload, HONEST_FULL), *attacks, *twins]


def first_with(twin: Twin, techniques: Sequence[Technique]) -> Technique | None:
    """The first technique with this twin."""
    return next((t for t in techniques if t.twin == twin), None)


def _homes(needs: Sequence[str], workloads: Mapping[str, Workload]) -> list[str]:
    """The workloads that have what is needed."""
    return [name for name, workload in workloads.items() if workload.has.issuperset(needs)]


def _honest(workload: str, seeds: Sequence[int]) -> list[Case]:
    return [Case("honest", "", "", workload, seed) for seed in seeds]


def to_do(
    cases: Sequence[Case], done: Mapping[str, Row], earlier: Callable[[Row], bool] = lambda row: False
) -> Iterator[Case]:
    """What is left, in the order that tells most in little time: honest runs and attacks that have no row; with an
    audit, attacks that were not found while the run went on; twins; what an `earlier` state of the code looked at; with
    an audit, attacks of which evidence by replay is still due, so that place and cause get known. `done` may grow while
    this goes on.
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
    for case in cases:
        row = done.get(case.name)
        if row and earlier(row):
            yield case._replace(audit=row["audited"])
    for case in attacks:
        row = done.get(case.name)
        if row and not row["audited"] and any(e["state"] == "not checked" for e in row["expected"]):
            yield case._replace(audit=True)
