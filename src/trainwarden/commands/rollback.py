"""`trainwarden rollback NAME`: serve what a name was before."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "rollback",
        "Take a serving name back to its newest earlier checkpoint with nothing open against it.",
        run=run,
        examples=("trainwarden rollback chat --reason 'incident 7'",),
        exit_codes="exit codes:\n  0  done\n  1  there is nothing to go back to\n  3  the call or its input is wrong",
    )
    parser.add_argument("name", metavar="NAME", help="what is served")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for the log")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")


def run(args: argparse.Namespace) -> int:
    """Roll it back."""
    from trainwarden.config import load_config
    from trainwarden.gate.promote import roll_back
    from trainwarden.keys import SigningKey

    store = open_store(args)
    keeper = load_config(args.config, Path.cwd()).gate.keeper
    entry = roll_back(store, args.name, SigningKey.load(), args.reason, keeper)
    if args.json:
        print_json({"rolled_back": entry})
    else:
        print(f"{entry.name} is {entry.digest} again, no longer {entry.left[:12]}")
    return CLEAN
