"""What a dossier says: an incident's entries, records, acts, hypotheses and losses, as items that name their evidence.

Rules
-----
* Every item that is a conclusion names in `evidence` the items that it stands on, down to entries of logs.
* Entries of logs that say what happened are taken; step records are not: the head commits to them, the kit has them.
* What could not be read or was left out for its length is an item `gap`, never silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import msgspec

from trainwarden.attribute import Attribution, attribute
from trainwarden.attribute.clocks import estimate
from trainwarden.attribute.nouns import At
from trainwarden.attribute.tables import open_tables
from trainwarden.casefile import Broken, CaseFile, load_case
from trainwarden.custody.ledger import Custody, folder, read_custody
from trainwarden.dossier.logbook import CUSTODY, GATE, LogBook, Register
from trainwarden.dossier.masking import Named, Names
from trainwarden.dossier.techniques import technique_of
from trainwarden.errors import StoreError
from trainwarden.gate.ledger import read_gate
from trainwarden.model import (
    Artefact,
    CheckpointCleared,
    ClearanceRefused,
    CustodyEvent,
    Entry,
    Evidence,
    GateBegun,
    GateEntry,
    Incident,
    Reference,
    RunEnded,
)
from trainwarden.report.incident import clock_words
from trainwarden.respond.account.claims import Held
from trainwarden.respond.account.lines import Account, Line
from trainwarden.store import Store

MOST_ENTRIES = 300  # of one run, beside those that findings, verdicts and artefacts name
MOST_LINES = 500
MOST_ROWS = 200
_STORY = (
    "run_ended",
    "recovered",
    "quarantined",
    "restored",
    "responded",
    "released",
    "contained",
    "undone",
    "gap",
    "approved",
    "clean_room",
    "sampled_audit",
)

Progress = Callable[[str], None]


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """All items, and the names that they have."""

    register: Register
    names: Names
    cases: tuple[CaseFile, ...]


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What was worked out elsewhere: the account of damage with public claims, or why there is none."""

    account: Account | None = None
    claims: tuple[Held, ...] = ()
    no_account: str = ""


def gather(store: Store, book: LogBook, incident: Incident, given: Given, progress: Progress) -> Gathered:
    """Gather all items of an incident; logs are opened in `book`.

    Raises:
        CustodyTampered, StoreError, StoreTampered: custody or evidence cannot be trusted or read.
    """
    register = Register()
    custody = read_custody(store)
    book.open(CUSTODY, folder(store), custody.key)
    cases = []
    for run in incident.runs:
        progress(f"reading run {run} …")
        cases += _run(store, book, register, incident, run)
    gate = _gate(store, book, register, incident)
    artefacts = [_artefact(store, book, register, a) for a in incident.artefacts]
    sources = {e.id: _records(store, book, register, custody, e) for e in incident.custody}
    progress("joining records …")
    told = attribute(store, incident)
    lines = _lines(store, register, incident, told, sources)
    _attribution(register, told, artefacts, lines, sources)
    for said in incident.statements:
        _statement(store, book, register, custody, incident, said.digest)
    _damage(register, given)
    register.add("incident", _incident_fields(book, register, incident, gate))
    names = _names(told, register, custody, lines, _named_in(store, incident))
    return Gathered(register=register, names=names, cases=tuple(cases))


# --------------------------------------------------------------------------- runs, gate, custody


def _run(store: Store, book: LogBook, register: Register, incident: Incident, run: str) -> list[CaseFile]:
    if run not in store.runs():
        register.add("gap", {"what": f"run {run}", "why": "it is not in the store"})
        return []
    case = load_case(store, run, look_at_files=False)
    where = store.run(run)
    open_ = book.open(run, where.log, case.sealed.key)
    why = case.state.reason if isinstance(case.state, Broken) else ""
    named = sorted({r.index for r in _references(incident) if r.run == run})
    story = [n for n, e in enumerate(case.entries) if _tag(e) in _STORY and n not in named]
    entries = [0, *named, *story[:MOST_ENTRIES]] if open_ else []
    if len(story) > MOST_ENTRIES:
        register.add(
            "gap", {"what": f"run {run}", "why": f"{len(story) - MOST_ENTRIES} further entries are in its log"}
        )
    register.add(
        "run",
        {
            "run": run,
            "key": case.sealed.key,
            "seal": case.sealed.seal,
            "parent": case.sealed.parent,
            "command": list(case.seal.seal.argv) if case.seal else [],
            "answer": case.answer.value,
            "sentence": case.sentence,
            "entries": len(case.entries),
            "records": case.audited.records,
            "matched": case.audited.matched,
            "digests": case.audited.digests,
            "unseen": case.audited.unseen,
            "broken": why or book.broken.get(run, ""),
            "begun_ns": case.sealed.wall_ns,
            "ended_ns": next((e.wall_ns for e in reversed(case.entries) if isinstance(e, RunEnded)), 0),
            "standings": _standings(case),
            "evidence": book.cite_all(register, run, dict.fromkeys(entries)),
        },
    )
    return [case]


