"""`trainwarden runs`: every run in the store, and what is known of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json
from trainwarden.commands.reading import add_key, public_key

if TYPE_CHECKING:
    from trainwarden.casefile import CaseFile
    from trainwarden.store import Store


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "runs",
        "List the runs in the store.",
        run=run,
        examples=("trainwarden runs", "trainwarden runs --json"),
        exit_codes="exit codes:\n  0  listed\n  3  the call or its input is wrong",
    )
    add_key(parser)


def run(args: argparse.Namespace) -> int:
    """List the runs, the newest last; one that cannot be read is listed with its error."""
    store = open_store(args)
    key = public_key(args)
    rows = [(name, _read(store, name, key)) for name in store.runs()]
    if args.json:
        print_json({"runs": [_as_json(name, case) for name, case in rows]})
        return CLEAN
    from rich.console import Console

    from trainwarden.report.text import print_runs

    if rows:
        print_runs(Console(highlight=False), rows)
    else:
        print(f"no run in {store.path} yet: trainwarden run -- COMMAND")
    return CLEAN


def _read(store: Store, name: str, key: str) -> CaseFile | str:
    from trainwarden.casefile import load_case
    from trainwarden.errors import TrainWardenError

    try:
        return load_case(store, name, key, look_at_files=False)
    except TrainWardenError as e:
        return str(e)


def _as_json(name: str, case: CaseFile | str) -> dict[str, Any]:
    if isinstance(case, str):
        return {"run": name, "error": case}
    from trainwarden.casefile import coverage_share, indexed
    from trainwarden.model import Finding

    return {
        "run": name,
        "started_ns": case.sealed.wall_ns,
        "argv": case.seal.seal.argv if case.seal else (),
        "parent": case.sealed.parent,
        "answer": case.answer,
        "sentence": case.sentence,
        "records": case.audited.records,
        "coverage": coverage_share(case.audited),
        "findings": len(indexed(case.entries, Finding)),
    }
