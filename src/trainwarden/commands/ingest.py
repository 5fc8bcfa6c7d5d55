"""`trainwarden ingest FILE…`: take records of who did what into the store, as evidence."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, tzinfo
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, UNDECIDED, Subparsers, add_verb, consoles, open_store, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from rich.status import Status

    from trainwarden.custody.taking import State, Told
    from trainwarden.model import Evidence
    from trainwarden.store import Store

_EXIT = (
    "exit codes:\n"
    "  0  every file was taken in, or was in already\n"
    "  1  the log of custody was altered\n"
    "  2  taken in, and some lines could not be read (they are told)\n"
    "  3  the call or its input is wrong"
)


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "ingest",
        "Take records of who did what (audit, logins, jobs, commits, …) into the store, as evidence.",
        run=run,
        examples=(
            "trainwarden ingest audit.log auth.log wtmp --host node3",
            "trainwarden ingest sacct.txt --source slurm --zone Europe/Berlin --as ada",
            "trainwarden ingest tetragon.json --editors admin:collector --passwd passwd --incident i1",
        ),
        exit_codes=_EXIT,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="records, plain or gzip")
    add_told(parser)
    parser.add_argument(
        "--again", action="store_true", help="read anew, as this call says, what is in already; the log keeps both"
    )
    parser.add_argument("--incident", metavar="ID", default="", help="add them to this open incident as well")


def add_told(parser: argparse.ArgumentParser) -> None:
    """Add what may be said of files that are taken in."""
    from trainwarden.model import SourceKind

    kinds = [kind.value for kind in SourceKind]
    parser.add_argument("--source", choices=kinds, help="what wrote them (default: as their content says)")
    parser.add_argument("--host", metavar="NAME", default="", help="where they were written, if their lines do not say")
    parser.add_argument("--account", metavar="NAME", default="", help="whose they are, if their lines do not say")
    parser.add_argument(
        "--editors",
        metavar="WHO",
        nargs="+",
        default=(),
        help="who could have edited them before now: accounts, root, admin:NAME, * (default: by kind)",
    )
    parser.add_argument(
        "--passwd", metavar="FILE", nargs="+", type=Path, default=(), help="names of user ids (getent passwd)"
    )
    parser.add_argument("--zone", metavar="NAME", default="", help="of times without one (default: UTC)")
    parser.add_argument(
        "--year", metavar="YEAR", type=int, default=0, help="of times without one (default: the file's)"
    )
    parser.add_argument("--as", dest="actor", metavar="ACTOR", default="", help="who signs (default: your own key)")


def run(args: argparse.Namespace) -> int:
    """Take the files in and say what was found in each."""
    import msgspec

    from trainwarden.custody import ledger
    from trainwarden.custody.taking import take_in

    store = open_store(args, create=True)
    by, told = ledger.signer(store, args.actor), msgspec.structs.replace(told_of(args), again=args.again)
    results, progress = consoles(args)
    taken: list[tuple[Evidence, State]] = []
    for path in args.files:
        with progress.status(f"reading {path.name}") as status:
            say = partial(_reading, status, path.name)
            taken.append(take_in(store, by, path, told, say))
        if not args.json:
            results.print(_line(*taken[-1]), markup=False)
            for note in _notes(store, *taken[-1], told):
                results.print(f"  {note}", markup=False)
            for unread in taken[-1][0].examples:
                results.print(f"  line {unread.line}: {unread.reason}", markup=False)
    if args.incident:
        ledger.add_to(store, by, args.incident, evidence=[evidence.id for evidence, _ in taken])
    if args.json:
        print_json({"evidence": [{"evidence": e, "state": s} for e, s in taken], "incident": args.incident})
    return UNDECIDED if any(e.unread for e, _ in taken) else CLEAN


def _reading(status: Status, name: str, at: int) -> None:
    status.update(f"reading {name}: {at >> 20} MiB")


def told_of(args: argparse.Namespace) -> Told:
    """What the call says of its files.

    Raises:
        UsageError: a file of user ids cannot be read, or there is no such time zone.
    """
    from trainwarden.custody.taking import Told, users_of
    from trainwarden.model import SourceKind

    return Told(
        kind=SourceKind(args.source) if args.source else None,
        host=args.host,
        account=args.account,
        editors=tuple(args.editors),
        users=users_of(args.passwd),
        zone=_zone(args.zone),
        year=args.year,
    )


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError):
        raise UsageError(f"no such time zone: {name[:40]!r}", hint="such as Europe/Berlin or Asia/Shanghai") from None


def _notes(store: Store, evidence: Evidence, state: State, told: Told) -> Iterator[str]:
    """What whoever takes a file in may have missed."""
    from trainwarden.custody.table import numbered
    from trainwarden.custody.taking import State

    other = (told.host or evidence.host) != evidence.host or bool(set(told.editors) - set(evidence.editors))
    if state is State.THERE and other:
        who = ", ".join(evidence.editors) or "nobody"
        yield f"it was read as of host {evidence.host or 'not told'}, editors {who}; --again reads it as this call says"
    if names := numbered(store.object_path(evidence.table)):
        yield f"known by number only, so that nothing joins them to a name: {', '.join(names[:8])} (--passwd FILE)"


def _line(evidence: Evidence, state: State) -> str:
    weak = ", weak: its subject can write it" if evidence.weak else ""
    unread = f", {evidence.unread} lines could not be read" if evidence.unread else ""
    became = "" if state == "new" else f" ({state})"
    return f"{evidence.name}: {evidence.kind}, {evidence.events:,} events{unread}{weak}  {evidence.id[:16]}…{became}"
