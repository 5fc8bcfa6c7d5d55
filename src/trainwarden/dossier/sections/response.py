"""What it cost and what was done: damage, containment, recovery, controls (pure)."""

from __future__ import annotations

from trainwarden.dossier.nouns import Shown
from trainwarden.dossier.plots import falls
from trainwarden.dossier.sections.findings import lost
from trainwarden.dossier.view import UNKNOWN, Cell, Hidden, Row, Section, Table, View, joined, named
from trainwarden.report.words import when

_MOST = 360  # characters of a field
_UNTOLD = ("type", "wall_ns", "signature", "key", "index", "approvals", "alert", "runs", "findings", "verdicts")


def damage(view: View) -> Section:
    """The account, and public statements against it."""
    lines = view.rows(
        view.of("loss"),
        "line",
        lambda x: amount(view, x, "low"),
        lambda x: amount(view, x, "mid"),
        lambda x: amount(view, x, "high"),
        "unit",
        "how",
        "unknown",
    )
    claims = view.rows(view.of("claim"), "text", "stand", "why", "missing")
    account = view.one("account")
    return Section(
        "damage",
        "Damage",
        "Lines are disjoint: a GPU-second is in one at most. Failures that happen anyway are "
        "subtracted. Delay is in no sum.",
        told=(Row((lost(view),), (account.id,)),) if account else (),
        drawings=falls(view),
        tables=(
            Table(
                "Lines",
                ("line", "lowest", "most likely", "highest", "unit", "how", UNKNOWN),
                lines,
                "No account was made.",
            ),
            Table("Public statements", ("statement", "is", "why", "needed"), claims, "None was tested."),
        ),
    )


def amount(view: View, loss: Shown, name: str) -> Cell:
    """An amount of a line, "not known" where nothing of it was found and something is open."""
    value = view.value(loss, name)
    if isinstance(value, Hidden):
        return value
    number = view.number(loss, name)
    return UNKNOWN if not view.number(loss, "high") and view.value(loss, "unknown") else f"{number:,.3g}"


def entries(view: View, *types: str) -> tuple[Row, ...]:
    return tuple(
        Row(
            (when(int(view.number(e, "entry.wall_ns"))), view.text(e, "entry.type").replace("_", " "), _told(view, e)),
            (e.id,),
        )
        for e in view.entries(*types)
    )


def _told(view: View, entry: Shown) -> Cell:
    """What an entry says beside its type and time; of a long field how it begins."""
    names = [n.removeprefix("entry.") for n in entry.names if n.startswith("entry.") and "@" not in n]
    parts: list[Cell] = []
    for name in names:
        value = view.value(entry, f"entry.{name}")
        if name in _UNTOLD:
            continue
        if isinstance(value, Hidden):
            parts.append(value)
        else:
            said, text = named(name, value)
            parts.append(f"{said}: {text if len(text) <= _MOST else text[: _MOST - 1] + '…'}")
    shown = [p for p in parts if not isinstance(p, Hidden)]
    return "; ".join(shown) if shown else (parts[0] if parts else "")


def containment(view: View) -> Section:
    """What was done, and what serving was given."""
    head = ("time", "entry", "what it says")
    return Section(
        "containment",
        "Containment and clearance for serving",
        "What was done, and what serving was given. Only a checkpoint whose whole lineage was reproduced is cleared.",
        tables=(
            Table(
                "Done to contain",
                head,
                entries(view, "contained", "undone", "quarantined", "responded", "released"),
                "Nothing is logged.",
            ),
            Table(
                "Decisions of the gate",
                head,
                entries(
                    view, "checkpoint_cleared", "checkpoint_refused", "clearance_refused", "promoted", "rolled_back"
                ),
                "The gate decided nothing about these runs.",
            ),
            Table(
                "Checkpoints of the runs",
                ("run", "how they stand"),
                view.rows(view.of("run"), "run", "standings"),
                "None.",
            ),
        ),
    )


def recovery(view: View) -> Section:
    """What was put back, and what is open."""
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
                entries(view, "restored", "recovered"),
                "No recovery is logged.",
            ),
            Table("Residual", ("run", "what is open"), tuple(open_), "Every recorded step was reproduced."),
        ),
    )


def controls(view: View) -> Section:
    """Findings, and what was open to change."""
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
    records = view.of("records")
    weak = view.rows(
        [r for r in records if view.value(r, "weak")], "name", "kind", lambda _: "its subject can write it at will"
    )
    editable = view.rows(
        [r for r in records if not view.value(r, "weak") and view.value(r, "editors")],
        "name",
        "kind",
        lambda r: joined(["could be edited by", view.cell(r, "editors")]),
    )
    gaps = [Row((view.cell(e, "log"), "gap", view.cell(e, "entry.reason")), (e.id,)) for e in view.entries("gap")]
    return Section(
        "controls",
        "Controls that raised something, and controls that failed",
        "A finding is a suspicion with its benign explanations. Below it is what was open to change "
        "or was not recorded.",
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
                (*weak, *editable, *gaps),
                "Nothing is told.",
            ),
        ),
    )
