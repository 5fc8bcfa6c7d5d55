"""Attribution of an incident: its evidence opened, clocks compared, artefacts traced, hypotheses weighed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainwarden.attribute.clocks import estimate
from trainwarden.attribute.facts import Facts, Login, Replayed
from trainwarden.attribute.nouns import Attribution
from trainwarden.attribute.opportunity import matrix
from trainwarden.attribute.tables import Tables, named, open_tables
from trainwarden.attribute.timeline import write_timeline
from trainwarden.attribute.tracing import trace
from trainwarden.attribute.weighing import conclude, hypotheses_of, weigh
from trainwarden.casefile import read_entries
from trainwarden.errors import StoreError
from trainwarden.model import Artefact, CustodyEvent, Diverged, Entry, Explanation, Incident, ProcessStarted
from trainwarden.store import Store

_FAULTS = "act = 'other' AND path = 'hardware'"


def attribute(store: Store, incident: Incident, timeline: Path | None = None) -> Attribution:
    """What the evidence of an incident says; with `timeline` the timeline of all sources is written there.

    Raises:
        StoreError, StoreTampered, CustodyTampered: evidence is missing, or is not what was taken in.
        UsageError: the timeline cannot be written.
    """
    entries = [entry for run in incident.runs if run in store.runs() for entry in read_entries(store.run(run))[0]]
    tables = open_tables(store, incident.custody)
    try:
        return attribution_of(
            tables,
            incident.id,
            incident.artefacts,
            aliases=_aliases(store, incident.artefacts),
            jobs=frozenset(e.pid for e in entries if isinstance(e, ProcessStarted)),
            replayed=replayed_of(entries),
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
    marks = ", ".join("?" * len(whos))
    return tuple(
        Login(*row)
        for row in tables.rows(
            "SELECT who, origin, count(*), min(time_ns), max(time_ns) FROM events "
            f"WHERE act = 'login' AND origin <> '' AND who IN ({marks}) GROUP BY who, origin ORDER BY ALL",
            whos,
        )
    )


def _touched(tables: Tables, artefacts: Sequence[Artefact]) -> tuple[CustodyEvent, ...]:
    """Who set times or owners of the artefacts, or ran a command that does, naming them."""
    found: list[CustodyEvent] = []
    for path in dict.fromkeys(a.path for a in artefacts if a.path):
        name = path.rsplit("/", 1)[-1]
        found += tables.events("act = 'attributes' AND path = ? AND who <> ''", [path], limit=1000)
        found += tables.events(
            "act = 'execute' AND (ends_with(program, 'touch') OR ends_with(program, 'chown')) AND contains(tree, ?)",
            [name],
            limit=1000,
        )
    return tuple(found)


def _instructions(tables: Tables, whos: Sequence[str]) -> tuple[CustodyEvent, ...]:
    """What others had these accounts do: jobs submitted and commands given to them by name."""
    if not whos:
        return ()
    marks = ", ".join("?" * len(whos))
    where = f"act IN ('submit', 'execute', 'other') AND path IN ({marks}) AND who <> path"
    return tuple(tables.events(where, whos, limit=1000))