def _references(incident: Incident) -> Iterable[Reference]:
    yield from incident.findings
    yield from incident.verdicts
    yield from (a.at for a in incident.artefacts if a.at is not None)


def _tag(entry: Entry) -> str:
    return str(entry.__struct_config__.tag)


def _standings(case: CaseFile) -> dict[str, int]:
    found: dict[str, int] = {}
    for checkpoint in case.history.checkpoints:
        found[checkpoint.standing.value] = found.get(checkpoint.standing.value, 0) + 1
    return found


def _gate(store: Store, book: LogBook, register: Register, incident: Incident) -> list[str]:
    """What the gate decided of checkpoints of the incident's runs, and what serving was given meanwhile."""
    entries: Sequence[GateEntry] = read_gate(store)
    if not entries or not isinstance(entries[0], GateBegun):
        return []
    book.open(GATE, store.path / "gate" / "log", entries[0].key)
    ours = {
        e.digest for e in entries if isinstance(e, CheckpointCleared) and {r.run for r in e.runs} & set(incident.runs)
    }
    wanted = [
        n
        for n, e in enumerate(entries)
        if not isinstance(e, GateBegun) and (isinstance(e, ClearanceRefused) or e.digest in ours)
    ]
    return book.cite_all(register, GATE, wanted[:MOST_ENTRIES])


def _artefact(store: Store, book: LogBook, register: Register, artefact: Artefact) -> str:
    fields = msgspec.to_builtins(artefact)
    at = fields.pop("at", None)
    evidence = [book.cite(register, at["run"], at["index"])] if at else []
    fields["technique"] = technique_of(artefact.what)
    fields["sha256"] = _sha256(store, artefact.digest)
    return register.add("artefact", {**fields, "evidence": [e for e in evidence if e]})


def _sha256(store: Store, digest: str) -> str:
    """The SHA-256 of a stored artefact, as other people's standards want it; "" where its bytes are not kept."""
    try:
        with store.object_path(digest).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (StoreError, OSError):
        return ""


def _records(store: Store, book: LogBook, register: Register, custody: Custody, evidence: Evidence) -> str:
    taken = custody.evidence[evidence.id]
    fields = msgspec.to_builtins(evidence)
    fields["digest"] = fields.pop("id")
    fields.pop("table")
    missing = "" if store.has(evidence.id) else "its bytes are not in the store any more"
    return register.add(
        "records",
        {
            **fields,
            "missing": missing,
            "taken_by": taken.actor or "the keeper of the log of custody",
            "taken_ns": taken.wall_ns,
            "doubted": custody.doubted.get(taken.index, ""),
            "evidence": book.cite_all(register, CUSTODY, [taken.index]),
        },
    )


def _statement(
    store: Store, book: LogBook, register: Register, custody: Custody, incident: Incident, digest: str
) -> None:
    said = next(s for s in incident.statements if s.digest == digest)
    entries = [n for n in incident.entries if _takes(book, n, digest)]
    try:
        text = store.get(digest).decode("utf-8", "replace")
    except StoreError as e:
        text = f"(its bytes cannot be read: {e})"
    fields = msgspec.to_builtins(said)
    register.add("statement", {**fields, "text": text, "evidence": book.cite_all(register, CUSTODY, entries)})


def _takes(book: LogBook, index: int, digest: str) -> bool:
    data, _ = book.leaf(CUSTODY, index)
    return b'"statement_taken"' in data and digest.encode() in data


def _incident_fields(book: LogBook, register: Register, incident: Incident, gate: list[str]) -> dict[str, object]:
    return {
        "id": incident.id,
        "title": incident.title,
        "status": incident.status.value,
        "opened_ns": incident.opened_ns,
        "closed_ns": incident.closed_ns,
        "outcome": incident.outcome,
        "runs": list(incident.runs),
        "findings": len(incident.findings),
        "verdicts": len(incident.verdicts),
        "gate": gate,
        "evidence": book.cite_all(register, CUSTODY, incident.entries),
    }


# --------------------------------------------------------------------------- attribution


_Lines = dict[tuple[str, int], tuple[str, CustodyEvent | None]]
_COLUMNS = (
    (Named.ACCOUNT, "account"), (Named.ACCOUNT, "login"), (Named.PERSON, "person"), (Named.HOST, "host"),
    (Named.ADDRESS, "origin"),
)  # fmt: skip


