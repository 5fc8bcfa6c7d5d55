"""`trainwarden scan PATH…`: can loading these files run anything? Decided by allow-list, without loading them."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, consoles, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.gate.results import Scanned

_EXIT = (
    "exit codes:\n"
    "  0  every file is clean: loading it runs nothing\n"
    "  1  a file is refused: loading it could run something, or readers differ on it\n"
    "  2  a file was not understood or not read, and none is refused (never a pass)\n"
    "  3  the call or its input is wrong"
)
_SHOWN = 10  # objections to one file


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "scan",
        "Can loading these checkpoints run anything? Decides by allow-list, without loading or importing anything.",
        run=run,
        examples=("trainwarden scan model.pt", "trainwarden scan --jobs 4 ~/.cache/huggingface/hub"),
        exit_codes=_EXIT,
    )
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (default: one a core)")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files, folders, or a hub's cache")


def run(args: argparse.Namespace) -> int:
    """Scan every file, show what is refused or undecided, and count the rest."""
    from trainwarden.gate.scan.files import listed, nothing_found, scan_files

    if args.jobs < 0:
        raise UsageError(f"--jobs {args.jobs} is not a number of processes", hint="1 or more")
    files = listed(args.paths)
    results, progress = consoles(args)
    scanned: list[Scanned] = []
    if not files:
        scanned.append(nothing_found(args.paths))
    with progress.status("scanning") if sys.stderr.isatty() else _Silent() as status:
        for done in scan_files(files, args.jobs or os.cpu_count() or 1):
            scanned.append(done)
            status.update(f"scanning: {len(scanned):,} of {len(files):,} files")
    if args.json:
        print_json({"files": scanned})
    else:
        _show(results, scanned)
    return exit_code(scanned)


class _Silent:
    """A status that nobody watches."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, text: str) -> None:
        """Show nothing."""


def exit_code(scanned: list[Scanned]) -> int:
    """One refused file decides, then one undecided."""
    from trainwarden.gate.results import Clean, Refused, Undecided

    worst = CLEAN
    for each in scanned:
        match each.decision:
            case Refused():
                return FINDING
            case Undecided():
                worst = UNDECIDED
            case Clean():
                pass
            case _:
                assert_never(each.decision)
    return worst


def _show(console: Console, scanned: list[Scanned]) -> None:
    from rich.markup import escape

    from trainwarden.gate.results import Clean, Refused, Undecided

    counts = Counter(type(s.decision).__name__.lower() for s in scanned)
    for each in scanned:
        match each.decision:
            case Refused(kind=kind, objections=objections):
                console.print(f"[bold red]refused[/]    {escape(each.path)} ({kind})")
                for o in objections[:_SHOWN]:
                    where = f"{o.part} " if o.part else ""
                    console.print(escape(f"  {where}at {o.offset}: {o.opcode} {o.name}: {o.why}"), style="dim")
                if len(objections) > _SHOWN:
                    console.print(f"  and {len(objections) - _SHOWN} more (--json)", style="dim")
            case Undecided(kind=kind, why=why):
                console.print(f"[yellow]undecided[/]  {escape(each.path)} ({kind}): {escape(why)}")
            case Clean():
                pass
            case _:
                assert_never(each.decision)
    console.print(f"{counts['clean']:,} clean, {counts['refused']:,} refused, {counts['undecided']:,} undecided")
