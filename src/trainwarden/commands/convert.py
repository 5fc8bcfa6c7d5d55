"""`trainwarden convert OLD -o NEW`: an old checkpoint as safetensors and plain JSON, bit for bit, with proof."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, print_json

_EXIT = (
    "exit codes:\n"
    "  0  converted: what was written was read back, and is the same bit for bit\n"
    "  1  refused: loading the old file could run something\n"
    "  2  it was not understood, or holds what has no form in safetensors and JSON; nothing was written\n"
    "  3  the call or its input is wrong"
)


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "convert",
        "Turn an old checkpoint into safetensors and plain JSON, bit for bit, and prove it by reading back.",
        run=run,
        examples=("trainwarden convert epoch-3.ckpt -o epoch-3",),
        exit_codes=_EXIT,
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="a checkpoint of torch, or a pickle; it is kept")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NEW", help="a folder that does not exist")


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was compared."""
    from trainwarden.gate.convert.conversion import convert

    done = convert(args.old, args.output)
    if args.json:
        print_json(done)
        return CLEAN
    print(f"{args.output}: {', '.join(f'{t.path} ({t.size:,} bytes)' for t in done.targets)}, conversion.json")
    print(
        f"read back and compared: {done.tensors_equal:,} tensors and {done.bytes_equal:,} bytes of storage, all equal"
    )
    return CLEAN
