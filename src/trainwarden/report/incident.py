"""An incident on the terminal: the conclusion first, then hypotheses, evidence, opportunity, deeds and clocks."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainwarden.attribute.nouns import Attribution, Clock, Grade, Presence, Row
from trainwarden.model import Evidence, Incident
from trainwarden.report.words import clean, count, short, when

_MOST = 24
_STYLES = {Grade.STRONG: "bold", Grade.LIKELY: "bold", Grade.EXCLUDED: "dim", Grade.UNSUPPORTED: "dim"}
_SECOND_NS = 1_000_000_000


def print_incident(console: Console, incident: Incident, told: Attribution) -> None:
    """Everything that attribution says of an incident, bounded; `--json` has all of it."""
    conclusion = told.conclusion
    console.print(_text(f"incident {incident.id}, {incident.status}: {incident.title}", "bold"))
    console.print(_text(conclusion.sentence))
    _list(console, "not more, because", conclusion.reasons)
    _list(console, "would decide between the leading two", conclusion.missing)
    _list(console, "not known", conclusion.unknown)
    console.print(_hypotheses(told))
    console.print(_pieces(told))
    console.print(_deeds(told))
    console.print(_matrix(told))
    console.print(_sources(incident.custody, told.clocks))


def _list(console: Console, head: str, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(_text(f"  {head}: {line}"))


def _hypotheses(told: Attribution) -> Table:
    table = _table("hypotheses side by side", "hypothesis", "stands", "for", "against")
    for s in told.hypotheses[:_MOST]:
        numbers = [", ".join(str(n + 1) for n in places) for places in (s.supporting, s.opposing)]
        table.add_row(_text(s.hypothesis.words), Text(s.grade, _STYLES.get(s.grade, "")), *numbers)
    return table


def _pieces(told: Attribution) -> Table:
    table = _table("evidence", "", "what was found", "exculpates", "lines")
    for n, piece in enumerate(told.pieces, 1):
        table.add_row(str(n), _text(piece.sentence), _text(", ".join(piece.exculpates)), str(len(piece.told)))
    return table


def _deeds(told: Attribution) -> Table:
    table = _table("deeds", "time (UTC)", "±", "account", "host", "act", "artefact", "sources")
    for deed in told.deeds[:_MOST]:
        artefact = told.traces[deed.artefact].artefact
        who = f"{deed.who} (its job)" if deed.by_job else deed.who
        table.add_row(
            when(deed.time_ns), span(deed.error_ns), _text(who), _text(deed.host), deed.act.value,
            _text(f"{artefact.path or '?'} {short(artefact.digest) if artefact.digest else ''}"),
            str(len({at.source for at in deed.told})),
        )  # fmt: skip
    return _more(table, len(told.deeds))


def _matrix(told: Attribution) -> Table:
    table = _table("opportunity", "account", "kind", "access", "present", "absent", "not known", "access ended")
    rows = sorted(told.matrix, key=lambda r: -sum(c.presence is Presence.ACTING for c in r.cells))
    for row in rows[:_MOST]:
        table.add_row(*(_text(cell) for cell in matrix_row(row)))
    return _more(table, len(rows))


def matrix_row(row: Row) -> tuple[str, ...]:
    """One account over all deeds, in numbers of deeds."""
    present = sum(c.presence in (Presence.ACTING, Presence.SESSION, Presence.ACTIVE) for c in row.cells)
    away = sum(c.presence in (Presence.ABSENT, Presence.NOT_SEEN) for c in row.cells)
    access = sum(c.access == "yes" for c in row.cells)
    return (
        row.account,
        row.kind.value if row.kind else "",
        f"{access} of {len(row.cells)}",
        str(present),
        str(away),
        str(len(row.cells) - present - away),
        f"{when(row.revoked_ns)}, {row.deeds_after} after" if row.revoked_ns else "",
    )


def _sources(evidence: Sequence[Evidence], clocks: Sequence[Clock]) -> Table:
    table = _table("sources", "source", "kind", "events", "unread", "could be edited by", "clock")
    for one in evidence[:_MOST]:
        mine = [c for c in clocks if c.source == one.id]
        editors = ", ".join(one.editors) + (" (weak)" if one.weak else "")
        table.add_row(
            _text(f"{one.name} {short(one.id)}"), one.kind.value, f"{one.events:,}", str(one.unread or ""),
            _text(editors), _text("; ".join(clock_words(c) for c in mine[:3])),
        )  # fmt: skip
    return _more(table, len(evidence))


def clock_words(clock: Clock) -> str:
    """How a clock stands to the reference."""
    where = f"{clock.host}: " if clock.host else ""
    if not clock.shared and clock.error_ns:
        return f"{where}not measured, ± {span(clock.error_ns)} assumed"
    if not clock.shared:
        return f"{where}the reference"
    if not clock.offset_ns:
        return f"{where}even, ± {span(clock.error_ns)} ({count(clock.shared, 'shared event')})"
    ahead = "ahead" if clock.offset_ns >= 0 else "behind"
    return (
        f"{where}{span(abs(clock.offset_ns))} {ahead}, ± {span(clock.error_ns)} ({count(clock.shared, 'shared event')})"
    )


def span(ns: int) -> str:
    """A length of time in a unit that suits it."""
    for unit, size in (("s", _SECOND_NS), ("ms", 1_000_000), ("µs", 1000)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns} ns"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _more(table: Table, rows: int) -> Table:
    if rows > _MOST:
        table.caption = f"and {rows - _MOST} more (--json has all of them)"
    return table


def _text(text: str, style: str = "") -> Text:
    return Text(clean(text), style)
