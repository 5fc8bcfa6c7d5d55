"""`trainwarden clear CHECKPOINT`: may it be served? Decided by policy, logged, with what is missing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from trainwarden.commands.common import (
    CLEAN,
    FINDING,
    UNDECIDED,
    Subparsers,
    add_verb,
    consoles,
    open_store,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.gate.decision import Decision

_EXIT = (
    "exit codes:\n"
    "  0  cleared: it may be promoted\n"
    "  1  refused: it may not, and the gate's log says so\n"
    "  2  not decided: something is missing, and the command that would settle it is shown (never a pass)\n"
    "  3  the call or its input is wrong"
)


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "clear",
        "May this checkpoint be served? Checks its files, its whole lineage, what is open, its figures and approvals.",
        run=run,
        examples=("trainwarden clear out/step-000024", "trainwarden clear model.safetensors --claims figures.json"),
        exit_codes=_EXIT,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a file, or the folder of its files")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")
    parser.add_argument(
        "--claims", default="", metavar="FILE", help="the figures claimed of it (default: as policy says)"
    )

    parser.add_argument(
        "--attest", type=Path, metavar="DIR", help="where attestations go (default: the store's gate/attestations)"
    )
    parser.add_argument("--no-attest", action="store_true", help="write no attestations")


def run(args: argparse.Namespace) -> int:
    """Decide, log it, attest it and show it."""
    from trainwarden.config import load_config
    from trainwarden.gate.attest.bom import check_installed
    from trainwarden.gate.attest.writing import usual_folder, write_attestations
    from trainwarden.gate.clear import Request, clear
    from trainwarden.gate.decision import Cleared
    from trainwarden.keys import SigningKey

    policy = load_config(args.config, Path.cwd()).gate
    if not args.no_attest:
        check_installed()
    store, key = open_store(args), SigningKey.load()
    results, progress = consoles(args)
    written: tuple[Path, ...] = ()
    try:
        request = Request(path=args.checkpoint, policy=policy, claims=args.claims)
        if sys.stderr.isatty():
            with progress.status("clearing") as status:
                decision = clear(store, request, key, status.update)
        else:
            decision = clear(store, request, key)
        if isinstance(decision, Cleared) and not args.no_attest:
            folder = args.attest or usual_folder(store, decision.clearance.digest)
            written = write_attestations(store, args.checkpoint, decision.clearance, key, folder)
    finally:
        store.close()
    if args.json:
        attested = [str(p) for p in written]
        print_json({"checkpoint": str(args.checkpoint), "decision": decision, "attestations": attested})
    else:
        _show(results, args.checkpoint, decision)
        if written:
            results.print(f"attestations: {written[0].parent}", markup=False)
    return exit_code(decision)


def exit_code(decision: Decision) -> int:
    """The exit code of a decision."""
    from trainwarden.gate.decision import Cleared, Refused, Undecided

    match decision:
        case Cleared():
            return CLEAN
        case Refused():
            return FINDING
        case Undecided():
            return UNDECIDED
        case _:
            assert_never(decision)


def _show(console: Console, path: Path, decision: Decision) -> None:
    from rich.markup import escape

    from trainwarden.gate.decision import Cleared, Refused, Undecided
    from trainwarden.report.words import clean_lines

    match decision:
        case Cleared(clearance=c):
            runs = ", ".join(r.run for r in c.runs)
            matched = f"all {c.segments} segments" if c.segments > 1 else "its one segment"
            console.print(f"[bold green]cleared[/]    {escape(str(path))} {c.digest}")
            console.print(escape(f"  {matched} back to the seal matched; it stands on {runs}"))
            if c.evaluated is not None:
                figures = ", ".join(f"{name} {value}" for name, value in c.evaluated.figures.items())
                console.print(escape(f"  evaluated anew, equal to what was claimed: {figures}"))
            for approval in c.approvals:
                console.print(escape(f"  approved by {approval.actor}"))
            console.print(escape(f"to serve it: trainwarden promote NAME {path}"))
        case Refused(digest=digest, reasons=reasons):
            console.print(f"[bold red]refused[/]    {escape(str(path))} {digest}")
            for reason in reasons:
                console.print(escape(f"  {clean_lines(reason)}"))
        case Undecided(digest=digest, missing=missing):
            console.print(f"[yellow]undecided[/]  {escape(str(path))} {digest}")
            for each in missing:
                console.print(escape(f"  {clean_lines(each.what)}"))
                console.print(escape(f"    {each.command}"), style="dim")
        case _:
            assert_never(decision)
