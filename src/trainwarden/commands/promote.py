"""`trainwarden promote NAME CHECKPOINT`: serve a cleared checkpoint under a name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "promote",
        "Serve a checkpoint under a name. Refuses what is not cleared, or has something open against it.",
        run=run,
        examples=("trainwarden promote chat out/step-000024",),
        exit_codes=(
            "exit codes:\n  0  promoted\n  1  it is not cleared, or something is open against it, or the name changed"
            " meanwhile\n  3  the call or its input is wrong"
        ),
    )
    parser.add_argument("name", metavar="NAME", help="what it is served as")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a file, or the folder of its files")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")


def run(args: argparse.Namespace) -> int:
    """Promote it."""
    from trainwarden.config import load_config
    from trainwarden.gate.promote import promote
    from trainwarden.keys import SigningKey

    store = open_store(args)
    policy = load_config(args.config, Path.cwd()).gate
    entry = promote(store, args.name, args.checkpoint, policy, SigningKey.load())
    if args.json:
        print_json({"promoted": entry})
    else:
        was = f", it was {entry.previous[:12]}" if entry.previous else ""
        print(f"{entry.name} is {entry.digest}{was}")
    return CLEAN
