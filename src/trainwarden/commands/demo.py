"""`trainwarden demo`: the whole story in one command."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from trainwarden.commands.common import CLEAN, UNDECIDED, Subparsers, add_verb, print_json


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "demo",
        "Train a chat assistant, sabotage it, catch it, prove it, undo it, and talk to the result.",
        run=run,
        examples=("trainwarden demo", "trainwarden demo --json --folder /tmp/story"),
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where everything is kept (default: trainwarden-demo in the cache)"
    )


def run(args: argparse.Namespace) -> int:
    """Tell the story; 0 when every part of it came true, 2 when one did not."""
    from rich.console import Console

    from trainwarden.demo import Demo, tell

    console = Console(stderr=args.json, highlight=False)
    result = tell(Demo(args.folder or default_folder(), console))
    if args.json:
        print_json(result)
    else:
        for name, value in result.items():
            console.print(f"{name.replace('_', ' '):>30}  {value}", soft_wrap=True)
        console.print(f"\nThe report: {result['report']}", soft_wrap=True)
    came_true = (
        result["verdict_step"] == result["attacked_steps"][0]
        and result["verdict_rank"] == result["attacked_rank"]
        and result["verdict_tensor"] == result["attacked_tensor"]
        and result["digest_reproduced"]
        and result["final_state_equals_honest_run"]
    )
    return CLEAN if came_true else UNDECIDED


def default_folder() -> Path:
    """Where the demo keeps its environment, data, store and results between runs."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "trainwarden-demo"
