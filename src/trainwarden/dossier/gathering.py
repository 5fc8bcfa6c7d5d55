"""What a dossier says: an incident's entries, records, acts, hypotheses and losses, as items that name their evidence.

Rules
-----
* Every item that is a conclusion names in `evidence` the items that it stands on, down to entries of logs.
* Entries of logs that say what happened are taken; step records are not: the head commits to them, the kit has them.
* What could not be read or was left out for its length is an item `gap`, never silence.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterable, Sequence

import msgspec

from trainwarden.attribute import attribute
from trainwarden.casefile import Broken, CaseFile, load_case
from trainwarden.custody.folding import Custody
from trainwarden.custody.ledger import folder, read_custody
from trainwarden.dossier.attributed import KEEPER, Cited, attribution, lines_of, named_in, names_of
from trainwarden.dossier.logbook import CUSTODY, GATE, LogBook, Register
from trainwarden.dossier.masking import Names
from trainwarden.dossier.techniques import technique_of
from trainwarden.errors import StoreError
from trainwarden.gate.ledger import read_gate
from trainwarden.model import (
    Artefact,
    CheckpointCleared,
    ClearanceRefused,
    Entry,
    Evidence,
    EvidenceTaken,
    GateBegun,
    GateEntry,
    Incident,
    Reference,
    RunEnded,
)
from trainwarden.respond.account.claims import Held
from trainwarden.respond.account.lines import Account, Line
from trainwarden.store import Store

MOST_ENTRIES = 300  # of one run, beside those that findings, verdicts and artefacts name
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
    lines = lines_of(store, register, incident, told, sources)
    attribution(register, told, Cited(artefacts, lines, sources, _replays(register)))
    for said in incident.statements:
        _statement(store, book, register, custody, incident, said.digest)
    _damage(register, given)
    register.add("incident", _incident_fields(book, register, incident, gate))
    names = names_of(told, register, custody, lines, named_in(store, incident))
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
            "command": shlex.join(case.seal.seal.argv) if case.seal else "",
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
    fields["run"] = at["run"] if at else ""
    return register.add("artefact", {**fields, "evidence": [e for e in evidence if e]})


def _sha256(store: Store, digest: str) -> str:
    """The SHA-256 of a stored artefact, as other people's standards want it; "" where its bytes are not kept."""
    try:
        with store.object_path(digest).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (StoreError, OSError):
        return ""


def _records(store: Store, book: LogBook, register: Register, custody: Custody, evidence: Evidence) -> str:
    taken, earlier = custody.reading(evidence)
    fields = msgspec.to_builtins(evidence)
    fields["digest"] = fields.pop("id")
    fields.pop("table")
    missing = "" if store.has(evidence.id) else "its bytes are not in the store any more"
    return register.add(
        "records",
        {
            **fields,
            "missing": missing,
            "taken_by": taken.actor or KEEPER,
            "taken_ns": taken.wall_ns,
            "doubted": custody.doubted.get(taken.index, ""),
            "earlier": "; ".join(_reading(e) for e in earlier),
            "evidence": book.cite_all(register, CUSTODY, [taken.index, *(e.index for e in earlier)]),
        },
    )


def _reading(taken: EvidenceTaken) -> str:
    """A reading that was replaced, in words: what it is worth hangs on who could have edited it."""
    one = taken.evidence
    return f"read before as of host {one.host or 'not told'}, could be edited by {', '.join(one.editors) or 'nobody'}"


def _replays(register: Register) -> list[str]:
    """The entries in which replays say what they found."""
    types = ("diverged", "explanation", "inconclusive")
    return [i.id for i in register.items if i.kind == "entry" and i.fields.get("entry.type") in types]


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


# --------------------------------------------------------------------------- damage


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
