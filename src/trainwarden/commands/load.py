"""`trainwarden load PATH`: what a checkpoint holds, told after the gate's decision and a load of weights only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, nearest_store, print_json

_EXIT = (
    "exit codes:\n"
    "  0  it was found clean and loaded\n"
    "  1  refused: loading it could run something, and no actor allowed it (trainwarden scan --allow)\n"
    "  2  it was not understood, or holds more than weights (never a pass)\n"
    "  3  the call or its input is wrong"
)


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "load",
        "Load a checkpoint if a scan finds it clean, and show the names, kinds and shapes of its tensors.",
        run=run,
        examples=("trainwarden load model.pt", "trainwarden load --json model.safetensors"),
        exit_codes=_EXIT,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, or a folder that convert wrote")


def run(args: argparse.Namespace) -> int:
    """Load and tell."""
    from trainwarden.gate.loader import contents, load
    from trainwarden.report.words import clean

    told = contents(load(args.path, store=nearest_store(args)))
    if args.json:
        print_json({"path": str(args.path), "tensors": told.tensors, "others": told.others})
        return CLEAN
    names = [clean(t.name) for t in told.tensors]
    width = max(map(len, names), default=0)
    for name, t in zip(names, told.tensors, strict=True):
        print(f"{name:{width}}  {t.dtype:14}  {'×'.join(map(str, t.shape)) or 'scalar'}")
    total = sum(t.size for t in told.tensors)
    print(f"{len(told.tensors):,} tensors, {total:,} bytes; {told.others:,} other values")
    return CLEAN
