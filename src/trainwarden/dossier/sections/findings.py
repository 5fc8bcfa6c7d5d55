"""What was found: the finding on one page, its scope, who is in it, each act, and when (pure)."""

from __future__ import annotations

from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.plots import timeline
from trainwarden.dossier.techniques import technique_name
from trainwarden.dossier.view import (
    Cell,
    Hidden,
    Row,
    Section,
    Table,
    View,
    as_list,
    as_map,
    joined,
    words_of,
)
from trainwarden.report.incident import span
from trainwarden.report.words import short

_UNKNOWN = "not known"
_DECIDED = ("matched", "diverged", "inconclusive", "explanation")


def finding(view: View) -> Section:
    """Established, likely, not known."""
    established = _established(view)
    conclusion = view.one("conclusion")
    likely = [Row((view.cell(conclusion, "sentence"),), view.refs(conclusion))] if conclusion else []
    account = view.one("account")
    if account is not None:
        likely.append(Row((lost(view),), (account.id,)))
    unknown = [Row((text,), view.refs(conclusion)) for text in as_list(view.value(conclusion, "unknown"))]
    unknown += [Row((f"{view.text(g, 'what')}: {view.text(g, 'why')}",), (), g.id) for g in view.of("gap")]
    return Section(
        "finding",
        "The finding on one page",
        "Established is what replays and digests prove, and it is about files, steps and tensors. "
        "Likely is what records say "
        "about accounts. Everything about people is alleged.",
        tables=(
            Table("Established", ("",), tuple(established), "Nothing is proved by a replay."),
            Table("Likely, and alleged", ("",), tuple(likely), "Nothing."),
            Table("Not known", ("",), tuple(unknown), "Nothing is told to be missing."),
        ),
    )


def _established(view: View) -> list[Row]:
    found = []
    for entry in view.entries("diverged"):
        at = as_map(view.value(entry, "entry.at"))
        where = f"step {at.get('step', '?')}, rank {at.get('rank', '?')}, {at.get('stage', '').replace('_', ' ')}"
        of = f" of {at['tensor']}" if at.get("tensor") else ""
        found.append(Row((f"A replay from sealed inputs differs from the record at {where}{of}.",), (entry.id,)))
    for entry in view.entries("explanation"):
        cause = view.cell(entry, "entry.cause")
        if cause:
            file = view.cell(entry, "entry.file")
            parts: list[Cell] = ["The recorded digest was reproduced bit for bit by:", cause]
            found.append(Row((joined([*parts, "with the file", file] if file else parts),), (entry.id,)))
    return found


def lost(view: View) -> Cell:
    """The sum of the account in a sentence."""
    told = view.value(view.one("account"), "account")
    if not isinstance(told, dict):
        return Hidden("") if isinstance(told, Hidden) else _UNKNOWN
    lost, cost = told["lost"], told["cost"]
    return (
        f"{_amounts(lost)} GPU-hours were lost to interference, at a cost of {_amounts(cost)} {told['currency']}."
        if lost["mid"] > 0
        else f"No loss stands out from what happens anyway; at most {words_of(lost['high'])} GPU-hours."
    )


def _amounts(value: dict[str, float]) -> str:
    return f"{value['mid']:,.3g} ({value['low']:,.3g} to {value['high']:,.3g})"


def scope(view: View) -> Section:
    """What was looked at, and what was not."""
    rows = [
        view.row(
            r,
            view.cell(r, "run"),
            view.cell(r, "command"),
            view.cell(r, "sentence"),
            f"{view.text(r, 'matched') or 0} of {view.text(r, 'records') or 0} step records",
            view.cell(r, "broken") or "verified",
        )
        for r in view.of("run")
    ]
    unseen = [
        Row((view.cell(r, "run"), stage, why), (r.id,))
        for r in view.of("run")
        for stage, why in as_map(view.value(r, "unseen")).items()
    ]
    return Section(
        "scope",
        "Scope and exclusions",
        "What was looked at, and what was not. What was not compared is no evidence either way.",
        tables=(
            Table("Runs", ("run", "command", "what is known", "reproduced", "log"), tuple(rows), "No run."),
            Table(
                "Not compared by replays",
                ("run", "stage", "why"),
                tuple(unseen),
                "No replay tells of a stage that it did not compare.",
            ),
            Table(
                "Left out",
                ("what", "why"),
                tuple(view.row(g, view.cell(g, "what"), view.cell(g, "why")) for g in view.of("gap")),
                "Nothing.",
            ),
        ),
    )


