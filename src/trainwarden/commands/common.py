"""What every verb shares: its parser with `--store` and `--json`, the opened store, and JSON output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.config import Config
    from trainwarden.detect import Engine
    from trainwarden.model import SignedSeal
    from trainwarden.store import Store

CLEAN, FINDING, UNDECIDED, USAGE = 0, 1, 2, 3

EXIT_CODES = (
    "exit codes:\n"
    "  0  clean: nothing was found\n"
    "  1  a finding: something is not what it should be\n"
    "  2  could not decide from the evidence at hand (never a pass)\n"
    "  3  the call or its input is wrong"
)

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def add_verb(
    subparsers: Subparsers[Any],
    name: str,
    summary: str,
    *,
    run: Callable[[argparse.Namespace], int],
    examples: Sequence[str] = (),
    exit_codes: str = EXIT_CODES,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """Declare the verb `name` with `--store` and `--json`; `run(args)` is called for it."""
    shown = "examples:\n" + "\n".join(f"  {line}" for line in examples) + "\n\n" if examples else ""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        usage=usage,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=shown + exit_codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--store", type=Path, metavar="DIR", help="the store (default: the nearest .trainwarden)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)
    return parser


def open_store(args: argparse.Namespace, *, create: bool = False) -> Store:
    """Open the store that `--store` names, or the nearest one.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    from trainwarden.store import Store

    return Store.open(args.store, create=create)


def nearest_store(args: argparse.Namespace) -> Store | None:
    """The store that `--store` names, or the nearest one, or None where there is none.

    Raises:
        StoreError: the named one is none, or it cannot be read.
    """
    from trainwarden.errors import StoreError

    try:
        return open_store(args)
    except StoreError:
        if args.store is not None:
            raise
        return None


def consoles(args: argparse.Namespace) -> tuple[Console, Console]:
    """Where results are printed (stdout), and where progress is shown: there too on a terminal, else on stderr."""
    from rich.console import Console

    results = Console(highlight=False, soft_wrap=True)
    alone = results.is_terminal and not args.json
    return results, results if alone else Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Write `value` (built-in types or msgspec structs) as one line of JSON on stdout.

    Text that is no Unicode (the name of a file, a name in a hostile one) is written with its surrogates as `\\udc80`.
    """
    import msgspec

    try:
        line = msgspec.json.encode(value, order="deterministic").decode()
    except UnicodeEncodeError:
        import json

        line = json.dumps(msgspec.to_builtins(value, order="deterministic"))
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def watcher_of(config: Config) -> Callable[[SignedSeal], Engine]:
    """What makes the detectors of a run once its seal is made, told what seal and settings say of the run.

    Raises:
        UsageError: what is declared of the learning rate is no schedule.
    """
    from trainwarden.detect import Engine, Facts, all_detectors
    from trainwarden.detect.schedules import declared
    from trainwarden.errors import UsageError

    expect = dict(config.expect.settings)
    if config.expect.lr:
        expect["lr"] = config.expect.lr
        try:
            declared(config.expect.lr)
        except ValueError as e:
            raise UsageError(f"[expect] {e}", hint="docs/detectors.md#schedule shows how to declare one") from None

    def make(sealed: SignedSeal) -> Engine:
        return Engine(all_detectors(Facts(sealed.seal.argv, sealed.seal.seeds, expect)))

    return make
