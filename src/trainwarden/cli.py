"""The command line: one verb a module of `trainwarden.commands`, and the one place where errors become words.

An error that the user can act on is printed as `error:` and, when it has one, `hint:` on stderr, and its
`exit_code` is returned. Anything else is a defect of ours: it is named as such, with its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec

from trainwarden import isolation
from trainwarden.commands.common import EXIT_CODES, USAGE
from trainwarden.errors import TrainWardenError

# One line a verb, in the order of `trainwarden -h`: the module of trainwarden.commands that holds it.
VERBS: tuple[str, ...] = (
    "run",
    "seal",
    "approve",
    "keys",
    "doctor",
    "audit",
    "explain",
    "recover",
    "runs",
    "show",
    "verify",
    "env",
    "query",
    "report",
    "log",
    "demo",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """argparse leaves with 2 on a usage error, which here means "could not decide": leave with 3."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(USAGE, f"error: {message}\nhint: {self.prog} -h\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb."""
    parser = _Parser(
        prog="trainwarden",
        description="Keeps AI training honest: seals a run, records it, catches and proves interference.",
        epilog="example:\n  trainwarden run -- torchrun --nproc-per-node 2 train.py\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trainwarden {_version()}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True, parser_class=_Parser)
    for verb in VERBS:
        importlib.import_module(f"trainwarden.commands.{verb}").add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names and return the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if argv is None and args.verb in isolation.VERBS and not isolation.is_isolated():
            isolation.restart_isolated(sys.argv[1:])
        return int(args.run(args))
    except TrainWardenError as e:
        return _report(e, as_json=args.json)
    except BrokenPipeError:  # `trainwarden show … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _report(error: TrainWardenError, *, as_json: bool) -> int:
    if as_json:
        told = {"error": str(error), "hint": error.hint, "kind": type(error).__name__}
        print(msgspec.json.encode(told).decode())
    print(f"error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _version() -> str:
    try:
        return version("trainwarden")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