def parties(view: View) -> Section:
    """Every account, over all acts."""
    rows = [
        view.row(
            a,
            view.cell(a, "account"),
            view.cell(a, "kind") or _UNKNOWN,
            view.cell(a, "holder") or _UNKNOWN,
            view.cell(a, "access"),
            view.cell(a, "present"),
            view.cell(a, "absent"),
            view.cell(a, "unknown"),
            view.cell(a, "ended"),
        )
        for a in view.of("access")
    ]
    head = ("account", "kind", "holder", "access to", "present at", "absent or not seen", _UNKNOWN, "access ended")
    return Section(
        "parties",
        "Parties",
        "A person is not an account, and an account is not a process or an agent. Persons appear as pseudonyms of the "
        "organisation's own records, where a record binds one at all. Opportunity is access, never guilt.",
        tables=(
            Table(
                "Every account, agent and service that any source names, over all acts",
                head,
                tuple(rows),
                "No source names one.",
            ),
        ),
    )


def acts(view: View) -> Section:
    """Artefacts, acts on them, and where each digest appears first."""
    rows = [
        view.row(
            a,
            view.time(a, "time_ns"),
            span(int(view.number(a, "error_ns"))),
            joined([view.cell(a, "who"), "(its job)" if view.value(a, "by_job") else ""]),
            view.cell(a, "session"),
            view.cell(a, "host"),
            view.cell(a, "act"),
            view.cell(a, "path"),
            _digests(view, a),
            _technique(view, a),
            view.cell(a, "sources"),
        )
        for a in view.of("act")
    ]
    origins = [
        view.row(
            o,
            _path_of(view, o),
            view.time(o, "time_ns") or _UNKNOWN,
            view.cell(o, "who") or _UNKNOWN,
            view.cell(o, "host"),
            view.cell(o, "pointers"),
        )
        for o in view.of("origin")
    ]
    artefacts = [
        view.row(
            a,
            view.cell(a, "path"),
            view.cell(a, "what"),
            _digest(view, a, "before"),
            _digest(view, a, "digest"),
            view.time(a, "found_ns"),
            _technique(view, a),
        )
        for a in view.of("artefact")
    ]
    return Section(
        "acts",
        "Acts, one by one",
        'What any source tells of an artefact. "Its job" means that a job of the account did it: that tells who ran '
        "it, not who wrote what it ran. Times are corrected by the measured clocks.",
        tables=(
            Table("Artefacts", ("path", "what", "before", "as found", "found", "technique"), tuple(artefacts), "None."),
            Table(
                "Acts on them",
                (
                    "time (UTC)",
                    "±",
                    "account",
                    "session",
                    "host",
                    "act",
                    "artefact",
                    "before → after",
                    "technique",
                    "sources",
                ),
                tuple(rows),
                "No source tells who wrote an artefact.",
            ),
            Table(
                "Earliest appearance of each digest",
                ("artefact", "earliest", "account", "host", "named by weak sources"),
                tuple(origins),
                "None.",
            ),
        ),
    )


def _path_of(view: View, origin: Shown) -> Cell:
    return view.cell(view.item(view.text(origin, "artefact")), "path")


def _digest(view: View, item: Shown, name: str) -> Cell:
    cell = view.cell(item, name)
    return cell if isinstance(cell, Hidden) else short(cell) if cell else ""


def _digests(view: View, act: Shown) -> Cell:
    return joined([_digest(view, act, "before"), "→" if view.value(act, "before") else "", _digest(view, act, "found")])


def _technique(view: View, item: Shown) -> str:
    technique = view.text(item, "technique")
    return f"{technique} {technique_name(technique)}".strip()


def times(view: View) -> Section:
    """The timeline and its clocks."""
    sources = [
        view.row(c, view.cell(view.item(view.text(c, "source")), "name"), view.cell(c, "words"))
        for c in view.of("clock")
    ]
    return Section(
        "timeline",
        "Timeline",
        "One timeline of all sources, each mark with the error of its clock. Full: what a source "
        "that its subject could not write "
        "tells; hollow: of a job.",
        drawings=(timeline(view),),
        tables=(Table("Clocks", ("source", "against the reference"), tuple(sources), "No clock was compared."),),
    )
