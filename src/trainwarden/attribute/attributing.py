"""Attribution of an incident: its evidence opened, clocks compared, artefacts traced, hypotheses weighed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from trainwarden.attribute.clocks import estimate
from trainwarden.attribute.facts import Facts, Login, Replayed
from trainwarden.attribute.nouns import Attribution
from trainwarden.attribute.opportunity import matrix
from trainwarden.attribute.tables import Tables, named, open_tables
from trainwarden.attribute.timeline import write_timeline
from trainwarden.attribute.tracing import trace
from trainwarden.attribute.weighing import conclude, hypotheses_of, weigh
from trainwarden.casefile import Broken, CaseFile, load_case
from trainwarden.errors import LogTampered, StoreError
from trainwarden.model import Artefact, CustodyEvent, Diverged, Entry, Explanation, Incident, ProcessStarted
from trainwarden.store import Store

_MOST = 20_000  # such events at most
_FAULTS = "act = 'other' AND path = 'hardware'"


def attribute(store: Store, incident: Incident, timeline: Path | None = None) -> Attribution:
    """What the evidence of an incident says; with `timeline` the timeline of all sources is written there.

    Raises:
        StoreError, StoreTampered, CustodyTampered: evidence is missing, or is not what was taken in.
        UsageError: the timeline cannot be written.
    """
    whole, broken = _whole(store, incident.runs)
    entries = [entry for case in whole for entry in case.entries]
    tables = open_tables(store, incident.custody)
    try:
        return attribution_of(
            tables,
            incident.id,
            incident.artefacts,
            aliases=_aliases(store, incident.artefacts),
            jobs=frozenset(e.pid for e in entries if isinstance(e, ProcessStarted)),
            replayed=msgspec.structs.replace(replayed_of(entries), broken=broken),
            timeline=timeline,
        )
    finally:
        tables.close()


def attribution_of(
    tables: Tables,
    incident: str,
    artefacts: Sequence[Artefact],
    *,
    aliases: Mapping[str, Sequence[str]] = {},
    jobs: frozenset[int] = frozenset(),
    replayed: Replayed = Replayed(),  # noqa: B008
    timeline: Path | None = None,
) -> Attribution:
    """The same of tables that are open already.

    Raises:
        UsageError: the timeline cannot be written.
    """
    clocks = estimate(tables)
    tables.set_clocks(clocks)
    if timeline is not None:
        write_timeline(tables, timeline)
    traces = trace(tables, artefacts, aliases, jobs)
    deeds = tuple(sorted((d for t in traces for d in t.deeds), key=lambda d: d.time_ns))
    opportunity = matrix(tables, artefacts, deeds, (p for t in traces for p in t.pointers))
    agents = sorted({d.who for d in deeds})
    facts = Facts(
        traces=traces,
        deeds=deeds,
        opportunity=opportunity,
        evidence=named(tables.evidence),
        replayed=replayed,
        logins=_logins(tables, agents),
        touched=_touched(tables, artefacts),
        hardware=tuple(tables.events(_FAULTS, limit=1000)),
        instructions=_instructions(tables, agents),
    )
    pieces, standings = weigh(facts, hypotheses_of(facts))
    return Attribution(
        incident=incident,
        events=tables.count(),
        sources=len(tables.evidence),
        clocks=clocks,
        traces=traces,
        deeds=deeds,
        matrix=opportunity.rows,
        hypotheses=standings,
        pieces=pieces,
        conclusion=conclude(facts, pieces, standings),
    )


def _whole(store: Store, runs: Sequence[str]) -> tuple[list[CaseFile], tuple[str, ...]]:
    """The runs whose logs verify, and the others."""
    whole, broken, known = list[CaseFile](), list[str](), set(store.runs())
    for run in runs:
        try:
            case = load_case(store, run, look_at_files=False) if run in known else None
        except LogTampered:
            case = None
        if case is None or isinstance(case.state, Broken):
            broken.append(run)
        else:
            whole.append(case)
    return whole, tuple(broken)


def replayed_of(entries: Iterable[Entry]) -> Replayed:
    """What verdicts and explanations of the runs say."""
    found = list(entries)
    told = [e for e in found if isinstance(e, Explanation)]
    return Replayed(
        diverged=sum(isinstance(e, Diverged) for e in found),
        explained=sum(e.cause is not None for e in told),
        unexplained=sum(e.cause is None for e in told),
        by_file=tuple(dict.fromkeys(e.file for e in told if e.file)),
    )


def _aliases(store: Store, artefacts: Sequence[Artefact]) -> dict[str, tuple[str, ...]]:
    """What else an artefact's bytes are called: SHA-256, and the name of a blob in git."""
    found: dict[str, tuple[str, ...]] = {}
    for digest in {d for a in artefacts for d in (a.digest, a.before)} - {""}:
        try:
            data = store.get(digest)
        except StoreError:
            continue
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        found[digest] = (f"git:{blob}", f"sha256:{hashlib.sha256(data).hexdigest()}", hashlib.sha256(data).hexdigest())
    return found


def _logins(tables: Tables, whos: Sequence[str]) -> tuple[Login, ...]:
    if not whos:
        return ()
    return tuple(
        Login(*row)
        for row in tables.rows(
            "SELECT who, origin, count(*), min(time_ns), max(time_ns) FROM events "
            f"WHERE act = 'login' AND origin <> '' AND who IN ({_marks(whos)}) GROUP BY who, origin ORDER BY ALL",
            whos,
        )
    )


def _touched(tables: Tables, artefacts: Sequence[Artefact]) -> tuple[CustodyEvent, ...]:
    """Who set times or owners of the artefacts, or ran a command that does, naming them."""
    paths = sorted({a.path for a in artefacts if a.path})
    names = {path.rsplit("/", 1)[-1] for path in paths}
    if not paths:
        return ()
    changed = tables.events(f"act = 'attributes' AND who <> '' AND path IN ({_marks(paths)})", paths, limit=_MOST)
    ran = tables.events(
        "act = 'execute' AND (ends_with(program, '/touch') OR ends_with(program, '/chown') "
        "OR program IN ('touch', 'chown'))",
        limit=_MOST,
    )
    naming = [e for e in ran if any(word.rsplit("/", 1)[-1] in names for p in e.processes for word in p.argv)]
    return (*changed, *naming)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _instructions(tables: Tables, whos: Sequence[str]) -> tuple[CustodyEvent, ...]:
    """What others had these accounts do: jobs submitted and commands given to them by name."""
    if not whos:
        return ()
    where = f"act IN ('submit', 'execute', 'other') AND path IN ({_marks(whos)}) AND who <> path"
    return tuple(tables.events(where, whos, limit=1000))
