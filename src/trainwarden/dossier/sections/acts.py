"""What was done and when: artefacts, each act on them, where each digest appears first, the timeline (pure)."""

from __future__ import annotations

from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.plots import timeline
from trainwarden.dossier.techniques import technique_name
from trainwarden.dossier.view import UNKNOWN, Cell, Hidden, Row, Section, Table, View, joined
from trainwarden.report.incident import span
from trainwarden.report.words import count, short

_ACTS = ("time (UTC)", "account", "session", "host", "act", "artefact, before → after", "technique", "run")


def acts(view: View) -> Section:
    """Artefacts, acts on them, and where each digest appears first."""
    return Section(
        "acts",
        "Acts, one by one",
        'What any source tells of an artefact. "Its job" means that a job of the account did it: that tells who ran '
        "it, not who wrote what it ran. Times are corrected by the measured clocks.",
        tables=(
            Table("Acts on artefacts", _ACTS, _acts(view), "No source tells who wrote an artefact."),
            Table(
                "Artefacts",
                ("path", "what", "before", "as found", "found", "technique", "run"),
                _artefacts(view),
                "None.",
            ),
            Table(
                "Earliest appearance of each digest",
                ("artefact", "earliest", "account", "host", "named by weak sources"),
                _origins(view),
                "None.",
            ),
        ),
    )


def _acts(view: View) -> tuple[Row, ...]:
    return view.rows(
        view.of("act"),
        lambda a: f"{view.time(a, 'time_ns')} ± {span(int(view.number(a, 'error_ns')))}",
        lambda a: joined([view.cell(a, "who"), "(its job)" if view.value(a, "by_job") else ""]),
        "session",
        "host",
        lambda a: joined([view.cell(a, "act"), f"({count(int(view.number(a, 'sources')), 'source')})"]),
        lambda a: joined([view.cell(a, "path"), _digests(view, a)]),
        lambda a: _technique(view, a),
        "run",
    )


def _artefacts(view: View) -> tuple[Row, ...]:
    return view.rows(
        view.of("artefact"),
        "path",
        "what",
        lambda a: _digest(view, a, "before"),
        lambda a: _digest(view, a, "digest"),
        view.at("found_ns"),
        lambda a: _technique(view, a),
        "run",
    )


def _origins(view: View) -> tuple[Row, ...]:
    """Each digest that some record has, then in one row those that none has."""
    found = [o for o in view.of("origin") if view.number(o, "time_ns") or view.value(o, "pointers")]
    rest = [o for o in view.of("origin") if o not in found]
    rows = view.rows(
        found,
        lambda o: view.cell(view.item(view.text(o, "artefact")), "path"),
        lambda o: view.time(o, "time_ns") or UNKNOWN,
        view.known("who"),
        "host",
        "pointers",
    )
    if not rest:
        return rows
    words = f"{'the others' if found else 'all of them'} ({len(rest)}): no source has their digests"
    return (*rows, Row((words, UNKNOWN, UNKNOWN, "", ""), tuple(o.id for o in rest)))


def _digest(view: View, item: Shown, name: str) -> Cell:
    cell = view.cell(item, name)
    return cell if isinstance(cell, Hidden) else short(cell) if cell else ""


def _digests(view: View, act: Shown) -> Cell:
    found = _digest(view, act, "found")
    return joined([_digest(view, act, "before"), "→", found]) if view.value(act, "before") else found


def _technique(view: View, item: Shown) -> str:
    technique = view.text(item, "technique")
    return f"{technique} {technique_name(technique)}".strip()


def times(view: View) -> Section:
    """The timeline and its clocks."""
    clocks = view.rows(view.of("clock"), lambda c: view.cell(view.item(view.text(c, "source")), "name"), "words")
    return Section(
        "timeline",
        "Timeline",
        "One timeline of all sources, each mark with the error of its clock (an arrow where it reaches further than "
        "the drawing). Full: what a source that its subject could not write tells; hollow: of a job.",
        drawings=(timeline(view),),
        tables=(Table("Clocks", ("source", "against the reference"), clocks, "No clock was compared."),),
    )
