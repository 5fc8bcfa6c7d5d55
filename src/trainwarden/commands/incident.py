"""`trainwarden incident ACTION`: what is investigated together, and what the evidence says of who did it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, UNDECIDED, Subparsers, add_verb, consoles, open_store, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.custody.folding import Custody
    from trainwarden.model import Artefact, Incident
    from trainwarden.store import Store

_ACTIONS = {
    "open": "begin an incident with this run: its findings, verdicts, artefacts, its log, and all evidence taken in",
    "add": "what the runs say now, evidence taken in since, further runs and artefacts",
    "show": "who had access, what speaks for and against each hypothesis, and what is not known",
    "close": "end it with a sentence on what came of it",
    "list": "every incident",
}
_EXIT = (
    "exit codes:\n"
    "  0  done; of show: a hypothesis leads\n"
    "  1  the log of custody or a run's was altered, or evidence is not what was taken in\n"
    "  2  of show: the evidence does not decide\n"
    "  3  the call or its input is wrong"
)


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "incident",
        "Group findings and evidence into an incident; who had access, hypotheses side by side, what is not known.",
        run=run,
        usage="trainwarden incident [options] {" + ",".join(_ACTIONS) + "} [RUN]",
        examples=(
            "trainwarden incident open last --title 'weights that nobody changed' --as ada",
            "trainwarden incident add i1 --run 20261123-125301-k3f9 --artefact /shared/env/torch/optim/adamw.py",
            "trainwarden incident show last",
            "trainwarden incident show i1 --timeline timeline.parquet --html incident.html",
            "trainwarden incident close i1 --outcome 'not decided; the second factor was not kept'",
        ),
        exit_codes=_EXIT,
    )
    actions = "; ".join(f"{name}: {text}" for name, text in _ACTIONS.items())
    parser.add_argument("action", choices=tuple(_ACTIONS), metavar="ACTION", help=actions)
    parser.add_argument("name", metavar="RUN", nargs="?", default="last", help='a run, an incident\'s id, or "last"')
    parser.add_argument("--title", metavar="TEXT", default="", help="of open: what it is about, in a few words")
    parser.add_argument("--run", dest="runs", metavar="RUN", action="append", default=[], help="a further run")
    parser.add_argument(
        "--artefact", metavar="PATH", action="append", default=[], help="a further file that was changed or planted"
    )
    parser.add_argument(
        "--passwd", metavar="FILE", nargs="+", type=Path, default=(), help="names of user ids on the runs' hosts"
    )
    parser.add_argument("--outcome", metavar="TEXT", default="", help="of close: what came of it")
    parser.add_argument("--timeline", metavar="FILE", type=Path, help="of show: write the timeline of all sources here")
    parser.add_argument("--html", metavar="FILE", type=Path, help="of show: write a page here")
    parser.add_argument("--as", dest="actor", metavar="ACTOR", default="", help="who signs (default: your own key)")


def run(args: argparse.Namespace) -> int:
    """Do what ACTION says and show the outcome."""
    from trainwarden.custody.ledger import read_custody

    store = open_store(args)
    try:
        match args.action:
            case "list":
                return _list(args, read_custody(store))
            case "show":
                return _show(args, store)
            case "open":
                return _told(args, _open(args, store))
            case "add":
                return _told(args, _add(args, store))
            case _:
                return _told(args, _close(args, store))
    finally:
        store.close()


def _open(args: argparse.Namespace, store: Store) -> Incident:
    from trainwarden.attribute.gathering import bring_up_to_date
    from trainwarden.custody import ledger
    from trainwarden.custody.taking import users_of

    run_id, by = store.run(args.name).id, ledger.signer(store, args.actor)
    incident = ledger.open_incident(store, by, args.title or f"run {run_id}")
    incident = bring_up_to_date(store, by, incident, [run_id, *args.runs], users_of(args.passwd))
    return _with_artefacts(args, store, incident)


def _add(args: argparse.Namespace, store: Store) -> Incident:
    from trainwarden.attribute.gathering import bring_up_to_date
    from trainwarden.custody import ledger
    from trainwarden.custody.taking import users_of
    from trainwarden.model import IncidentStatus

    named = _named(args, store)
    if named.status is not IncidentStatus.OPEN:
        raise UsageError(f"incident {named.id} is closed: it takes nothing more", hint="trainwarden incident open RUN")
    incident = bring_up_to_date(store, ledger.signer(store, args.actor), named, args.runs, users_of(args.passwd))
    return _with_artefacts(args, store, incident)


def _with_artefacts(args: argparse.Namespace, store: Store, incident: Incident) -> Incident:
    from trainwarden.custody import ledger

    artefacts = [_artefact(store, path) for path in args.artefact]
    by = ledger.signer(store, args.actor)
    return ledger.add_to(store, by, incident.id, artefacts=artefacts) if artefacts else incident


def _artefact(store: Store, path: str) -> Artefact:
    """A file as it is now; its bytes are kept."""
    import os

    from trainwarden.model import Artefact

    whole = Path(os.path.abspath(path))
    return Artefact(path=str(whole), digest=store.put_file(whole), what="named by whoever investigates")


def _close(args: argparse.Namespace, store: Store) -> Incident:
    from trainwarden.custody import ledger

    if not args.outcome:
        raise UsageError("closing takes a sentence on what came of it", hint="--outcome 'not decided: …'")
    return ledger.close_incident(store, ledger.signer(store, args.actor), _named(args, store).id, args.outcome)


def _named(args: argparse.Namespace, store: Store) -> Incident:
    from trainwarden.custody.ledger import find_incident, read_custody

    custody = read_custody(store)
    if args.name == "last" or args.name in custody.incidents:
        return find_incident(custody, args.name)
    try:
        name = store.run(args.name).id
    except UsageError:  # no run either: what incidents there are helps more
        name = args.name
    return find_incident(custody, name)


def _told(args: argparse.Namespace, incident: Incident) -> int:
    if args.json:
        print_json({"incident": incident})
    else:
        print(
            f"incident {incident.id}, {incident.status}: {incident.title}\n"
            f"  runs: {len(incident.runs)}, findings: {len(incident.findings)}, verdicts: {len(incident.verdicts)}, "
            f"artefacts: {len(incident.artefacts)}, sources: {len(incident.custody)}, "
            f"their events: {sum(e.events for e in incident.custody):,}"
        )
    return CLEAN


def _list(args: argparse.Namespace, custody: Custody) -> int:
    if args.json:
        print_json(
            {"incidents": list(custody.incidents.values()), "doubted": {str(k): v for k, v in custody.doubted.items()}}
        )
    else:
        for i in custody.incidents.values():
            print(f"{i.id}  {i.status}  {len(i.runs)} runs  {i.title}" + (f"  ({i.outcome})" if i.outcome else ""))
    return CLEAN


def _show(args: argparse.Namespace, store: Store) -> int:
    from trainwarden.attribute import attribute
    from trainwarden.report.incident import print_incident
    from trainwarden.report.incident_page import write_page

    incident = _named(args, store)
    results, progress = consoles(args)
    with progress.status(
        f"joining {sum(e.events for e in incident.custody):,} events of {len(incident.custody)} sources"
    ):
        told = attribute(store, incident, args.timeline)
    if args.html is not None:
        write_page(incident, told, args.html)
    if args.json:
        print_json({"incident": incident, "attribution": told})
    else:
        print_incident(results, incident, told)
    return UNDECIDED if told.conclusion.leading is None else CLEAN
