"""`trainwarden show RUN`: what was sealed, how it went, what is known of its checkpoints, what to do next."""

from __future__ import annotations

import argparse
from typing import Any

from trainwarden.commands.common import CLEAN, FINDING, Subparsers, add_verb, print_json
from trainwarden.commands.reading import add_run, read_case


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "show",
        "Show one run: what was sealed, how it went, findings, checkpoints and their standing.",
        run=run,
        examples=("trainwarden show last", "trainwarden show 20261123-125301-k3f9 --json"),
        exit_codes=(
            "exit codes:\n  0  shown\n  1  shown, and its log or seal does not verify\n"
            "  3  the call or its input is wrong"
        ),
    )
    add_run(parser)


def run(args: argparse.Namespace) -> int:
    """Show the run."""
    from trainwarden.casefile import Broken
    from trainwarden.descent import frozen_by

    store, case = read_case(args)
    frozen = frozen_by(store, case.run)
    if args.json:
        from trainwarden.report.case_json import case_json

        print_json(case_json(case, frozen))
    else:
        from rich.console import Console

        from trainwarden.report.text import print_case

        print_case(Console(highlight=False), case, frozen)
    return FINDING if isinstance(case.state, Broken) else CLEAN
