"""What it means: causal tests, hypotheses side by side, the grade and its limits, adaptation (pure)."""

from __future__ import annotations

from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.view import (
    Cell,
    Row,
    Section,
    Table,
    View,
    as_list,
    as_map,
    joined,
    words_of,
)
from trainwarden.report.words import short

_UNKNOWN = "not known"
_DECIDED = ("matched", "diverged", "inconclusive", "explanation")


def causes(view: View) -> Section:
    """Replays, and causes that were tried."""
    rows = []
    for e in view.entries(*_DECIDED):
        kind = view.text(e, "entry.type")
        rows.append(
            view.row(
                e,
                kind,
                joined([view.cell(e, "log"), f"entry {view.text(e, 'index')}"]),
                _segment(view, e),
                _said(view, e),
                view.cell(e, "entry.mode"),
            )._replace(evidence=(e.id,))
        )
    tried = [
        Row(
            (
                words_of(h.get("sentence") or h.get("name")),
                words_of(h.get("outcome")),
                words_of(h.get("digest")),
                words_of(h.get("reason")),
            ),
            (e.id,),
        )
        for e in view.entries("explanation")
        for h in _maps(view.value(e, "entry.hypotheses"))
    ]
    return Section(
        "causes",
        "Causal tests",
        "A clean replay shows that something differs. A replay with one change that gives the "
        "recorded digest bit for bit shows what. "
        "A finding without a replay is a suspicion and is no test.",
        tables=(
            Table(
                "Replays",
                ("verdict", "where", "steps", "what it says", "started by"),
                tuple(rows),
                "Nothing was replayed.",
            ),
            Table("Causes that were tried", ("cause", "outcome", "digest", "why not"), tuple(tried), "None was tried."),
        ),
    )


def _maps(value: object) -> list[dict[str, object]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _segment(view: View, entry: Shown) -> str:
    s = as_map(view.value(entry, "entry.segment"))
    return f"{s.get('first', '?')} to {s.get('last', '?')}, attempt {s.get('attempt', '?')}" if s else ""


def _said(view: View, entry: Shown) -> Cell:
    at = as_map(view.value(entry, "entry.at"))
    where = f"step {at.get('step')}, rank {at.get('rank')}, {at.get('stage')} {at.get('tensor', '')}" if at else ""
    cause = view.cell(entry, "entry.cause")
    match view.text(entry, "entry.type"):
        case "matched":
            return "every recorded digest was reproduced"
        case "diverged":
            return f"{where}; recorded {short(at.get('recorded', ''))}, replayed {short(at.get('replayed', ''))}"
        case "explanation":
            return joined([f"{where}:", "reproduced by", cause]) if cause else f"{where}: no cause was found"
        case _:
            return view.cell(entry, "entry.reasons")


def hypotheses(view: View) -> Section:
    """What speaks for and against each."""
    standing = view.of("hypothesis")
    head = ("evidence", *(view.text(h, "id") for h in standing), "exculpates")
    grades = Row(("stands", *(view.cell(h, "grade") for h in standing), ""))
    rows = [grades]
    for piece in view.of("piece"):
        weights = as_map(view.value(piece, "weights"))
        marks = (weights.get(view.text(h, "id"), "") for h in standing)
        rows.append(view.row(piece, view.cell(piece, "sentence"), *marks, view.cell(piece, "exculpates")))
    words = [view.row(h, view.cell(h, "id"), view.cell(h, "words"), view.cell(h, "grade")) for h in standing]
    return Section(
        "hypotheses",
        "Hypotheses side by side",
        "A hypothesis stands by how little contradicts it. ++ and -- are strong; an empty cell says "
        "nothing either way. The last column "
        "is of accounts that the evidence speaks for.",
        tables=(
            Table("Hypotheses", ("hypothesis", "in words", "stands"), tuple(words), "None."),
            Table("Evidence", head, tuple(rows), "None."),
        ),
    )


def grade(view: View) -> Section:
    """What leads, and why it is not more."""
    c = view.one("conclusion")
    parts = (
        ("Why it is not more", "reasons"),
        ("Would decide between the leading two", "missing"),
        ("Not known", "unknown"),
    )
    rows = [Row((name, text), view.refs(c)) for name, field in parts for text in as_list(view.value(c, field))]
    stated = Row(
        (
            view.cell(c, "leading") or "nobody: the evidence does not decide",
            view.cell(c, "grade"),
            view.cell(c, "level"),
        ),
        view.refs(c),
    )
    return Section(
        "attribution",
        "Attribution, its grade and its limits",
        "Grades are words; no probability is invented. Without evidence that binds a person, "
        "attribution ends at an account.",
        tables=(
            Table(
                "What leads", ("hypothesis", "grade", "reaches to"), (stated,) if c else (), "Nothing was attributed."
            ),
            Table("Limits", ("", ""), tuple(rows), "None are told."),
        ),
    )


def adaptation(view: View) -> Section:
    """What can be counted of adaptation."""
    rows = [
        view.row(
            a,
            view.cell(a, "account"),
            view.cell(a, "disclosures"),
            view.cell(a, "followed"),
            view.cell(a, "expected"),
            view.cell(a, "ended"),
        )
        for a in view.of("access")
        if view.number(a, "disclosures") or view.value(a, "ended")
    ]
    return Section(
        "adaptation",
        "Intent and adaptation",
        "Software says nothing of intent. Below is what can be counted: acts within a day of "
        "something becoming known to an account, "
        "how many of these chance alone would give, and what stopped when access ended.",
        tables=(
            Table(
                "",
                ("account", "disclosures", "followed by an act", "expected by chance", "access ended, acts after"),
                tuple(rows),
                "No record of disclosures or of ended access.",
            ),
        ),
    )
