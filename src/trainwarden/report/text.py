"""Cases on the terminal, with rich. Text from a log is cleaned first and never read as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainwarden.casefile import Answer, Broken, CaseFile, coverage_share, explanation_of, indexed
from trainwarden.checks import Check, Failed, NotChecked, Passed
from trainwarden.descent import Frozen
from trainwarden.model import Diverged, Finding, Outcome, ProcessStarted, Standing, StepRecord
from trainwarden.report import summary, tables
from trainwarden.report.events import bounded, timeline
from trainwarden.report.lineage_chart import chosen
from trainwarden.report.sampled import sampled_facts
from trainwarden.report.words import clean, clock, count, percent, short, tail, when

STYLES: Mapping[Answer, str] = {
    Answer.BROKEN: "bold red",
    Answer.DIVERGED: "bold red",
    Answer.UNDECIDED: "bold magenta",
    Answer.MATCHED: "bold blue",
    Answer.NOT_AUDITED: "bold",
}
_STANDINGS: Mapping[Standing, str] = {
    Standing.CLEARED: "blue",
    Standing.TAINTED: "red",
    Standing.UNDECIDED: "magenta",
    Standing.UNAUDITED: "",
}
_MOST_ROWS = 24


def print_runs(console: Console, rows: Sequence[tuple[str, CaseFile | str]]) -> None:
    """One line a run; a run that cannot be read has its error there."""
    room = console.width - 82  # what the other columns leave to the command
    table = _table("run", "started", *(["command"] if room > 16 else []), "steps", "findings", "replayed", "answer")
    width = len(table.columns)
    for run, case in rows:
        if isinstance(case, str):
            table.add_row(_text(run), *[""] * (width - 2), _text(case, "red"))
            continue
        steps = len({e.step for e in case.entries if isinstance(e, StepRecord)})
        table.add_row(
            _text(run),
            _text(when(case.sealed.wall_ns)[5:16]),
            *([_text(clean(_command(case), room))] if room > 16 else []),
            str(steps),
            str(len(indexed(case.entries, Finding))),
            percent(coverage_share(case.audited)),
            _text(case.answer.value, STYLES[case.answer]),
        )
    console.print(table)


def print_case(console: Console, case: CaseFile, frozen: Sequence[Frozen] = ()) -> None:
    """What was sealed, how it went, findings, checkpoints and their standing, what to do next."""
    console.print(_text(summary.headline(case), STYLES[case.answer]), _text(f"  run {case.run}", "dim"))
    console.print(_text(summary.subline(case)))
    for sentence in summary.freezes(case, frozen):
        console.print(_text(sentence, "bold red"))
    console.print()
    for part in summary.story(case):
        console.print(_text(part.value))
    _section(console, "Sealed", _sealed(case))
    _section(console, "How it went", _events(case))
    if indexed(case.entries, Diverged):
        _section(console, "Replays that differ", _divergences(case))
    _section(console, "Alerts (findings of one cause)", _alerts(case))
    _section(console, "Findings (suspicion, not evidence)", _findings(case))
    _section(console, "Checkpoints", _checkpoints(case))
    if told := sampled_facts(case):
        _section(console, "Sampled audit", _told(told))
    _section(console, "Not checked", _missing(case))
    console.print()
    console.print(Text("Next", "bold underline"))
    for step in (*summary.next_steps(case), summary.Fact(f"trainwarden report {case.run}", "all of this as a page")):
        console.print(_text(f"  {step.name}", "bold"), _text(f"# {step.value}", "dim"), soft_wrap=True)


def print_checks(console: Console, subject: str, checks: Sequence[Check]) -> None:
    """One line a check."""
    table = _table("check", "result", "")
    for check in checks:
        match check.result:
            case Passed(seen=seen):
                table.add_row(check.name, _text("passed", "blue"), _text(seen))
            case Failed(reason=reason):
                table.add_row(check.name, _text("FAILED", "bold red"), _text(reason))
            case NotChecked(reason=reason):
                table.add_row(check.name, _text("not checked", "magenta"), _text(reason))
    console.print(_text(subject, "bold"))
    console.print(table)


# --------------------------------------------------------------------------- parts


def _command(case: CaseFile) -> str:
    return " ".join(case.seal.seal.argv) if case.seal else ""


def _sealed(case: CaseFile) -> RenderableType:
    if case.seal is None:
        reason = case.state.reason if isinstance(case.state, Broken) else "the seal cannot be read"
        return _text(reason, "red")
    seal, table = case.seal.seal, _pairs()
    table.add_row("command", _text(" ".join(seal.argv)))
    table.add_row("seal", _text(f"{short(case.seal.digest)} of {when(seal.created_ns)}, key {short(case.key)}"))
    table.add_row("approved", _text(tables.approval_line(case)))
    for ref in (seal.code, seal.environment, seal.data):
        table.add_row(ref.kind, _text(f"{count(ref.files, 'file')}, {ref.bytes / 1e6:,.1f} MB, {short(ref.digest)}"))
    if seal.git_commit:
        table.add_row("commit", _text(seal.git_commit[:12] + (" with uncommitted changes" if seal.git_dirty else "")))
    starts = {s.attempt: s.world for _, s in indexed(case.entries, ProcessStarted)}
    if starts:
        table.add_row("ranks", _text(f"{max(starts.values())} in {count(len(starts), 'attempt')}"))
    return table


def _events(case: CaseFile) -> RenderableType:
    events, more = bounded(timeline(case.entries), _MOST_ROWS)
    table = _pairs(3)
    for e in events:
        style = {"alert": "yellow", "evidence": "red", "good": "blue"}.get(e.kind, "")
        table.add_row(_text(clock(e.wall_ns), "dim"), _text(e.what, style), _text(e.text))
    if more:
        table.add_row("", "", _text(f"… and {more:,} more", "dim"))
    return table


def _divergences(case: CaseFile) -> RenderableType:
    table = _table("step", "rank", "stage", "tensor", "recorded", "replayed", "cause")
    for _, verdict in indexed(case.entries, Diverged)[:_MOST_ROWS]:
        at, told = verdict.at, explanation_of(case.entries, verdict)
        cause = "not looked for" if told is None else told[1].cause or "not established"
        proved = told is not None and any(h.outcome is Outcome.REPRODUCED for h in told[1].hypotheses)
        cells = (
            str(at.step),
            str(at.rank),
            at.subject,
            at.tensor,
            short(at.recorded),
            short(at.replayed),
        )
        table.add_row(*map(_text, cells), _text(cause + (" (proof)" if proved else ""), "bold" if proved else ""))
    return table


def _alerts(case: CaseFile) -> RenderableType:
    shown, more = tables.alerts(case)
    if not shown:
        return _text("none", "dim")
    table = _table("alert", "severity", "findings", "what it is")
    for a in shown[:_MOST_ROWS]:
        benign = f" Could also be: {'; '.join(a.benign)}." if a.benign else ""
        table.add_row(a.id, _text(a.severity.value), str(a.count), _text(clean(a.title + benign, 300)))
    more += max(0, len(shown) - _MOST_ROWS)
    if more:
        table.add_row("", "", "", _text(f"… and {more:,} more", "dim"))
    return table


def _findings(case: CaseFile) -> RenderableType:
    shown, more = tables.findings(case)
    if not shown:
        return _text("none", "dim")
    table = _table("severity", "detector", "step", "what was seen")
    for _, f in shown[:_MOST_ROWS]:
        step = str(f.step) if f.step >= 0 else ""
        table.add_row(_text(f.severity.value), _text(f.detector), step, _text(clean(f.seen, 200)))
    more += max(0, len(shown) - _MOST_ROWS)
    if more:
        table.add_row("", "", "", _text(f"… and {more:,} more", "dim"))
    return table


def _checkpoints(case: CaseFile) -> RenderableType:
    if not case.history.checkpoints:
        return _text("none was recorded", "dim")
    table = _table("step", "attempt", "standing", "why", "file")
    for c in chosen(case.history.checkpoints, _MOST_ROWS):
        path = tail(c.files[0].path, 2) if c.files else ""
        standing = _text(c.standing.value, _STANDINGS[c.standing])
        table.add_row(str(c.step), str(c.attempt), standing, _text(clean(c.reason, 160)), _text(path))
    return table


def _told(facts: Sequence[summary.Fact]) -> RenderableType:
    table = _pairs(3)
    for f in facts:
        table.add_row(_text(f.name), _text(f.value), _text(f.note, "dim"))
    return table


def _missing(case: CaseFile) -> RenderableType:
    table = _pairs()
    missing = summary.not_checked(case)
    for m in missing:
        table.add_row(_text(m.what), _text(m.why))
    return table if missing else _text("nothing: every recorded step was replayed, every stage compared", "dim")


# --------------------------------------------------------------------------- helpers


def _section(console: Console, name: str, body: RenderableType) -> None:
    console.print()
    console.print(Text(name, "bold underline"))
    console.print(Padding(body, (0, 0, 0, 2)))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _pairs(columns: int = 2) -> Table:
    table = Table.grid(padding=(0, 2))
    for n in range(columns):
        table.add_column(overflow="fold", style="" if n else "dim")
    return table


def _text(value: str, style: str = "") -> Text:
    return Text(clean(value), style, overflow="fold")
