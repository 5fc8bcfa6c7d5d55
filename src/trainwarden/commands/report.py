"""`trainwarden report RUN`: the run as one self-contained HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, FINDING, Subparsers, add_verb, print_json
from trainwarden.commands.reading import add_run, read_case
from trainwarden.errors import UsageError


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "report",
        "Write one self-contained HTML file about a run and print its path.",
        run=run,
        examples=("trainwarden report last", "trainwarden report last -o incident.html"),
        exit_codes=(
            "exit codes:\n  0  written\n  1  written, and the run's log or seal does not verify\n"
            "  3  the call or its input is wrong"
        ),
    )
    add_run(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write it (default: report.html in the run's folder)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the report."""
    from trainwarden.casefile import Broken
    from trainwarden.descent import frozen_by
    from trainwarden.report.html import write_html

    store, case = read_case(args)
    path = (args.output or Path(case.path) / "report.html").absolute()
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file with -o FILE")
    write_html(case, path, store, frozen_by(store, case.run))
    if args.json:
        print_json({"run": case.run, "report": str(path), "answer": case.answer, "sentence": case.sentence})
    else:
        print(path)
    return FINDING if isinstance(case.state, Broken) else CLEAN