def _lines(store: Store, register: Register, incident: Incident, told: Attribution, sources: dict[str, str]) -> _Lines:
    """The lines of records that acts, items of evidence and the matrix stand on, each once."""
    wanted = list(dict.fromkeys(_cited(told)))
    if len(wanted) > MOST_LINES:
        register.add(
            "gap", {"what": "lines of records", "why": f"{len(wanted) - MOST_LINES} of {len(wanted)} are not shown"}
        )
    events = _events(store, incident, wanted[:MOST_LINES])
    found: _Lines = {}
    for at in wanted[:MOST_LINES]:
        event = events.get((at.source, at.line))
        fields = {n: v for n, v in msgspec.to_builtins(event).items() if n != "type"} if event else {"line": at.line}
        source = sources.get(at.source, "")
        found[at.source, at.line] = register.add("line", {**fields, "source": source, "evidence": [source]}), event
    return found


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


def _attribution(
    register: Register, told: Attribution, artefacts: Sequence[str], lines: _Lines, sources: dict[str, str]
) -> None:
    def items(ats: Iterable[At]) -> list[str]:
        return list(dict.fromkeys(lines[a.source, a.line][0] for a in ats if (a.source, a.line) in lines))

    for trace, artefact in zip(told.traces, artefacts, strict=True):
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
                "evidence": [artefact, *items(at)],
            },
        )
    for deed in told.deeds[:MOST_ROWS]:
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
                "sources": len({a.source for a in deed.told}),
                "evidence": [artefacts[deed.artefact], *items(deed.told)],
            },
        )
    if len(told.deeds) > MOST_ROWS:
        register.add("gap", {"what": "acts", "why": f"{len(told.deeds) - MOST_ROWS} further acts are not shown"})
    for clock in told.clocks:
        source = sources.get(clock.source, "")
        register.add(
            "clock", {**msgspec.to_builtins(clock), "source": source, "words": clock_words(clock), "evidence": [source]}
        )
    pieces = [
        register.add("piece", {**msgspec.to_builtins(p), "told": [], "evidence": items(p.told)}) for p in told.pieces
    ]
    for s in told.hypotheses:
        register.add(
            "hypothesis",
            {
                "id": s.hypothesis.id,
                "kind": s.hypothesis.kind.value,
                "account": s.hypothesis.account,
                "words": s.hypothesis.words,
                "grade": s.grade.value,
                "score": s.score,
                "supporting": [pieces[n] for n in s.supporting],
                "opposing": [pieces[n] for n in s.opposing],
                "evidence": [pieces[n] for n in (*s.supporting, *s.opposing)],
            },
        )
    _matrix(register, told)
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


def _matrix(register: Register, told: Attribution) -> None:
    from trainwarden.report.incident import matrix_row

    for row in told.matrix[:MOST_ROWS]:
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
    if len(told.matrix) > MOST_ROWS:
        register.add("gap", {"what": "accounts", "why": f"{len(told.matrix) - MOST_ROWS} further accounts had no part"})


# --------------------------------------------------------------------------- damage, names


def _damage(register: Register, given: Given) -> None:
    runs = {str(i.fields["run"]): i.id for i in register.items if i.kind == "run"}
    if given.account is None:
        register.add("gap", {"what": "damage", "why": given.no_account or "no account was made"})
        return
    account = given.account
    of = [runs[r] for j in account.jobs for r in j.runs if r in runs]
    register.add("account", {"account": account, "evidence": of})
    for a in account.amounts:
        unit = "hours" if a.line is Line.STAFF else "GPU-hours"
        hit = [runs[r] for j in account.jobs if j.lines.get(a.line) for r in j.runs if r in runs]
        register.add(
            "loss",
            {
                "line": a.line.value,
                "low": a.hours.low,
                "mid": a.hours.mid,
                "high": a.hours.high,
                "unit": unit,
                "how": a.how,
                "unknown": a.unknown,
                "evidence": hit or of,
            },
        )
    for held in given.claims:
        c = held.claim
        register.add(
            "claim",
            {
                "id": c.id,
                "text": c.text,
                "said_by": c.said_by,
                "stand": held.stand.value,
                "why": held.why,
                "missing": list(held.missing),
                "evidence": [runs[r] for r in held.evidence if r in runs],
            },
        )


def _named_in(store: Store, incident: Incident) -> dict[Named, set[str]]:
    """Every name in any of the records."""
    found: dict[Named, set[str]] = {kind: set() for kind in Named}
    tables = open_tables(store, incident.custody)
    try:
        for kind, column in _COLUMNS:
            found[kind] |= {name for (name,) in tables.rows(f"SELECT DISTINCT {column} FROM raw")}
    finally:
        tables.close()
    return found


def _names(
    told: Attribution, register: Register, custody: Custody, lines: _Lines, found: dict[Named, set[str]]
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
    for one in custody.evidence.values():
        found[Named.HOST].add(one.evidence.host)
    for item in register.items:
        for name in ("entry.actor", "taken_by"):
            found[Named.ACCOUNT].add(str(item.fields.get(name, "")))
    found[Named.ACCOUNT].discard("the keeper of the log of custody")
    leading = told.conclusion.leading
    kept = {kind: frozenset(n for n in names if len(n) > 1 or n.isalpha()) for kind, names in found.items()}
    return Names(found=kept, concerned=leading.account if leading else "")
