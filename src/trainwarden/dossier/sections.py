"""The sections of a dossier, in the order in which an expert reads them (pure).

Nobody is called guilty here: what is established is what a replay proved of *digests*; of accounts, what records
say; of persons, nothing. Every sentence and every row names the items that it stands on.
"""

from __future__ import annotations

from trainwarden.dossier.glossary import GLOSSARY
from trainwarden.dossier.notices import ROUTES
from trainwarden.dossier.nouns import Audience, Shown
from trainwarden.dossier.plots import falls, timeline
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
    lines_of,
    words_of,
)
from trainwarden.report.incident import span
from trainwarden.report.words import count, short, when

_DECIDED = ("matched", "diverged", "inconclusive", "explanation")
_UNKNOWN = "not known"


def sections(view: View) -> list[Section]:
    """All of them."""
    makers = (
        _finding,
        _scope,
        _parties,
        _acts,
        _times,
        _causes,
        _hypotheses,
        _grade,
        _adaptation,
        _damage,
        _containment,
        _recovery,
        _controls,
        _statements,
        _register,
        _investigators,
        _routing,
        _kit,
        _glossary,
    )
    return [make(view) for make in makers]


# --------------------------------------------------------------------------- what was found


def _finding(view: View) -> Section:
    established = _established(view)
    conclusion = view.one("conclusion")
    likely = [Row((view.cell(conclusion, "sentence"),), view.refs(conclusion))] if conclusion else []
    account = view.one("account")
    if account is not None:
        likely.append(Row((_lost(view),), (account.id,)))
    unknown = [Row((text,), view.refs(conclusion)) for text in as_list(view.value(conclusion, "unknown"))]
    unknown += [Row((f"{view.text(g, 'what')}: {view.text(g, 'why')}",), (), g.id) for g in view.of("gap")]
    return Section(
        "finding",
        "The finding on one page",
        "Established is what replays and digests prove, and it is about files, steps and tensors. Likely is what records say "
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


def _lost(view: View) -> Cell:
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


def _scope(view: View) -> Section:
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


def _parties(view: View) -> Section:
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


def _acts(view: View) -> Section:
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
        'What any source tells of an artefact. "Its job" means that a job of the account did it: that tells who ran it, not who '
        "wrote what it ran. Times are corrected by the measured clocks.",
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


def _times(view: View) -> Section:
    sources = [
        view.row(c, view.cell(view.item(view.text(c, "source")), "name"), view.cell(c, "words"))
        for c in view.of("clock")
    ]
    return Section(
        "timeline",
        "Timeline",
        "One timeline of all sources, each mark with the error of its clock. Full: what a source that its subject could not write "
        "tells; hollow: of a job.",
        drawings=(timeline(view),),
        tables=(Table("Clocks", ("source", "against the reference"), tuple(sources), "No clock was compared."),),
    )


def _causes(view: View) -> Section:
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
        "A clean replay shows that something differs. A replay with one change that gives the recorded digest bit for bit shows what. "
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


def _hypotheses(view: View) -> Section:
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
        "A hypothesis stands by how little contradicts it. ++ and -- are strong; an empty cell says nothing either way. The last column "
        "is of accounts that the evidence speaks for.",
        tables=(
            Table("Hypotheses", ("hypothesis", "in words", "stands"), tuple(words), "None."),
            Table("Evidence", head, tuple(rows), "None."),
        ),
    )


def _grade(view: View) -> Section:
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
        "Grades are words; no probability is invented. Without evidence that binds a person, attribution ends at an account.",
        tables=(
            Table(
                "What leads", ("hypothesis", "grade", "reaches to"), (stated,) if c else (), "Nothing was attributed."
            ),
            Table("Limits", ("", ""), tuple(rows), "None are told."),
        ),
    )


def _adaptation(view: View) -> Section:
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
        "Software says nothing of intent. Below is what can be counted: acts within a day of something becoming known to an account, "
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


# --------------------------------------------------------------------------- damage and response


