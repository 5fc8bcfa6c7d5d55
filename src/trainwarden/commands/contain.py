"""`trainwarden contain RUN [PATH …]`: keep the damage of a run from spreading; shows its plan first."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, consoles, open_store, print_json
from trainwarden.errors import LogTampered, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.casefile import CaseFile
    from trainwarden.respond.contain import ContainPlan, Kind, PastAct
    from trainwarden.store import Store

_EXIT = (
    "exit codes:\n"
    "  0  shown, or done\n"
    "  1  the run's log does not verify, or quarantined bytes are not what was moved\n"
    "  2  an act could not be done (what was done before it stays done)\n"
    "  3  the call or its input is wrong"
)
_ONLY = ("hold", "stop", "freeze", "quarantine")
_SHOWN = 20
_NOTHING_CHANGED = "nothing was changed; `--apply` does it"


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "contain",
        "Hold or stop a job, freeze what comes from it, quarantine its files, revoke a key; shows its plan first.",
        run=run,
        examples=(
            "trainwarden contain last",
            "trainwarden contain last --apply --reason 'case 7'",
            "trainwarden contain last out/step_400.pt --only quarantine --apply",
            "trainwarden contain last --release",
            "trainwarden contain last --undo --apply",
        ),
        exit_codes=_EXIT,
    )
    parser.add_argument("run_name", metavar="RUN", help='a run id, its beginning or end, or "last"')
    parser.add_argument("paths", metavar="PATH", nargs="*", help="files and folders to move (default: what is wrong)")
    parser.add_argument("--apply", action="store_true", help="do it")
    parser.add_argument("--stop", action="store_true", help="end the command in order, in place of holding it")
    parser.add_argument("--only", choices=_ONLY, action="append", help="this part of the plan alone; may be repeated")
    parser.add_argument("--revoke", metavar="ACTOR", default="", help="revoke this actor's key as well; for good")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for the log")
    parser.add_argument("--release", action="store_true", help="let a held job go on, at once")
    parser.add_argument(
        "--undo",
        metavar="ACT",
        nargs="?",
        const=-1,
        default=None,
        type=int,
        help="take back the act at this log entry, or all that can be; a plan too without --apply",
    )


def run(args: argparse.Namespace) -> int:
    """Show the plan, or carry it out."""
    _check(args)
    store = open_store(args)
    try:
        if args.release:
            return _release(args, store)
        case = _case(store, args.run_name)
        return _undo(args, store, case) if args.undo is not None else _contain(args, store, case)
    finally:
        store.close()


def _check(args: argparse.Namespace) -> None:
    forms = [args.release, args.undo is not None, bool(args.paths or args.only or args.stop or args.revoke)]
    if sum(forms) > 1:
        raise UsageError("containing, --undo and --release are three calls", hint="trainwarden contain -h")


def _case(store: Store, name: str) -> CaseFile:
    from trainwarden.casefile import Broken, load_case

    case = load_case(store, name, look_at_files=False)
    if isinstance(case.state, Broken):
        raise LogTampered(
            f"the log of run {case.run} does not verify: {case.state.reason}",
            hint="keep the store as evidence; nothing is added to a log that was altered",
        )
    return case


def _contain(args: argparse.Namespace, store: Store, case: CaseFile) -> int:
    from trainwarden.keys import SigningKey
    from trainwarden.respond.contain import apply_plan, make_plan

    kinds: list[Kind] = list(args.only or ("hold", "freeze", "quarantine"))
    if args.stop:
        kinds = [*(k for k in kinds if k != "hold"), "stop"]
    results, progress = consoles(args)
    with progress.status("comparing the disk with the seal and the log"):
        plan = make_plan(store, case, args.paths, kinds=kinds, actor=args.revoke)
    done: list[str] = []
    if not args.json:
        _show(results, plan)
    if args.apply:

        def on_act(sentence: str) -> None:
            done.append(sentence)
            if not args.json:
                results.print(sentence, markup=False)

        apply_plan(store, store.run(case.run), plan, SigningKey.load(), args.reason, on_act)
        if done and not args.json:
            results.print(f"to take it back: trainwarden contain {case.run} --undo", markup=False)
    elif not args.json:
        results.print(_NOTHING_CHANGED)
    if args.json:
        print_json({"run": case.run, "applied": args.apply, "plan": plan, "done": done})
    return CLEAN


def _undo(args: argparse.Namespace, store: Store, case: CaseFile) -> int:
    from trainwarden.keys import SigningKey
    from trainwarden.respond.contain import chosen, past_acts, undo

    results, _ = consoles(args)
    acts = past_acts(case)
    back = chosen(acts, None if args.undo < 0 else args.undo)
    done: list[str] = []
    if not args.json:
        _show_past(results, case.run, acts, back)
    if args.apply:
        undo(store, store.run(case.run), back, SigningKey.load(), done.append)
        for sentence in () if args.json else done:
            results.print(sentence, markup=False)
    elif not args.json:
        results.print(_NOTHING_CHANGED)
    if args.json:
        told = [{"entry": a.index, "act": a.kind, "what": a.act, "lasting": a.lasting} for a in acts]
        print_json(
            {"run": case.run, "applied": args.apply, "acts": told, "undo": [a.index for a in back], "done": done}
        )
    return CLEAN


def _release(args: argparse.Namespace, store: Store) -> int:
    from trainwarden.respond.contain import release

    folder = store.run(args.run_name)
    sentence = release(folder)
    if args.json:
        print_json({"run": folder.id, "done": [sentence]})
    else:
        print(sentence)
    return CLEAN


# --------------------------------------------------------------------------- showing


def _show(console: Console, plan: ContainPlan) -> None:
    from rich.markup import escape
    from rich.table import Table

    rows: list[tuple[str, str, str]] = []
    if plan.job == "hold":
        rows.append(("hold", "the job", "its ranks are paused until they are let go on"))
    if plan.job == "stop":
        rows.append(("stop", "the job", "the command is ended in order"))
    if plan.freeze:
        rows.append(("freeze", f"run {plan.run}", "its checkpoints may not be promoted"))
        ties = dict.fromkeys(plan.by_bytes, "loaded bytes that this run saved, or comes from one that did")
        rows += [("freeze", f"run {run}", ties.get(run, "recovers it")) for run in plan.descendants]
    rows += [("quarantine", move.path, move.reason) for move in plan.quarantine]
    if plan.revoke:
        rows.append(("revoke", f"the key of {plan.revoke}", "for good: a revoked key cannot be taken back"))
    table = Table(title=f"run {plan.run}, which {'goes on' if plan.running else 'has ended'}", title_justify="left")
    for name in ("act", "what", "why"):
        table.add_column(name, overflow="fold")
    for act, what, why in rows[:_SHOWN]:
        table.add_row(act, escape(what), escape(why))
    if len(rows) > _SHOWN:
        table.add_row("…", f"and {len(rows) - _SHOWN} more (--json lists them)", "")
    console.print(table if rows else f"there is nothing to contain in run {plan.run}")


def _show_past(console: Console, run: str, acts: list[PastAct], back: list[PastAct]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from trainwarden.model import Quarantined

    table = Table(title="acts of containment, the last first", title_justify="left")
    for name in ("entry", "act", "what", "to take back"):
        table.add_column(name, overflow="fold")
    chosen = {a.index for a in back}
    for past in list(reversed(acts))[:_SHOWN]:
        what = past.act.path if isinstance(past.act, Quarantined) else past.act.subject or f"run {run}"
        told = past.lasting or ("yes" if past.index in chosen else "not now")
        table.add_row(str(past.index), past.kind, escape(what), escape(told))
    console.print(table if acts else "there is nothing to take back")
