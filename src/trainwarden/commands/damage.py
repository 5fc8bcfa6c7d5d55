"""`trainwarden damage [RUN …]`: what was lost, line by line, with ranges, and what is not known."""

from __future__ import annotations

import argparse
import datetime
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, consoles, print_json
from trainwarden.commands.reading import add_key, public_key
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.respond.account.lines import Account
    from trainwarden.store import Store


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "damage",
        "Account for what was lost: disjoint lines of GPU-hours, natural failures subtracted, with ranges.",
        run=run,
        examples=(
            "trainwarden damage last",
            "trainwarden damage RUN --honest OTHER -o damage.html",
            "trainwarden damage /srv/store --since 2026-06-01 --until 2026-08-01 --json",
        ),
        exit_codes=(
            "exit codes:\n  0  nothing was lost\n  1  a loss stands out from what happens anyway\n"
            "  2  a loss cannot be told from what happens anyway, or the records do not tell\n"
            "  3  the call or its input is wrong"
        ),
    )
    add_scope(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write one HTML page")


def add_scope(parser: argparse.ArgumentParser) -> None:
    """Add what says which runs and times are accounted for."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="runs, or the folder of a store (default: every run of the store)"
    )
    parser.add_argument(
        "--honest", metavar="RUN", action="append", default=[], help="a run to compare with, itself not accounted for"
    )
    parser.add_argument(
        "--since", metavar="TIME", default="", help="what lies before is honest: 2026-06-01, or …T08:00+02:00"
    )
    parser.add_argument("--until", metavar="TIME", default="", help="what lies after is left out")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: trainwarden.toml here)")
    add_key(parser)


def run(args: argparse.Namespace) -> int:
    """Account, and show it."""
    from trainwarden.report.damage import print_account, write_page

    found = account_of(args)
    if args.output is not None:
        write_page(found, args.output)
    if args.json:
        print_json(found)
    else:
        print_account(consoles(args)[0], found)
    return FINDING if found.lost.mid > 0 else UNDECIDED if found.is_open else CLEAN


def account_of(args: argparse.Namespace) -> Account:
    """The account of the runs that were named.

    Raises:
        UsageError, StoreError, LogTampered: the call is wrong, or a run cannot be read.
    """
    import msgspec

    from trainwarden.config import load_config
    from trainwarden.gate.ledger import read_gate
    from trainwarden.respond.account.account import account
    from trainwarden.respond.account.reading import named_runs, read_jobs
    from trainwarden.respond.account.served import served_in

    since, until = _time(args.since, -math.inf), _time(args.until, math.inf)
    if since >= until:
        raise UsageError("--since is not before --until", hint="both are times, such as 2026-06-01")
    config = load_config(args.config, Path.cwd()).damage
    store, names = _store(args)
    key = public_key(args)
    _, told = consoles(args)
    with told.status("reading records …") as status:
        honest = read_jobs(store, named_runs(store, args.honest), key, status.update) if args.honest else []
        apart = {run for job in honest for run in job.runs}
        wanted = [run for run in named_runs(store, names) if run not in apart]
        if not wanted:
            raise UsageError(
                "every run that is named is one to compare with", hint="name others than those after --honest"
            )
        jobs = read_jobs(store, wanted, key, status.update)
        found = account(jobs, config, honest=honest, since=since, until=until)
        return msgspec.structs.replace(found, served=served_in(read_gate(store), [*jobs, *honest], since, until))


def _store(args: argparse.Namespace) -> tuple[Store, list[str]]:
    """The store, which may be named in the place of a run, and the names of runs."""
    from trainwarden.store import Store

    if len(args.runs) == 1 and (Path(args.runs[0]) / "objects").is_dir():
        if args.store is not None:
            raise UsageError("two stores are named", hint="name it once, as the argument or after --store")
        return Store.open(Path(args.runs[0])), []
    return Store.open(args.store), args.runs


def _time(text: str, without: float) -> float:
    if not text:
        return without
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"not a time: {text[:40]!r}", hint="2026-06-01, or 2026-06-01T08:00+02:00 (else UTC)"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()
