"""`trainwarden derive OUT --from A --from B --how HOW --as ACTOR`: make a checkpoint from others, and record how."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, FINDING, Subparsers, add_verb, open_store, print_json

_HOWS = ("average", "merge", "cast", "convert", "quantise", "finetune")


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "derive",
        "Make a checkpoint from others (average, merge, cast), or say how one was made; clear checks it anew.",
        run=run,
        examples=(
            "trainwarden derive avg --from out/step-16 --from out/step-24 --how average --as ada",
            "trainwarden derive half --from out/step-24 --how cast --dtype bfloat16 --as ada",
            "trainwarden derive old.safetensors --from old.pt --how convert --as ada",
        ),
        exit_codes=(
            "exit codes:\n  0  recorded\n  1  it is not what its sources make (nothing was recorded)\n"
            "  2  it cannot be made from these\n  3  the call or its input is wrong"
        ),
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint; made if it is not there")
    parser.add_argument(
        "--from", dest="sources", metavar="CHECKPOINT", type=Path, action="append", required=True, help="repeatable"
    )
    parser.add_argument("--how", choices=_HOWS, required=True, help="average, merge and cast are made here")
    parser.add_argument("--weights", default="", metavar="W,W", help="of merge: one number for each --from")
    parser.add_argument("--dtype", default="", help="of cast: float64, float32, bfloat16 or float16")
    parser.add_argument("--files", default="", metavar="PATTERN", help="which files hold the weights")
    parser.add_argument("--as", dest="actor", metavar="ACTOR", required=True, help="who says so, an enrolled actor")


def run(args: argparse.Namespace) -> int:
    """Make it if need be, compare it, and sign how it was made."""
    from trainwarden.gate import statements
    from trainwarden.gate.derive import TOLD, difference, make, take_in
    from trainwarden.model import Derived, How

    store = open_store(args)
    try:
        key = statements.key_of(store, args.actor)
        how = How(args.how)
        told = {"weights": args.weights, "dtype": args.dtype, "files": args.files}
        settings = {name: value for name, value in told.items() if value}
        sources = tuple(take_in(store, path) for path in args.sources)
        if not args.out.exists():
            make(store, args.out, sources, how, settings)
        bare = Derived(digest=take_in(store, args.out), how=how, sources=sources, settings=settings)
        different = "" if how in TOLD else difference(store, bare)
        said = statements.sign(bare, args.actor, key)
        if not different:
            statements.keep(store, said)
    finally:
        store.close()
    if args.json:
        print_json({"derived": said, "different": different})
    elif different:
        print(f"{args.out} is no {how} of these: {different}; nothing was recorded")
    else:
        print(f"{args.out} is {said.digest}, {how} of {', '.join(s[:12] for s in sources)}, by {args.actor}")
    return FINDING if different else CLEAN
