"""What it stands on and whom it goes to: statements, evidence, investigators, notices, kit, glossary (pure)."""

from __future__ import annotations

from trainwarden.dossier.glossary import GLOSSARY
from trainwarden.dossier.notices import ROUTES
from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.sections.response import entries
from trainwarden.dossier.view import Row, Section, Table, View, joined, lines_of
from trainwarden.report.words import count


def statements(view: View) -> Section:
    """The respondent's words, and what is answered."""
    said = view.of("statement")
    roles = {view.text(s, "role") for s in said}
    missing = [
        Row((text,))
        for role, text in (
            (
                "respondent",
                "No statement of the respondent was handed in. The finding stands without having been answered.",
            ),
            ("rebuttal", "Nobody has answered the respondent's statement."),
        )
        if role not in roles
    ]
    rows = view.rows(said, "role", "name", "digest", "bytes")
    return Section(
        "statements",
        "The respondent's statement, and the rebuttal",
        "In their own words, as handed in.",
        told=tuple(missing),
        tables=(Table("As taken in", ("role", "file", "digest (BLAKE3)", "bytes"), rows, "None."),),
        quotes=tuple((view.cell(s, "role"), lines_of(view.cell(s, "text"))) for s in said),
    )


def register(view: View) -> Section:
    """Records, lines and entries, with their digests and proofs."""
    records = view.rows(
        view.of("records"),
        "name",
        "kind",
        "digest",
        "events",
        lambda r: view.cell(r, "unread") or "0",
        lambda r: joined([view.time(r, "taken_ns"), "by", view.cell(r, "taken_by")]),
        "editors",
        lambda r: view.cell(r, "doubted") or view.cell(r, "missing") or view.cell(r, "earlier"),
    )
    lines = view.rows(
        view.of("line"),
        lambda x: view.cell(view.item(view.text(x, "source")), "name"),
        lambda x: f"{int(view.number(x, 'line'))}",
        view.at("time_ns"),
        lambda x: view.cell(x, "login") or view.cell(x, "account"),
        "host",
        "act",
        "path",
        "note",
    )
    entries = [
        Row(
            (
                e.id,
                view.cell(e, "log"),
                f"{int(view.number(e, 'index'))}",
                view.text(e, "entry.type").replace("_", " "),
                _proof(e),
            ),
            (),
            e.id,
        )
        for e in view.of("entry")
    ]
    return Section(
        "evidence",
        "Evidence register",
        "Each record with its digest and who took it in; each line that something above stands on; "
        "each entry with its place in a "
        "Merkle log. register.json has all of it with salts and proofs.",
        tables=(
            Table(
                "Records",
                ("file", "kind", "digest (BLAKE3)", "events", "unread", "taken in", "could be edited by", "trouble"),
                records,
                "No record was taken in.",
            ),
            Table(
                "Lines",
                ("record", "line", "time (UTC)", "account", "host", "act", "on", "note"),
                lines,
                "No line is cited.",
            ),
            Table("Entries of logs", ("item", "log", "entry", "type", "proof"), tuple(entries), "None."),
        ),
    )


def _proof(entry: Shown) -> str:
    if entry.proof is None:
        return "hidden in part: bound by commitments"
    return f"in the log: {count(len(entry.proof.hashes), 'hash')} to the root".replace("hashs", "hashes")


def investigators(view: View) -> Section:
    """The log of custody."""
    types = (
        "custody_begun",
        "evidence_taken",
        "incident_opened",
        "incident_added",
        "incident_closed",
        "statement_taken",
    )
    return Section(
        "investigators",
        "Investigator log",
        "Every act of the investigation that changed what it stands on, signed by who did it, in the log of custody.",
        tables=(Table("", ("time", "entry", "what it says"), entries(view, *types), "None."),),
    )


def routing(view: View) -> Section:
    """Who is told, and why or why not."""
    here = view.manifest.audience
    rows = [
        Row((to, why, f"notices/{audience}.md" + ("" if audience == here else f", in the edition for: {audience}")))
        for audience, (to, why) in ROUTES.items()
    ]
    return Section(
        "notices",
        "Notices and routing",
        "Drafts, for a human to approve. Nothing was sent, and nothing here can send.",
        tables=(Table("", ("to", "why they are told, or not", "draft"), tuple(rows)),),
    )


def kit(view: View) -> Section:
    """How to reproduce it."""
    absent = [Row((path, why)) for path, why in sorted(view.manifest.absent.items())]
    here = any(m.startswith("kit/") for m in _paths(view))
    told = (
        "trainwarden verify --reproduce unpacks the kit, replays the diverging steps from sealed "
        "inputs in a clean environment, tries "
        "the causes again, and compares the verdict with the one in this dossier."
        if here
        else "This edition has no kit."
    )
    return Section(
        "kit",
        "Reproduction kit",
        told,
        tables=(Table("Not in this edition", ("what", "why"), tuple(absent), "Nothing was left out."),),
    )


def _paths(view: View) -> list[str]:
    return [m.path for m in view.manifest.members]


def glossary(view: View) -> Section:
    """The words."""
    rows = tuple(Row((word, meaning)) for word, meaning in GLOSSARY)
    return Section("glossary", "Glossary", tables=(Table("", ("word", "meaning"), rows),))