def _damage(view: View) -> Section:
    lines = [
        view.row(
            x,
            view.cell(x, "line"),
            view.cell(x, "low"),
            view.cell(x, "mid"),
            view.cell(x, "high"),
            view.cell(x, "unit"),
            view.cell(x, "how"),
            view.cell(x, "unknown"),
        )
        for x in view.of("loss")
    ]
    claims = [
        view.row(x, view.cell(x, "text"), view.cell(x, "stand"), view.cell(x, "why"), view.cell(x, "missing"))
        for x in view.of("claim")
    ]
    account = view.one("account")
    return Section(
        "damage",
        "Damage",
        "Lines are disjoint: a GPU-second is in one at most. Failures that happen anyway are subtracted. Delay is in no sum.",
        told=(Row((_lost(view),), (account.id,)),) if account else (),
        drawings=falls(view),
        tables=(
            Table(
                "Lines",
                ("line", "lowest", "most likely", "highest", "unit", "how", _UNKNOWN),
                tuple(lines),
                "No account was made.",
            ),
            Table("Public statements", ("statement", "is", "why", "needed"), tuple(claims), "None was tested."),
        ),
    )


def _entries(view: View, *types: str) -> tuple[Row, ...]:
    return tuple(
        Row(
            (when(int(view.number(e, "entry.wall_ns"))), view.text(e, "entry.type").replace("_", " "), _told(view, e)),
            (e.id,),
        )
        for e in view.entries(*types)
    )


def _told(view: View, entry: Shown) -> Cell:
    """What an entry says beside its type and time, its short fields only."""
    skipped = {
        "type",
        "wall_ns",
        "signature",
        "key",
        "index",
        "approvals",
        "alert",
        "runs",
        "findings",
        "verdicts",
        "artefacts",
        "evidence",
    }
    names = [n.removeprefix("entry.") for n in entry.names if n.startswith("entry.") and "@" not in n]
    parts: list[Cell] = []
    for name in names:
        cell = view.cell(entry, f"entry.{name}")
        if name not in skipped and (isinstance(cell, Hidden) or len(cell) < 300):
            parts.append(cell if isinstance(cell, Hidden) else f"{name.replace('_', ' ')}: {cell};")
    shown = [p for p in parts if not isinstance(p, Hidden)]
    return " ".join(shown) if shown else (parts[0] if parts else "")


def _containment(view: View) -> Section:
    head = ("time", "entry", "what it says")
    return Section(
        "containment",
        "Containment and clearance for serving",
        "What was done, and what serving was given. Only a checkpoint whose whole lineage was reproduced is cleared.",
        tables=(
            Table(
                "Done to contain",
                head,
                _entries(view, "contained", "undone", "quarantined", "responded", "released"),
                "Nothing is logged.",
            ),
            Table(
                "Decisions of the gate",
                head,
                _entries(
                    view, "checkpoint_cleared", "checkpoint_refused", "clearance_refused", "promoted", "rolled_back"
                ),
                "The gate decided nothing about these runs.",
            ),
            Table(
                "Checkpoints of the runs",
                ("run", "how they stand"),
                tuple(view.row(r, view.cell(r, "run"), view.cell(r, "standings")) for r in view.of("run")),
                "None.",
            ),
        ),
    )


def _recovery(view: View) -> Section:
    open_ = [
        Row(
            (
                view.cell(r, "run"),
                f"{int(view.number(r, 'records') - view.number(r, 'matched')):,} step records were not reproduced",
            ),
            (r.id,),
        )
        for r in view.of("run")
        if view.number(r, "records") > view.number(r, "matched")
    ]
    return Section(
        "recovery",
        "Recovery and residual risk",
        "What was put back, and what nobody has looked at. A step that was not replayed is not known to be clean.",
        tables=(
            Table(
                "Put back",
                ("time", "entry", "what it says"),
                _entries(view, "restored", "recovered"),
                "No recovery is logged.",
            ),
            Table("Residual", ("run", "what is open"), tuple(open_), "Every recorded step was reproduced."),
        ),
    )


def _controls(view: View) -> Section:
    rows = [
        Row(
            (
                view.cell(e, "entry.detector"),
                view.cell(e, "entry.severity"),
                view.cell(e, "entry.seen"),
                view.cell(e, "entry.expected"),
                view.cell(e, "entry.benign"),
            ),
            (e.id,),
        )
        for e in view.entries("finding")
    ]
    weak = [
        view.row(r, view.cell(r, "name"), view.cell(r, "kind"), "its subject can write it at will")
        for r in view.of("records")
        if view.value(r, "weak")
    ]
    editable = [
        view.row(r, view.cell(r, "name"), view.cell(r, "kind"), joined(["could be edited by", view.cell(r, "editors")]))
        for r in view.of("records")
        if not view.value(r, "weak") and view.value(r, "editors")
    ]
    gaps = [Row((view.cell(e, "log"), "gap", view.cell(e, "entry.reason")), (e.id,)) for e in view.entries("gap")]
    return Section(
        "controls",
        "Controls that raised something, and controls that failed",
        "A finding is a suspicion with its benign explanations. Below it is what was open to change or was not recorded.",
        tables=(
            Table(
                "Findings",
                ("detector", "severity", "seen", "expected", "may be benign because"),
                tuple(rows),
                "No detector raised anything.",
            ),
            Table(
                "Open to change, or not recorded",
                ("source", "kind", "why"),
                tuple([*weak, *editable, *gaps]),
                "Nothing is told.",
            ),
        ),
    )


