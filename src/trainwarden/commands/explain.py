"""`trainwarden explain RUN`: what reproduces the first difference bit for bit."""

from __future__ import annotations

import argparse
from typing import Any

from trainwarden.commands.common import CLEAN, UNDECIDED, Subparsers, add_verb, consoles, print_json
from trainwarden.errors import UsageError
from trainwarden.model import Explanation, Outcome

_STYLE = {Outcome.REPRODUCED: "bold green", Outcome.EXCLUDED: "dim", Outcome.NOT_TRIED: "yellow"}


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "explain",
        "Re-execute the first differing step under every hypothesis until one reproduces the recorded digest.",
        run=run,
        examples=("trainwarden explain last",),
    )
    parser.add_argument("run_name", metavar="RUN", help='a run id, its beginning or end, or "last"')


def run(args: argparse.Namespace) -> int:
    """Explain the run's earliest divergence; 0 cause proved, 2 not established."""
    from trainwarden.audit.proving import prove
    from trainwarden.casefile import earliest_divergence
    from trainwarden.commands.opening import opened

    results, shown = consoles(args)
    with opened(args) as run:
        found = earliest_divergence(run.case.entries)
        if found is None:
            raise UsageError(
                f"no divergence is known in run {run.case.run}: there is nothing to explain",
                hint=f"trainwarden audit {run.case.run}",
            )
        with shown.status("preparing the clean room") as status:
            explanation = prove(
                run.recorded,
                run.room(),
                found[1],
                lambda what, done, total: status.update(f"{what} ({done} of {total})"),
            )
        run.append(explanation)
    if args.json:
        print_json({"run": run.case.run, "explanation": explanation})
    else:
        _show(results, explanation)
    return CLEAN if explanation.cause else UNDECIDED


def _show(console: Any, explanation: Explanation) -> None:
    from rich.markup import escape
    from rich.table import Table

    at = explanation.at
    if explanation.cause:
        console.print(f"[bold green]cause proved[/]: {escape(explanation.cause)}")
    else:
        console.print("[yellow]cause not established[/]: no hypothesis reproduces the recorded digest")
    if explanation.file:
        console.print(f"[bold green]reproduced by the file[/] {escape(explanation.file)}")
    table = Table(title=escape(f"step {at.step}, rank {at.rank}, {at.subject}, {at.tensor}"), title_justify="left")
    for name in ("hypothesis", "result", "tried", "what"):
        table.add_column(name, justify="right" if name == "tried" else "left")
    untried = [h.name for h in explanation.hypotheses if h.outcome is Outcome.NOT_TRIED]
    for h in explanation.hypotheses:
        if h.outcome is Outcome.NOT_TRIED:
            continue
        table.add_row(h.name, f"[{_STYLE[h.outcome]}]{h.outcome}[/]", f"{h.tried:,}", escape(h.reason or h.sentence))
    console.print(table)
    if untried:
        console.print(f"[yellow]not tried[/] ({len(untried)}; --json says why): {', '.join(untried)}")
