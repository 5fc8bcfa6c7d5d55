"""`trainwarden scan PATH…`: can loading these files run anything? Decided by allow-list, without loading them."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, nearest_store, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.gate.results import Scanned

_EXIT = (
    "exit codes:\n"
    "  0  every file is clean: loading it runs nothing; or an actor allowed it\n"
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
        examples=(
            "trainwarden scan model.pt",
            "trainwarden scan --jobs 4 ~/.cache/huggingface/hub",
            'trainwarden scan --allow --as ada --why "our own class, read" old.ckpt',
        ),
        exit_codes=_EXIT,
    )
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--second-opinion", action="store_true", help="ask fickling about clean pickles too; it can only add doubts"
    )
    parser.add_argument("--allow", action="store_true", help="record that these very files may be loaded all the same")
    parser.add_argument("--as", dest="actor", metavar="ACTOR", help="who allows it, an enrolled actor")
    parser.add_argument("--why", metavar="TEXT", help="why it may be loaded")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files, folders, or a hub's cache")


def run(args: argparse.Namespace) -> int:
    """Scan every file, show what is refused or undecided, and count the rest."""
    from trainwarden.gate.results import in_json
    from trainwarden.gate.scan.beside import settled
    from trainwarden.gate.scan.files import listed, nothing_found, scan_files

    if args.jobs < 0:
        raise UsageError(f"--jobs {args.jobs} is not a number of processes", hint="1 or more")
    if args.allow:
        return _allow(args)
    files = listed(args.paths)
    scanned: list[Scanned] = []
    if not files:
        scanned.append(nothing_found(args.paths))
    with _bar(len(files)) as advance:
        for done in scan_files(files, args.jobs or os.cpu_count() or 1):
            scanned.append(done)
            advance()
    scanned = settled(scanned)
    if args.second_opinion:
        from trainwarden.gate.opinion import with_opinion

        scanned = [with_opinion(s) for s in scanned]
    scanned = _with_allowances(args, scanned)
    if args.json:
        print_json({"files": [in_json(s) for s in scanned]})
    else:
        _show(scanned)
    return exit_code(scanned)


def _allow(args: argparse.Namespace) -> int:
    from trainwarden.actors.registry import known_actor, read_registry
    from trainwarden.commands.common import open_store
    from trainwarden.gate.allowances import allow
    from trainwarden.keys import ring

    if not args.actor or not args.why or any(p.is_dir() for p in args.paths):
        raise UsageError("--allow is of files, by somebody, for a reason", hint='--allow --as ACTOR --why "…" FILE')
    store = open_store(args)
    actor = known_actor(read_registry(store), args.actor)
    key = ring.load(actor.name, actor.key)
    made = [allow(store, path, actor.name, key, args.why) for path in args.paths]
    if args.json:
        print_json({"allowed": made})
    else:
        for each in made:
            print(f"{actor.name} allowed {each.path} ({each.digest}), which a scan found {each.decision}: {each.why}")
    return CLEAN


def _with_allowances(args: argparse.Namespace, scanned: list[Scanned]) -> list[Scanned]:
    from trainwarden.gate.results import Clean

    if all(isinstance(s.decision, Clean) for s in scanned) or (store := nearest_store(args)) is None:
        return scanned
    from trainwarden.gate.allowances import with_allowance

    return [with_allowance(store, s) for s in scanned]


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], object]]:
    """A progress bar on a terminal, else nothing; what it gives moves it on by one file."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def exit_code(scanned: list[Scanned]) -> int:
    """One refused file decides, then one undecided; what an actor allowed does neither."""
    from trainwarden.gate.results import Clean, Refused, Undecided

    worst = CLEAN
    for each in scanned:
        if each.allowed is not None:
            continue
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


def _show(scanned: list[Scanned]) -> None:
    from trainwarden.gate.results import Clean, Refused, Undecided

    say = _printer()
    for each in scanned:
        match each.decision:
            case Refused(kind=kind, objections=objections):
                say("refused   ", "bold red", f" {_clean(each.path)} ({kind})")
                for o in objections[:_SHOWN]:
                    where = f"{o.part} " if o.part else ""
                    say(_clean(f"  {where}at {o.offset}: {o.opcode} {o.name}: {o.why}"), "dim")
                if len(objections) > _SHOWN:
                    say(f"  and {len(objections) - _SHOWN} more (--json)", "dim")
            case Undecided(kind=kind, why=why):
                say("undecided ", "yellow", f" {_clean(each.path)} ({kind}): {_clean(why)}")
            case Clean():
                pass
            case _:
                assert_never(each.decision)
        if each.second and not each.second.endswith("LIKELY_SAFE"):
            say("  second  ", "dim", f" {_clean(each.path)}: {_clean(each.second)}")
        if each.allowed is not None:
            say("  allowed ", "bold", f" by {each.allowed.actor}, these very bytes: {_clean(each.allowed.why)}")
    counts = Counter("allowed" if s.allowed else type(s.decision).__name__.lower() for s in scanned)
    told = f"{counts['clean']:,} clean, {counts['refused']:,} refused, {counts['undecided']:,} undecided"
    say(f"{told}, {counts['allowed']:,} allowed by name" if counts["allowed"] else told)


def _clean(text: str) -> str:
    """Text of files and of their names, harmless to a terminal; imported when there is any: it takes a while."""
    from trainwarden.report.words import clean_lines

    return clean_lines(text)


def _printer() -> Callable[..., None]:
    """Prints words in a style and what follows them; rich, whose start takes as long as a scan, only on a terminal."""
    if not sys.stdout.isatty():
        return lambda words, _style="", rest="": print(words + rest)
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    return lambda words, style="", rest="": console.print(Text.assemble((words, style), rest))
