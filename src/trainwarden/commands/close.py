"""`trainwarden close RUN FINDING --as ACTOR --reason WHY`: say why a finding does not keep a checkpoint back."""

from __future__ import annotations

import argparse
from typing import Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json
from trainwarden.errors import UsageError


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "close",
        "Sign, as an actor, why a finding does not matter to what is served; the finding stays in the log.",
        run=run,
        examples=("trainwarden close last 412 --as ada --reason 'planned maintenance of the file server'",),
        exit_codes="exit codes:\n  0  signed\n  1  the log of actors was altered\n  3  the call, actor or key is wrong",
    )
    parser.add_argument("run_name", metavar="RUN", help='a run\'s id, its beginning or end, or "last"')
    parser.add_argument("finding", metavar="FINDING", type=int, help="its index in the run's log")
    parser.add_argument("--as", dest="actor", metavar="ACTOR", required=True, help="who says so, an enrolled actor")
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why it does not matter")


def run(args: argparse.Namespace) -> int:
    """Sign it."""
    from trainwarden.casefile import read_entries
    from trainwarden.gate import statements
    from trainwarden.gate.findings import finding_digest
    from trainwarden.model import Finding, FindingClosed

    store = open_store(args)
    folder = store.run(args.run_name)
    entries, _ = read_entries(folder)
    entry = entries[args.finding] if 0 <= args.finding < len(entries) else None
    if not isinstance(entry, Finding):
        raise UsageError(f"entry {args.finding} of run {folder.id} is no finding", hint=f"trainwarden show {folder.id}")
    if not args.reason.strip():
        raise UsageError("a finding is closed for a reason", hint="--reason 'what explains it'")
    bare = FindingClosed(
        run=folder.id, index=args.finding, finding=finding_digest(entry), reason=args.reason, actor="", key=""
    )
    closed = statements.sign(bare, args.actor, statements.key_of(store, args.actor))
    statements.keep(store, closed)
    if args.json:
        print_json({"closed": closed})
    else:
        print(f"{args.actor} closed finding {args.finding} of run {folder.id} ({entry.detector}): {args.reason}")
    return CLEAN
