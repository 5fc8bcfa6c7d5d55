"""`trainwarden status [NAME]`: what is served, what is open against it, and what would be served instead."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, FINDING, Subparsers, add_verb, consoles, open_store, print_json
from trainwarden.commands.witnesses import add_witnesses, read_policy
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.gate.registry import Promotion

_EXIT = (
    "exit codes:\n"
    "  0  nothing is open against the newest checkpoint of each name\n"
    "  1  something is, or the gate's log was altered, or is not cosigned as asked\n"
    "  3  the call or its input is wrong"
)


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "status",
        "Which checkpoint a serving name is, what is open against it, and what is served meanwhile.",
        run=run,
        examples=("trainwarden status", "trainwarden status chat", "trainwarden status --witness NAME+ID+KEY"),
        exit_codes=_EXIT,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="what is served (default: every name)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")
    add_witnesses(parser)


def run(args: argparse.Namespace) -> int:
    """Show it."""
    from trainwarden.checks import Failed, NotChecked, Passed, check_cosigned
    from trainwarden.config import load_config
    from trainwarden.gate import ledger
    from trainwarden.gate.promote import in_use
    from trainwarden.gate.registry import fold, history
    from trainwarden.gate.troubles import look_up

    store = open_store(args)
    keeper = load_config(args.config, Path.cwd()).gate.keeper
    entries = ledger.read_gate(store, keeper)
    known = fold(entries).names
    if args.name and args.name not in known:
        raise UsageError(f"nothing is served as {args.name}", hint=f"served: {', '.join(known) or 'nothing yet'}")
    names = [args.name] if args.name else sorted(known)
    shown = {name: look_up(store, name, keeper) for name in names}
    witnessed = check_cosigned(ledger.folder(store), lambda: fold(entries).keeper, read_policy(args)).result
    if args.json:
        print_json(
            {
                "names": {
                    name: {
                        "serves": in_use(found).digest if in_use(found) else "",  # type: ignore[union-attr]
                        "promotions": found,
                        "history": history(entries, name),
                    }
                    for name, found in shown.items()
                },
                "witnesses": witnessed,
            }
        )
    else:
        results, _ = consoles(args)
        for name, found in shown.items():
            _show(results, name, found)
        if not shown:
            results.print("nothing is served yet: trainwarden promote NAME CHECKPOINT")
        if not isinstance(witnessed, NotChecked):
            results.print(f"the gate's log: {witnessed.seen if isinstance(witnessed, Passed) else witnessed.reason}")
    if isinstance(witnessed, Failed):
        return FINDING
    return FINDING if any(found[0].open for found in shown.values()) else CLEAN


def _show(console: Console, name: str, found: tuple[Promotion, ...]) -> None:
    from rich.markup import escape

    from trainwarden.gate.promote import in_use

    used = in_use(found)
    console.print(f"[bold]{escape(name)}[/]  " + (used.digest if used else "[bold red]nothing can be served[/]"))
    for promotion in found:
        mark = "serves" if promotion is used else "open" if promotion.open else "earlier"
        console.print(
            escape(f"  {mark:<8} {promotion.digest[:12]}  entry {promotion.index}, {promotion.clearance.place}")
        )
        for trouble in promotion.open:
            console.print(escape(f"           {trouble}"), style="dim")
