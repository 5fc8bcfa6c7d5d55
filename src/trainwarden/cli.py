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

from trainwarden.commands.common import EXIT_CODES, USAGE, print_json
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
    "contain",
    "recover",
    "ingest",
    "incident",
    "alerts",
    "runs",
    "show",
    "verify",
    "scan",
    "load",
    "convert",
    "clear",
    "close",
    "derive",
    "lineage",
    "promote",
    "rollback",
    "status",
    "admission",
    "env",
    "query",
    "report",
    "damage",
    "claims",
    "dossier",
    "log",
    "redteam",
    "demo",
)  # fmt: skip

ISOLATED = ("run", "contain", "recover", "alerts", "env")  # start again in the supervisor's own interpreter


class _Parser(argparse.ArgumentParser):
    """argparse leaves with 2 on a usage error, which here means "could not decide": leave with 3."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(USAGE, f"error: {message}\nhint: {self.prog} -h\n")


def build_parser(verbs: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The parser of these verbs."""
    parser = _Parser(
        prog="trainwarden",
        description="Keeps AI training honest: seals a run, records it, catches and proves interference.",
        epilog="example:\n  trainwarden run -- torchrun --nproc-per-node 2 train.py\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True, parser_class=_Parser)
    for verb in verbs:
        importlib.import_module(f"trainwarden.commands.{verb}").add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names and return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser(words[:1] if words[0:1] and words[0] in VERBS else VERBS).parse_args(words)
    try:
        if argv is None and args.verb in ISOLATED:
            from trainwarden import isolation

            if not isolation.is_isolated():
                isolation.restart_isolated(words)
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
    from trainwarden.report.words import clean_lines

    if as_json:
        print_json({"error": str(error), "hint": error.hint, "kind": type(error).__name__})
    print(f"error: {clean_lines(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"hint: {clean_lines(error.hint)}", file=sys.stderr)
    return error.exit_code


class _Version(argparse.Action):
    """`--version`: asked of the installed package only when somebody wants to know."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("trainwarden")
        except PackageNotFoundError:
            number = "unknown"
        print(f"trainwarden {number}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
