"""`trainwarden log cosign LOG`: ask witnesses to cosign the head of a log, and keep their lines beside it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, assert_never

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, open_store, print_json
from trainwarden.commands.reading import add_log, log_named, public_key
from trainwarden.commands.witnesses import add_witnesses, read_policy
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.log.ask import Reply


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the command."""
    parser = add_verb(
        subparsers,
        "cosign",
        "Ask witnesses to cosign the head of a run's log, or of the store's: gate, custody.",
        run=run,
        examples=(
            "trainwarden log cosign last --witness NAME+ID+KEY=https://witness.example/",
            "trainwarden log cosign last --policy policy.txt",
            "trainwarden log cosign gate --policy policy.txt",
        ),
        exit_codes=(
            "exit codes:\n  0  enough witnesses cosigned\n  1  a witness knows another history of this log\n"
            "  2  too few answered\n  3  the call or its input is wrong"
        ),
    )
    add_log(parser)
    add_witnesses(parser)


def run(args: argparse.Namespace) -> int:
    """Ask every witness that has an address."""
    from trainwarden.log.ask import Contradicted, Cosigned, collect
    from trainwarden.log.cosignature import Enough
    from trainwarden.log.policy import judge
    from trainwarden.log.reader import LogReader
    from trainwarden.log.witnessed import keep_cosigned

    policy = read_policy(args)
    asked = [w for w in policy.witnesses.values() if w.public in policy.urls] if policy else []
    if policy is None or not asked:
        raise UsageError("no witness to ask", hint="--witness NAME+ID+KEY=URL, or a --policy file with URLs")
    name, folder = log_named(open_store(args), args.run_name)
    with LogReader.open(folder, public_key(args)) as log:
        note = log.head.note
        replies = {w: collect(policy.urls[w.public], w, note, log.consistency_proof) for w in asked}
    lines = [reply.cosignature.line for reply in replies.values() if isinstance(reply, Cosigned)]
    kept = keep_cosigned(folder, note, lines) if lines else note
    quorum = judge(policy, kept.encode())
    if any(isinstance(reply, Contradicted) for reply in replies.values()):
        code = FINDING
    else:
        code = CLEAN if quorum is None or isinstance(quorum, Enough) else UNDECIDED
    said = {w.name: _said(reply) for w, reply in replies.items()}
    if args.json:
        print_json({"log": name, "size": log.head.size, "witnesses": said, "quorum": quorum, "exit_code": code})
        return code
    print(f"{name}: head of {log.head.size} entries, root {log.head.root}")
    for name, words in said.items():
        print(f"  {name}: {words}")
    return code


def _said(reply: Reply) -> str:
    from trainwarden.log.ask import Behind, Contradicted, Cosigned, Unanswered
    from trainwarden.report.words import when

    match reply:
        case Cosigned(cosignature):
            return f"cosigned at {when(cosignature.time * 1_000_000_000)}"
        case Contradicted(reason):
            return f"CONTRADICTED: {reason}"
        case Behind(size):
            return f"no cosignature: it is at size {size}"
        case Unanswered(reason):
            return f"no cosignature: {reason}"
        case _ as unreachable:
            assert_never(unreachable)
