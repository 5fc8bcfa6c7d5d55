"""What attribution says, as items: lines of records, acts, clocks, evidence for and against, hypotheses, opportunity.

Rules
-----
* An item of evidence names the lines of records that it stands on, or where it is about replays what these said; a
  hypothesis names the items of evidence.
* What is left out for its length is an item `gap`.
* Every name in any record is collected, so that an edition can hide it wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from trainwarden.attribute import Attribution
from trainwarden.attribute.clocks import estimate
from trainwarden.attribute.nouns import At, Deed, Standing, Trace
from trainwarden.attribute.nouns import Row as MatrixRow
from trainwarden.attribute.tables import open_tables
from trainwarden.custody.folding import Custody
from trainwarden.dossier.logbook import Register
from trainwarden.dossier.masking import Named, Names
from trainwarden.dossier.techniques import technique_of
from trainwarden.model import CustodyEvent, Incident
from trainwarden.report.incident import clock_words, matrix_row
from trainwarden.store import Store

MOST_LINES = 500
MOST_ROWS = 200
KEEPER = "the keeper of the log of custody"
_COLUMNS = (
    (Named.ACCOUNT, "account"), (Named.ACCOUNT, "login"), (Named.PERSON, "person"), (Named.HOST, "host"),
    (Named.ADDRESS, "origin"),
)  # fmt: skip

Lines: TypeAlias = dict[tuple[str, int], tuple[str, CustodyEvent | None]]


class Cited(NamedTuple):
    """Items that attribution stands on: artefacts in order, lines by place, sources by digest, what replays said."""

    artefacts: Sequence[str]
    lines: Lines
    sources: Mapping[str, str]
    replays: Sequence[str]

    def at(self, ats: Iterable[At]) -> list[str]:
        """The items of these lines, each once; those that are not shown are left out."""
        found = (self.lines.get((a.source, a.line)) for a in ats)
        return list(dict.fromkeys(line[0] for line in found if line is not None))


def lines_of(
    store: Store, register: Register, incident: Incident, told: Attribution, sources: Mapping[str, str]
) -> Lines:
    """The lines of records that acts, items of evidence and the matrix stand on, each once."""
    wanted = list(dict.fromkeys(_cited(told)))
    shown = wanted[:MOST_LINES]
    _left_out(register, "lines of records", len(wanted), len(shown), "are not shown")
    events = _events(store, incident, shown)
    found: Lines = {}
    for at in shown:
        event = events.get((at.source, at.line))
        fields = {n: v for n, v in msgspec.to_builtins(event).items() if n != "type"} if event else {"line": at.line}
        source = sources.get(at.source, "")
        found[at.source, at.line] = register.add("line", {**fields, "source": source, "evidence": [source]}), event
    return found


def _left_out(register: Register, what: str, all_: int, shown: int, words: str) -> None:
    if all_ > shown:
        register.add("gap", {"what": what, "why": f"{all_ - shown} of {all_} {words}"})


def _events(store: Store, incident: Incident, wanted: Sequence[At]) -> dict[tuple[str, int], CustodyEvent]:
    """The events of these lines, with corrected times: one query a source."""
    tables = open_tables(store, incident.custody)
    found: dict[tuple[str, int], CustodyEvent] = {}
    try:
        tables.set_clocks(estimate(tables))
        for n, evidence in enumerate(incident.custody):
            lines = [at.line for at in wanted if at.source == evidence.id]
            marks = ", ".join("?" * len(lines))
            if lines:
                events = tables.events(f"source = {n} AND line IN ({marks})", lines)
                found |= {(e.source, e.line): e for e in reversed(events)}
    finally:
        tables.close()
    return found


def _cited(told: Attribution) -> Iterable[At]:
    for deed in told.deeds[:MOST_ROWS]:
        yield from deed.told
    for piece in told.pieces:
        yield from piece.told
    for trace in told.traces:
        if trace.earliest is not None:
            yield At(source=trace.earliest.source, line=trace.earliest.line)


def attribution(register: Register, told: Attribution, cited: Cited) -> None:
    """Everything that attribution says, down to the lines it stands on."""
    for n, trace in enumerate(told.traces):
        _origin(register, trace, cited.artefacts[n], cited)
    for deed in told.deeds[:MOST_ROWS]:
        _act(register, told, deed, cited)
    _left_out(register, "acts", len(told.deeds), MOST_ROWS, "are not shown")
    for clock in told.clocks:
        source = cited.sources.get(clock.source, "")
        words = clock_words(clock)
        register.add("clock", {**msgspec.to_builtins(clock), "source": source, "words": words, "evidence": [source]})
    pieces = [
        register.add(
            "piece", {**msgspec.to_builtins(p), "told": [], "evidence": cited.at(p.told) or list(cited.replays)}
        )
        for p in told.pieces
    ]
    for standing in told.hypotheses:
        _hypothesis(register, standing, pieces)
    for row in told.matrix[:MOST_ROWS]:
        _access(register, row)
    _left_out(register, "accounts", len(told.matrix), MOST_ROWS, "had no part")
    _conclusion(register, told, pieces)


def _origin(register: Register, trace: Trace, artefact: str, cited: Cited) -> None:
    first = trace.earliest
    at = [At(source=first.source, line=first.line)] if first else []
    earliest = {"time_ns": first.time_ns, "who": first.login or first.account, "host": first.host} if first else {}
    register.add(
        "origin",
        {
            "artefact": artefact,
            **earliest,
            "deeds": len(trace.deeds),
            "pointers": list(trace.pointers),
            "evidence": [artefact, *cited.at(at)],
        },
    )


def _act(register: Register, told: Attribution, deed: Deed, cited: Cited) -> None:
    fields = msgspec.to_builtins(deed)
    for name in ("artefact", "told", "processes"):
        fields.pop(name, None)
    what = told.traces[deed.artefact].artefact
    register.add(
        "act",
        {
            **fields,
            "path": what.path,
            "found": what.digest,
            "before": what.before,
            "kind_of": what.what,
            "technique": technique_of(what.what),
            "run": what.at.run if what.at else "",
            "sources": len({a.source for a in deed.told}),
            "evidence": [cited.artefacts[deed.artefact], *cited.at(deed.told)],
        },
    )


def _hypothesis(register: Register, standing: Standing, pieces: Sequence[str]) -> None:
    h = standing.hypothesis
    register.add(
        "hypothesis",
        {
            "id": h.id,
            "kind": h.kind.value,
            "account": h.account,
            "words": h.words,
            "grade": standing.grade.value,
            "score": standing.score,
            "supporting": [pieces[n] for n in standing.supporting],
            "opposing": [pieces[n] for n in standing.opposing],
            "evidence": [pieces[n] for n in (*standing.supporting, *standing.opposing)],
        },
    )


def _access(register: Register, row: MatrixRow) -> None:
    account, kind, access, present, away, unknown, ended = matrix_row(row)
    register.add(
        "access",
        {
            "account": account,
            "kind": kind,
            "holder": row.holder,
            "access": access,
            "present": present,
            "absent": away,
            "unknown": unknown,
            "ended": ended,
            "revoked_ns": row.revoked_ns,
            "disclosures": row.disclosures,
            "followed": row.followed,
            "expected": row.expected,
        },
    )


def _conclusion(register: Register, told: Attribution, pieces: Sequence[str]) -> None:
    c = told.conclusion
    register.add(
        "conclusion",
        {
            **msgspec.to_builtins(c),
            "leading": c.leading.words if c.leading else "",
            "leading_kind": c.leading.kind.value if c.leading else "",
            "account": c.leading.account if c.leading else "",
            "events": told.events,
            "sources": told.sources,
            "evidence": pieces,
        },
    )


def named_in(store: Store, incident: Incident) -> dict[Named, set[str]]:
    """Every name in any of the records."""
    found: dict[Named, set[str]] = {kind: set() for kind in Named}
    tables = open_tables(store, incident.custody)
    try:
        for kind, column in _COLUMNS:
            found[kind] |= {name for (name,) in tables.rows(f"SELECT DISTINCT {column} FROM raw")}
    finally:
        tables.close()
    return found


def names_of(
    told: Attribution, register: Register, custody: Custody, lines: Lines, found: dict[Named, set[str]]
) -> Names:
    """Every name that the items have, by what it is of, with those in `found`."""
    events = [e for _, e in lines.values() if e is not None]
    firsts = [t.earliest for t in told.traces if t.earliest is not None]
    for e in (*events, *firsts):
        found[Named.ACCOUNT] |= {e.account, e.login}
        found[Named.PERSON].add(e.person)
        found[Named.HOST].add(e.host)
        found[Named.ADDRESS] |= {e.origin, e.session}
    for d in told.deeds:
        found[Named.ACCOUNT] |= {d.who, d.account}
        found[Named.HOST].add(d.host)
        found[Named.ADDRESS] |= {d.origin, d.session}
    for row in told.matrix:
        found[Named.ACCOUNT].add(row.account)
        found[Named.PERSON].add(row.holder)
    for s in told.hypotheses:
        found[Named.ACCOUNT].add(s.hypothesis.account)
    for p in told.pieces:
        found[Named.ACCOUNT] |= set(p.exculpates)
    for t in told.traces:
        found[Named.ACCOUNT] |= set(t.pointers)
    earlier = (entry for readings in custody.earlier.values() for entry in readings)
    for one in (*custody.evidence.values(), *earlier):
        found[Named.HOST].add(one.evidence.host)
    for item in register.items:
        for name in ("entry.actor", "taken_by"):
            found[Named.ACCOUNT].add(str(item.fields.get(name, "")))
    found[Named.ACCOUNT].discard(KEEPER)
    leading = told.conclusion.leading
    kept = {kind: frozenset(n for n in names if len(n) > 1 or n.isalpha()) for kind, names in found.items()}
    return Names(found=kept, concerned=leading.account if leading else "")
