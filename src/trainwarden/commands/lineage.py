"""`trainwarden lineage CHECKPOINT`: all that it stands on, and all that stands on what is tainted among that."""

from __future__ import annotations

import argparse
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
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.gate.family import Family
    from trainwarden.model import Standing

_EXIT = (
    "exit codes:\n"
    "  0  all that it stands on is cleared\n"
    "  1  something that it stands on is tainted\n"
    "  2  something is not known, or an incident is open (never a pass)\n"
    "  3  the call or its input is wrong"
)


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "lineage",
        "Draw what a checkpoint stands on, back to the seals, and everything that stands on what is tainted there.",
        run=run,
        examples=("trainwarden lineage out/step-000024", "trainwarden lineage model.safetensors --svg lineage.svg"),
        exit_codes=_EXIT,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a file, or the folder of its files")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw it into this file too")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")


def run(args: argparse.Namespace) -> int:
    """Trace it, show it, draw it."""
    from trainwarden.config import load_config
    from trainwarden.gate.clear import keeper_of, tracer
    from trainwarden.gate.family import family_of
    from trainwarden.gate.ledger import read_gate
    from trainwarden.gate.manifest import manifest_digest, manifest_of
    from trainwarden.report.family import family_svg

    policy = load_config(args.config, Path.cwd()).gate
    store = open_store(args)
    results, progress = consoles(args)
    try:
        with progress.status("following it back"):
            entries = read_gate(store, policy.keeper)
            manifest = manifest_of(args.checkpoint)
            digest = manifest_digest(manifest)
            tracing = tracer(store, policy, keeper_of(store, policy) or _own_key(), remake=False)
            family = family_of(store, tracing, digest, manifest, entries)
    finally:
        store.close()
    if args.svg:
        try:
            args.svg.write_text(str(family_svg(family)), encoding="utf-8")
        except OSError as e:
            raise UsageError(f"cannot write {args.svg}: {e.strerror}", hint="name a file that can be written") from e
    if args.json:
        print_json({"lineage": family})
    else:
        _show(results, family)
    worst = exit_code(next(n for n in family.nodes if n.id == family.root).standing)
    return UNDECIDED if worst == CLEAN and family.open else worst


def _own_key() -> str:
    from trainwarden.keys import SigningKey

    return SigningKey.load().public


def exit_code(standing: Standing) -> int:
    """The exit code for a checkpoint that stands so."""
    from trainwarden.model import Standing

    match standing:
        case Standing.CLEARED:
            return CLEAN
        case Standing.TAINTED:
            return FINDING
        case Standing.UNAUDITED | Standing.UNDECIDED:
            return UNDECIDED
        case _:
            assert_never(standing)


def _show(console: Console, family: Family) -> None:
    from rich.markup import escape

    from trainwarden.report.family import family_tree

    console.print(f"checkpoint {family.digest}")
    console.print(family_tree(family), soft_wrap=False)
    for told in family.open:
        console.print(f"[bold red]{escape(told)}[/]")
    if not family.tainted:
        return
    console.print(f"\n[bold red]{len(family.descendants)} checkpoints stand on what is tainted[/]")
    for d in family.descendants:
        served = f"[bold red]SERVED as {escape(', '.join(d.names))}[/]  " if d.names else ""
        before = f"[red]was served as {escape(', '.join(d.earlier))}[/]  " if d.earlier else ""
        console.print(f"  {served}{before}{escape(d.node.label)}  [dim]{escape(', '.join(d.node.digests)[:12])}[/]")
