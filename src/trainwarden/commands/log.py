"""`trainwarden log COMMAND`: the log between hosts and people; one command a module `log_NAME`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from trainwarden.commands.common import Subparsers, add_verb
from trainwarden.errors import UsageError

COMMANDS: tuple[str, ...] = (
    "serve",
    "ship",
    "publish",
    "cosign",
    "witness",
)  # fmt: skip


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb and its commands."""
    parser = add_verb(
        subparsers,
        "log",
        "Serve a log to other hosts, send or publish a run's log, have it cosigned, or be a witness for others' logs.",
        run=run,
        examples=("trainwarden log publish last --to site/", "trainwarden log COMMAND -h"),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=type(parser))
    for name in COMMANDS:
        importlib.import_module(f"trainwarden.commands.log_{name}").add(commands)


def run(args: argparse.Namespace) -> int:
    """Without a command there is nothing to do.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"log needs a command: {', '.join(COMMANDS)}", hint="trainwarden log -h")
