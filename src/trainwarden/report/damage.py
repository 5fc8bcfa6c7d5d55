"""An account as a page and on the terminal. Text from records is cleaned, bounded and escaped, as in `report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import UsageError
from trainwarden.report.html import NARROW, WIDE, environment, stylesheet
from trainwarden.report.waterfall import amount, held_bar, spread, waterfall
from trainwarden.report.words import clean, count, when
from trainwarden.respond.account.claims import Held, Stand
from trainwarden.respond.account.lines import Account, Amount, JobAccount, Line, Range, percent_of

_MOST_JOBS = 40
_STYLES = {Stand.SUPPORTED: "blue", Stand.REFUTED: "red", Stand.UNDETERMINED: "magenta"}


def headline(account: Account) -> str:
    """What was lost, in one sentence."""
    if account.lost.mid > 0:
        return f"{spread(account.lost)} GPU-hours lost to interference"
    if account.lost.high > 0:
        return f"No loss that stands out from what happens anyway; at most {amount(account.lost.high)} GPU-hours"
    return "No loss was found, but not all is known" if account.is_open else "No loss to interference"


def subline(account: Account) -> str:
    """What that is of what was held, and what it costs."""
    beyond = sum(a.hours.mid for a in account.amounts if a.line in (Line.REPLAY, Line.PREEMPTION))
    share = percent_of(account.lost.mid - beyond, account.held)
    held = f"{amount(account.held)} GPU-hours held"
    of = f"{amount(share)} % of {held}" if share else held
    on = f"by {count(len(account.jobs), 'job')} on {account.gpus:,.0f} GPUs"
    outside = f", and {amount(beyond)} GPU-hours outside of them" if beyond else ""
    return f"{of} {on}{outside}. Cost: {_money(account.cost, account)}."


def render(account: Account, claims: Sequence[Held] = ()) -> str:
    """The whole page."""
    return environment().get_template("damage.html").render(_context(account, claims))


def write_page(account: Account, path: Path, claims: Sequence[Held] = ()) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        write_atomically(path, render(account, claims).encode())
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}", hint=hint_for(e) or "name another file with -o") from e


def print_account(console: Console, account: Account) -> None:
    """The lines as a table, what they cost, and what is not known."""
    console.print(Text(headline(account), "bold red" if account.lost.mid > 0 else "bold"))
    console.print(Text(subline(account)))
    console.print()
    table = Table("line", "GPU-hours", "lowest", "highest", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for a in account.amounts:
        table.add_row(_name(a), *_values(a))
    table.add_row(*(Text(cell, "bold") for cell in ("total", *_three(account.lost))))
    console.print(table)
    console.print()
    for p in account.priced:
        console.print(
            Text(
                f"at {p.per_gpu_hour:g} {account.currency} a GPU-hour ({clean(p.name, 40)}): {_money(p.cost, account)}"
            )
        )
    console.print(
        Text(f"lost to failures that happen anyway, or cannot be told from them: {spread(account.natural)} GPU-hours")
    )
    console.print(Text(f"delay of the job that was delayed most: {spread(account.delay)} hours, in no sum"))
    console.print(Text(_reliability(account)))
    for text in account.unknown:
        console.print(Text(f"not known: {text}", "magenta"))


def print_claims(console: Console, tested: Sequence[Held]) -> None:
    """Every statement, how it stands, and why."""
    for t in tested:
        said = f" ({clean(t.claim.said_by, 60)})" if t.claim.said_by else ""
        console.print(
            Text.assemble((f"{t.stand.value:<13}", _STYLES[t.stand]), clean(t.claim.text, 300), (said, "dim"))
        )
        console.print(Text(f"{'':<13}{clean(t.why, 400)}"))
        for text in t.missing:
            console.print(Text(f"{'':<13}needed: {clean(text, 300)}", "dim"))


def _context(account: Account, claims: Sequence[Held]) -> dict[str, object]:
    ours = max(0.0, account.held - account.useful - account.natural.mid)
    parts = (
        ("progress", "progress, and what was done in order", account.useful),
        ("natural", "failures that happen anyway, or cannot be told from them", account.natural.mid),
        ("lost", "interference", ours),
    )
    return {
        "style": Markup(stylesheet()),
        "scope": _scope(account),
        "tone": "bad" if account.lost.mid > 0 else "open" if account.is_open else "good",
        "headline": headline(account),
        "subline": subline(account),
        "facts": _facts(account),
        "held": [held_bar(account, width) for width in (WIDE, NARROW)],
        "parts": [
            {"kind": k, "name": n, "value": f"{amount(h)} GPU-hours ({amount(percent_of(h, account.held))} %)"}
            for k, n, h in parts
        ],
        "falls": [waterfall(account, width) for width in (WIDE, NARROW)],
        "lines": [_line(a) for a in account.amounts],
        "costs": _costs(account),
        "reliability": _reliability(account),
        "breaks": [(b.cause, f"{b.count:,}", spread(b.expected), spread(b.attributed), b.how) for b in account.breaks],
        "jobs": [_job(j) for j in sorted(account.jobs, key=lambda j: -j.lost.mid)[:_MOST_JOBS]],
        "claims": claims,
    }


def _line(a: Amount) -> dict[str, str]:
    hours = "not known" if _is_open(a) else spread(a.hours)
    return {"name": a.line.value, "hours": hours, "how": a.how, "unknown": a.unknown}


def _scope(account: Account) -> str:
    if not account.since_ns and not account.until_ns:
        return "all of the records"
    return f"{when(account.since_ns) or 'the beginning'} to {when(account.until_ns) or 'the end'}"


def _facts(account: Account) -> list[dict[str, str]]:
    affected = [j for j in account.jobs if j.lost.mid > 0 or j.diverged]
    gpus, of = sum(j.gpus for j in affected), f"{len(affected)} of {count(len(account.jobs), 'job')}"
    return [
        {"name": "GPUs of jobs that lost", "value": f"{gpus:,.0f}", "note": of},
        {"name": "GPU-hours lost", "value": amount(account.lost.mid), "note": _between(account.lost)},
        {"name": f"cost, {account.currency}", "value": amount(account.cost.mid), "note": _between(account.cost)},
        {"name": "delay, hours", "value": amount(account.delay.mid), "note": f"{_between(account.delay)}, in no sum"},
    ]  # fmt: skip


def _costs(account: Account) -> list[tuple[str, ...]]:
    rows = [(p.name, f"{p.per_gpu_hour:g}", spread(p.cost)) for p in account.priced]
    staff = next(a for a in account.amounts if a.line is Line.STAFF)
    rows.append(("staff", "", "not known" if staff.unknown else spread(account.staff_cost)))
    return [*rows, ("over all prices", "", spread(account.cost))]


def _job(job: JobAccount) -> dict[str, str]:
    name = " ".join(job.command) or ", ".join(job.runs)
    told = [f"{b.name} {b.seconds.mid:.4g}{' (chosen)' if b.chosen else ''}" for b in job.baselines]
    return {"name": clean(name, 80), "ranks": f"{job.ranks:,}", "lost": spread(job.lost), "baselines": ", ".join(told)}


def _reliability(account: Account) -> str:
    expected = f"{100 * account.expected_ettr.low:.1f} to {100 * account.expected_ettr.high:.1f} %"
    return (
        f"Effective training time was {100 * account.ettr:.1f} % of what was held; published failure rates alone would "
        f"have left {expected} to a job of that size."
    )


def _name(a: Amount) -> str:
    return a.line.value + (" (hours of people)" if a.line is Line.STAFF else "")


def _values(a: Amount) -> tuple[str, str, str]:
    return ("not known", "", "") if _is_open(a) else _three(a.hours)


def _is_open(a: Amount) -> bool:
    """Is nothing known of it?"""
    return bool(a.unknown) and not a.hours.high


def _three(r: Range) -> tuple[str, str, str]:
    return amount(r.mid), amount(r.low), amount(r.high)


def _between(r: Range) -> str:
    return f"{amount(r.low)} to {amount(r.high)}"


def _money(r: Range, account: Account) -> str:
    return f"{spread(r)} {account.currency}"
