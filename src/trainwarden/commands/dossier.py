"""`trainwarden dossier INCIDENT -o FOLDER`: one edition of an incident's dossier, as a folder and a zip file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, consoles, open_store, print_json
from trainwarden.errors import TrainWardenError, UsageError

if TYPE_CHECKING:
    from trainwarden.custody.ledger import Signer
    from trainwarden.dossier.gathering import Given
    from trainwarden.model import Incident
    from trainwarden.store import Store

_AUDIENCES = ("organisation", "university", "industry", "regulator", "public")


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "dossier",
        "Make a dossier of an incident that outsiders can check; what an audience may not see is "
        "hidden, proofs stay valid.",
        run=run,
        examples=(
            "trainwarden dossier i1 -o dossier",
            "trainwarden dossier i1 -o for-public --audience public --hide 'Project Heron'",
            "trainwarden dossier last -o dossier --statement answer.txt --rebuttal reply.txt "
            "--claims claims.toml --as ada",
            "trainwarden verify dossier.zip --key HEX",
        ),
        exit_codes=(
            "exit codes:\n  0  it was made\n  1  the log of custody or a run's was altered, or "
            "evidence is not what was taken in\n"
            "  3  the call or its input is wrong"
        ),
    )
    parser.add_argument(
        "name", metavar="INCIDENT", nargs="?", default="last", help='an incident\'s id, a run, or "last"'
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True, help="FOLDER, and FOLDER.zip beside it"
    )
    parser.add_argument("--audience", choices=_AUDIENCES, default="organisation", help="whom this edition is for")
    parser.add_argument(
        "--hide", metavar="WORD", action="append", default=[], help="a further word that only the organisation sees"
    )
    parser.add_argument(
        "--statement", metavar="FILE", type=Path, help="what the respondent says: taken in, in their own words"
    )
    parser.add_argument("--rebuttal", metavar="FILE", type=Path, help="what is answered to it")
    parser.add_argument("--claims", metavar="FILE", type=Path, help="public statements to test against the damage")
    parser.add_argument("--honest", metavar="RUN", action="append", default=[], help="of damage: a run to compare with")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="of damage: settings (default: trainwarden.toml here)"
    )
    parser.add_argument("--no-pdf", action="store_true", help="print no PDF (it takes Chromium)")
    parser.add_argument(
        "--records-mb", metavar="MB", type=int, default=256, help="records that the organisation's edition carries"
    )
    parser.add_argument("--kit", action="store_true", help="with all that a replay of the diverging steps takes")
    parser.add_argument("--kit-environment", action="store_true", help="of the kit: with the sealed environment")
    parser.add_argument("--kit-mb", metavar="MB", type=int, default=512, help="objects that the kit carries at most")
    parser.add_argument("--as", dest="actor", metavar="ACTOR", default="", help="who signs (default: your own key)")


def run(args: argparse.Namespace) -> int:
    """Make the dossier."""
    from trainwarden.custody import ledger
    from trainwarden.dossier import making
    from trainwarden.dossier.nouns import Audience

    store = open_store(args)
    try:
        by = ledger.signer(store, args.actor)
        incident = _heard(args, store, by, _named(args, store))
        results, progress = consoles(args)
        with progress.status("gathering evidence …") as status:
            given = _given(args, store, incident)
            options = making.Options(
                audience=Audience(args.audience),
                hide=tuple(args.hide),
                pdf=not args.no_pdf,
                records_mb=args.records_mb,
                kit=args.kit or args.kit_environment,
                kit_environment=args.kit_environment,
                kit_mb=args.kit_mb,
            )
            made = making.make(store, by, incident, given, options, status.update)
            folder, file = making.write(made, args.output.absolute())
    finally:
        store.close()
    manifest = made.manifest
    if args.json:
        print_json(
            {
                "folder": str(folder),
                "zip": str(file),
                "register": manifest.register,
                "audience": manifest.audience,
                "items": manifest.items,
                "key": manifest.key,
                "absent": manifest.absent,
            }
        )
    else:
        results.print(
            f"{file}: edition for {manifest.audience}, {manifest.items} items under {manifest.register}", markup=False
        )
        for path, why in manifest.absent.items():
            results.print(f"  without {path}: {why}", markup=False)
        results.print(f"to check it: trainwarden verify {file} --key {manifest.key}", markup=False)
    return CLEAN


def _named(args: argparse.Namespace, store: Store) -> Incident:
    from trainwarden.custody.ledger import find_incident, read_custody

    return find_incident(read_custody(store), args.name)


def _heard(args: argparse.Namespace, store: Store, by: Signer, incident: Incident) -> Incident:
    """The incident with the statements that were handed in."""
    from trainwarden.custody.ledger import take_statement

    for role, path in (("respondent", args.statement), ("rebuttal", args.rebuttal)):
        if path is not None:
            incident = take_statement(store, by, incident.id, role, path)
    return incident


def _given(args: argparse.Namespace, store: Store, incident: Incident) -> Given:
    """The account of damage; why there is none, where a run's log does not verify."""
    import math

    import msgspec

    from trainwarden.config import load_config
    from trainwarden.dossier.gathering import Given
    from trainwarden.gate.ledger import read_gate
    from trainwarden.respond.account.account import account
    from trainwarden.respond.account.claims import hold, read_claims
    from trainwarden.respond.account.reading import named_runs, read_jobs
    from trainwarden.respond.account.served import served_in

    claims = read_claims(args.claims) if args.claims is not None else ()
    try:
        config = load_config(args.config, Path.cwd()).damage
        honest = read_jobs(store, named_runs(store, args.honest), "", lambda _: None) if args.honest else []
        jobs = read_jobs(store, [r for r in incident.runs if r in store.runs()], "", lambda _: None)
        found = account(jobs, config, honest=honest)
        found = msgspec.structs.replace(
            found, served=served_in(read_gate(store), [*jobs, *honest], -math.inf, math.inf)
        )
    except UsageError:
        raise
    except TrainWardenError as e:
        return Given(no_account=str(e))
    return Given(account=found, claims=tuple(hold(c, found) for c in claims))
