"""`trainwarden claims FILE [RUN …]`: public statements held against the account of the runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, consoles, print_json
from trainwarden.commands.damage import account_of, add_scope
from trainwarden.errors import UsageError


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "claims",
        "Hold public statements against what was measured: supported, refuted or undetermined.",
        run=run,
        examples=(
            "trainwarden claims --example > claims.toml",
            "trainwarden claims claims.toml --since 2026-06-01",
            "trainwarden claims claims.toml last -o damage.html",
        ),
        exit_codes=(
            "exit codes:\n  0  every statement is supported\n  1  one is refuted\n"
            "  2  one is undetermined, and none refuted\n  3  the call or its input is wrong"
        ),
    )
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help="the statements (docs/damage.md#claims)")
    add_scope(parser)
    parser.add_argument("--example", action="store_true", help="print an example of such a file, and nothing else")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write one HTML page, with the account")


def run(args: argparse.Namespace) -> int:
    """Test every statement."""
    from trainwarden.respond.account.claims import EXAMPLE, Stand, hold, read_claims

    if args.example:
        sys.stdout.write(EXAMPLE.read_text(encoding="utf-8"))
        return CLEAN
    if args.file is None:
        raise UsageError("no file of statements", hint="trainwarden claims --example > claims.toml")
    claims = read_claims(args.file)
    account = account_of(args)
    tested = [hold(claim, account) for claim in claims]
    from trainwarden.report.damage import print_claims, write_page

    if args.output is not None:
        write_page(account, args.output, tested)
    if args.json:
        print_json({"claims": tested})
    else:
        print_claims(consoles(args)[0], tested)
    stands = {t.stand for t in tested}
    return FINDING if Stand.REFUTED in stands else UNDECIDED if Stand.UNDETERMINED in stands else CLEAN
