"""What it means: causal tests, hypotheses side by side, the grade and its limits, adaptation (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from trainwarden.attribute.nouns import Weight
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
from trainwarden.model import Outcome
from trainwarden.report.words import short

_DECIDED = ("matched", "diverged", "inconclusive", "explanation")


def causes(view: View) -> Section:
    """Replays, and causes that were tried."""
    replays = view.rows(
        view.entries(*_DECIDED),
        "entry.type",
        lambda e: joined([view.cell(e, "log"), f"entry {view.text(e, 'index')}"]),
        lambda e: _segment(view, e),
        lambda e: _said(view, e),
        "entry.mode",
    )
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
                tuple(r._replace(evidence=(r.item,)) for r in replays),
                "Nothing was replayed.",
            ),
            Table("Causes that were tried", ("cause", "outcome", "digest"), tuple(_tried(view)), "None was tried."),
            Table("Not tried", ("why", "causes"), tuple(_not_tried(view)), "Every cause that is known was tried."),
        ),
    )


def _tried(view: View) -> Iterator[Row]:
    """Causes whose replay says something, those first that reproduced what was recorded."""
    found = [(e, h) for e in view.entries("explanation") for h in _maps(view.value(e, "entry.hypotheses"))]
    found = [(e, h) for e, h in found if h.get("outcome") != Outcome.NOT_TRIED]
    for e, h in sorted(found, key=lambda pair: pair[1].get("outcome") != Outcome.REPRODUCED):
        said = words_of(h.get("sentence") or h.get("name"))
        digest = words_of(h.get("digest"))
        yield Row((said, words_of(h.get("outcome")), short(digest) if digest else ""), (e.id,))


def _not_tried(view: View) -> Iterator[Row]:
    """Why causes were not tried, each reason once."""
    for e in view.entries("explanation"):
        why: dict[str, list[str]] = {}
        for h in _maps(view.value(e, "entry.hypotheses")):
            if h.get("outcome") == Outcome.NOT_TRIED:
                why.setdefault(words_of(h.get("reason")), []).append(words_of(h.get("name")))
        yield from (Row((reason, ", ".join(names)), (e.id,)) for reason, names in why.items())


def _maps(value: object) -> list[dict[str, object]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _segment(view: View, entry: Shown) -> str:
    s = as_map(view.value(entry, "entry.segment"))
    return f"{s.get('first', '?')} to {s.get('last', '?')}, attempt {s.get('attempt', '?')}" if s else ""


def _stage(at: dict[str, str]) -> str:
    return f"{at.get('stage', '').replace('_', ' ')} {at.get('tensor', '')}".strip()


def _said(view: View, entry: Shown) -> Cell:
    at = as_map(view.value(entry, "entry.at"))
    where = f"step {at['step']}, rank {at['rank']}, {_stage(at)}" if at else ""
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
    numbers = {h.id: f"H{n}" for n, h in enumerate(standing, 1)}
    words = view.rows(standing, lambda h: numbers[h.id], "words", "grade")
    weights = [partial(_weight, view, view.text(h, "id")) for h in standing]
    pieces = view.rows(view.of("piece"), "sentence", *weights, "exculpates")
    return Section(
        "hypotheses",
        "Hypotheses side by side",
        "A hypothesis stands by how little contradicts it. ++ and −− are strong; an empty cell says nothing either "
        "way. The last column is of accounts that the evidence speaks for.",
        tables=(
            Table("Hypotheses", ("", "hypothesis", "stands"), words, "None."),
            Table("Evidence", ("evidence", *numbers.values(), "exculpates"), pieces, "None."),
        ),
    )


def _weight(view: View, hypothesis: str, piece: Shown) -> Cell:
    weight = as_map(view.value(piece, "weights")).get(hypothesis, "")
    return "" if weight == Weight.NEUTRAL else weight.replace("-", "−")


def grade(view: View) -> Section:
    """What leads, and why it is not more."""
    c = view.one("conclusion")
    parts = (
        ("Why it is not more", "reasons"),
        ("Would decide between the leading two", "missing"),
        ("Not known", "unknown"),
    )
    rows = [Row((name, text)) for name, field in parts for text in as_list(view.value(c, field))]
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
    told = [a for a in view.of("access") if view.number(a, "disclosures") or view.value(a, "ended")]
    rows = view.rows(told, "account", "disclosures", "followed", "expected", "ended")
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
                rows,
                "No record of disclosures or of ended access.",
            ),
        ),
    )
