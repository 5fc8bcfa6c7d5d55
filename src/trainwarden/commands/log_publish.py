"""`trainwarden log publish LOG --to DIR`: a log as a folder of static tiles (C2SP tlog-tiles)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json
from trainwarden.commands.reading import add_log, log_named, public_key


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the command."""
    parser = add_verb(
        subparsers,
        "publish",
        "Write a log (of a run, or the gate's) as static tiles that other tools read; again to bring them up to date.",
        run=run,
        examples=("trainwarden log publish last --to site/", "trainwarden log publish gate --to gate-site/ --json"),
        exit_codes=(
            "exit codes:\n  0  published\n  1  the log does not verify, or the folder has another history of it\n"
            "  3  the call or its input is wrong"
        ),
    )
    add_log(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to publish to")


def run(args: argparse.Namespace) -> int:
    """Publish what is new."""
    from trainwarden.log.notes import split_note
    from trainwarden.log.publish import publish
    from trainwarden.log.reader import LogReader
    from trainwarden.log.vkeys import VerifierKey
    from trainwarden.log.witnessed import read_cosigned

    name, folder = log_named(open_store(args), args.run_name)
    key = public_key(args)
    with LogReader.open(folder, key) as log:
        cosigned = read_cosigned(folder) or b""
        same = cosigned and split_note(cosigned)[0] == split_note(log.head.note.encode())[0]
        done = publish(log, args.to, cosigned.decode() if same else "", _progress(args, log.head.size))
    vkey = VerifierKey(done.origin, key).text if key else ""
    if args.json:
        print_json({"log": name, "to": str(args.to), "published": done, "vkey": vkey, "cosigned": bool(same)})
        return CLEAN
    print(f"{name}: {done.size} entries, {done.size - done.before} of them new, {done.tiles} files written")
    print(f"checkpoint {args.to / 'checkpoint'}{', cosigned' if same else ''}")
    if vkey:
        print(f"verifier key {vkey}")
    return CLEAN


def _progress(args: argparse.Namespace, size: int) -> Any:
    if args.json or not sys.stderr.isatty():
        return None
    return lambda done: print(f"\r\x1b[K{done} of {size} entries …\r", end="", file=sys.stderr, flush=True)
