"""The sampled audit in words: how much was drawn and replayed, what that finds, what it cost (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from trainwarden.casefile import CaseFile
from trainwarden.model import UnitKind, UnitResult, UnitsDrawn
from trainwarden.report.summary import Fact
from trainwarden.report.words import count, stage_name
from trainwarden.sampling import Sampled, needed, sampled

_KINDS = {
    UnitKind.NEAR: "Steps whose state was kept",
    UnitKind.FAR: "Steps between",
}


def sampled_facts(case: CaseFile) -> list[Fact]:
    """A line each: units, chances of finding, stages, cost; empty where a run had no sampled audit."""
    told = sampled(case.entries)
    return list(_facts(case, told)) if told is not None else []


def _facts(case: CaseFile, told: Sampled) -> Iterator[Fact]:
    units = told.all
    drawn = f"{count(units.drawn, 'unit')} drawn from {_sources(case)}" if units.drawn else "no unit was drawn"
    note = f"{drawn}; a unit is one rank's execution of one step"
    yield Fact("Audited", f"{units.audited:,} of {count(units.units, 'unit')}, p = {_share(units.share)}", note)
    if told.results:
        yield Fact("Came out", ", ".join(f"{n:,} {r.value}" for r, n in told.results.items()), _open(told))
    elif told.end is None or not told.end.reason:
        yield Fact("Came out", "nothing was replayed", _open(told))
    for kind, words in _KINDS.items():
        part = told.kinds[kind]
        if part.units:
            compared = ", ".join(stage_name(s) for s in part.stages) or "none"
            value = f"{part.audited:,} of {part.units:,}, p = {_share(part.share)}"
            yield Fact(words, value, f"compared: {compared}{_of_whom(kind)}")
    if units.audited:
        chances = ", ".join(f"{k:,}: {_share(p)}" for k, p in told.detects.items())
        enough = f"{told.needed:,} bad units are found with 95 %" if told.needed else ""
        yield Fact("Bad units that it finds", chances, f"1 − (1 − p)^k for k bad units; {enough}")
        yield Fact("Against who knows the states", *_informed(told))
    if told.end is not None:
        end = told.end
        cost = f"{end.spent_ns / 1e9:,.1f} of {end.job_cpu_ns / 1e9:,.1f} CPU seconds"
        share = _share(end.spent_ns / end.job_cpu_ns) if end.job_cpu_ns else "0 %"
        yield Fact("Cost", f"{cost}, {share}", f"the budget is {_share(end.budget)}, beside training and idle priority")
        if end.reason:
            yield Fact("Not done", end.reason, _waiting(told))


def _informed(told: Sampled) -> tuple[str, str]:
    """What is left against an insider in the rank who is honest whenever a state is kept."""
    between = told.kinds[UnitKind.FAR]
    enough = needed(between.share)
    found = f"{enough:,} bad units are found with 95 %" if enough else "nothing"
    return found, "code inside a rank sees when its state is kept; only the steps between count against it"


def _of_whom(kind: UnitKind) -> str:
    return " of the drawn rank" if kind is UnitKind.NEAR else ""


def _sources(case: CaseFile) -> str:
    found = dict.fromkeys(e.source for e in case.entries if isinstance(e, UnitsDrawn))
    words = {
        "log server": "the log server's signatures",
        "beacon": "a beacon",
        "system": "this host's generator, so an outsider has its word that it drew once",
    }
    return " and ".join(words.get(s, s) for s in found)


def _open(told: Sampled) -> str:
    undecided = told.results.get(UnitResult.UNDECIDED, 0) + told.results.get(UnitResult.DIFFERS, 0)
    return "what is undecided or differs unconfirmed is no pass" if undecided else ""


def _waiting(told: Sampled) -> str:
    return f"{count(told.waiting, 'drawn unit')} not run" if told.waiting else ""


def _share(share: float) -> str:
    """A share with three digits, small ones too, never rounded up to all or down to none."""
    if share in (0, 1):
        return f"{share * 100:.0f} %"
    if share > 0.999:
        return "over 99.9 %"
    return f"{share * 100:.3g} %"