# --------------------------------------------------------------------------- people, evidence, routing


def _statements(view: View) -> Section:
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
    rows = [
        view.row(s, view.cell(s, "role"), view.cell(s, "name"), view.cell(s, "digest"), view.cell(s, "bytes"))
        for s in said
    ]
    return Section(
        "statements",
        "The respondent's statement, and the rebuttal",
        "In their own words, as handed in.",
        told=tuple(missing),
        tables=(Table("As taken in", ("role", "file", "digest (BLAKE3)", "bytes"), tuple(rows), "None."),),
        quotes=tuple((view.cell(s, "role"), lines_of(view.cell(s, "text"))) for s in said),
    )


def _register(view: View) -> Section:
    records = [
        view.row(
            r,
            view.cell(r, "name"),
            view.cell(r, "kind"),
            view.cell(r, "digest"),
            view.cell(r, "events"),
            view.cell(r, "unread") or "0",
            joined([view.cell(r, "taken_by"), view.time(r, "taken_ns")]),
            view.cell(r, "editors"),
            view.cell(r, "doubted") or view.cell(r, "missing"),
        )
        for r in view.of("records")
    ]
    lines = [
        view.row(
            x,
            view.cell(view.item(view.text(x, "source")), "name"),
            f"{int(view.number(x, 'line'))}",
            view.time(x, "time_ns"),
            joined([view.cell(x, "login") or view.cell(x, "account")]),
            view.cell(x, "host"),
            view.cell(x, "act"),
            view.cell(x, "path"),
            view.cell(x, "note"),
        )
        for x in view.of("line")
    ]
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
        "Each record with its digest and who took it in; each line that something above stands on; each entry with its place in a "
        "Merkle log. register.json has all of it with salts and proofs.",
        tables=(
            Table(
                "Records",
                ("file", "kind", "digest (BLAKE3)", "events", "unread", "taken in by", "could be edited by", "trouble"),
                tuple(records),
                "No record was taken in.",
            ),
            Table(
                "Lines",
                ("record", "line", "time (UTC)", "account", "host", "act", "on", "note"),
                tuple(lines),
                "No line is cited.",
            ),
            Table("Entries of logs", ("item", "log", "entry", "type", "proof"), tuple(entries), "None."),
        ),
    )


def _proof(entry: Shown) -> str:
    if entry.proof is None:
        return "hidden in part: bound by commitments"
    return f"in the log: {count(len(entry.proof.hashes), 'hash')} to the root".replace("hashs", "hashes")


def _investigators(view: View) -> Section:
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
        tables=(Table("", ("time", "entry", "what it says"), _entries(view, *types), "None."),),
    )


def _routing(view: View) -> Section:
    rows = []
    for audience, (to, why) in ROUTES.items():
        draft = "" if audience is Audience.ORGANISATION else f"notices/{audience}.md"
        rows.append(Row((to, why, draft or "not applicable, because the organisation made this")))
    return Section(
        "notices",
        "Notices and routing",
        "Drafts, for a human to approve. Nothing was sent, and nothing here can send.",
        tables=(Table("", ("to", "why they are told, or not", "draft"), tuple(rows)),),
    )


def _kit(view: View) -> Section:
    absent = [Row((path, why)) for path, why in sorted(view.manifest.absent.items())]
    here = any(m.startswith("kit/") for m in _paths(view))
    told = (
        "trainwarden verify --reproduce unpacks the kit, replays the diverging steps from sealed inputs in a clean environment, tries "
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


def _glossary(view: View) -> Section:
    rows = tuple(Row((word, meaning)) for word, meaning in GLOSSARY)
    return Section("glossary", "Glossary", tables=(Table("", ("word", "meaning"), rows),))


def account_of(view: View) -> dict[str, object] | None:
    """The account of damage as it is in the edition, None where there is none or it is hidden."""
    value = view.value(view.one("account"), "account")
    return value if isinstance(value, dict) else None
