"""`trainwarden recover RUN [--apply]`: back to the last cleared checkpoint, in the sealed environment.

Without `--apply` the plan is shown, with what would be replayed first, and nothing is changed. With it, stdout belongs
to the resumed command, as in `trainwarden run`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json, watcher_of
from trainwarden.commands.run import add_show_findings
from trainwarden.config import FILE_NAME
from trainwarden.errors import LogTampered

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.casefile import CaseFile
    from trainwarden.config import Config
    from trainwarden.model import SignedSeal
    from trainwarden.respond.plan import Plan
    from trainwarden.respond.survivors import Survivor
    from trainwarden.store import Store

_EXIT = (
    "exit codes:\n"
    "  without --apply: 0, the plan was shown and nothing was changed\n"
    "  with --apply: the resumed command's own exit code, as of `trainwarden run`\n"
    "  1  what is on disk cannot be made what was sealed (the command was not started)\n"
    "  2  no checkpoint is known to be safe\n"
    "  3  the call or its input is wrong"
)
_SHOWN = 20
_FIRST = "first, each; where one does not match, an older checkpoint takes this one's place"
_NOTHING_CHANGED = "nothing was changed; `--apply` does it"


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "recover",
        "Go back to the last cleared checkpoint and resume in the sealed environment; shows its plan first.",
        run=run,
        examples=("trainwarden recover last", "trainwarden recover last --apply"),
        exit_codes=_EXIT,
    )
    parser.add_argument("run_name", metavar="RUN", help='a run id, its beginning or end, or "last"')
    parser.add_argument("--apply", action="store_true", help="do it: quarantine, restore, resume as a new run")
    parser.add_argument("--from-start", action="store_true", help="resume from no checkpoint: train again from step 0")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: trainwarden.toml in the run's folder, if there is one"
    )
    parser.add_argument(
        "--on-environment-change",
        choices=("refuse", "alert"),
        help="policy of the resumed run, as of `trainwarden run` (default: refuse)",
    )
    parser.add_argument("--clean-room", action="store_true", help="resume in a clean room, as of `trainwarden run`")
    add_show_findings(parser)


def run(args: argparse.Namespace) -> int:
    """Show the plan, or carry it out and return the exit code of the command that went on last."""
    from rich.console import Console

    from trainwarden.commands.run import with_policy
    from trainwarden.config import load_config
    from trainwarden.respond.answer import response_to
    from trainwarden.respond.clear import open_case

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    store = open_store(args)
    try:
        case = open_case(store, args.run_name)
        if case.seal is None:
            raise LogTampered(f"run {case.run} has no readable seal", hint=f"trainwarden verify {case.run}")
        config = load_config(args.config, Path(case.seal.seal.cwd))
        config = with_policy(_as_sealed(config, case.seal), args.on_environment_change)
        response_to(config)  # a slip of the pen in the policy is told before anything is done
        return (
            _apply(args, console, store, case.run, config) if args.apply else _show(args, console, store, case, config)
        )
    finally:
        store.close()


def _as_sealed(config: Config, seal: SignedSeal) -> Config:
    """Record as the recovered run was recorded."""
    policy = seal.seal.comparison
    record = {"activations_every": policy.activations_every, "reduction": policy.reduction}
    return msgspec.structs.replace(config, record=msgspec.structs.replace(config.record, **record))


def _show(args: argparse.Namespace, console: Console, store: Store, case: CaseFile, config: Config) -> int:
    from trainwarden.respond.clear import side_by_side
    from trainwarden.respond.plan import make_plan
    from trainwarden.respond.point import Point, find_point
    from trainwarden.respond.survivors import survivors

    with console.status("comparing the disk with the seal"):
        point = Point(checkpoint=None, why="asked for")
        if not args.from_start:
            point = find_point(store, case, jobs=side_by_side(case))
        plan = make_plan(store, case, config.replay.resume, point)
        alive = survivors(store.run(case.run))
    if args.json:
        print_json({"run": plan.run, "applied": False, "plan": plan, "survivors": alive})
    else:
        _table(console, plan, alive)
        console.print(_NOTHING_CHANGED)
    return CLEAN


def _apply(args: argparse.Namespace, console: Console, store: Store, run: str, config: Config) -> int:
    from trainwarden.commands.recovering import Shown, finish
    from trainwarden.commands.run import shows_details, told_findings
    from trainwarden.isolation import job_environ
    from trainwarden.keys import SigningKey
    from trainwarden.respond.alerts.secrets import without_secrets
    from trainwarden.respond.chain import Means, keep_going, recover

    details = shows_details(config, args.show_findings)
    shown = Shown(console, details)
    config_file = str((args.config or Path.cwd() / FILE_NAME).absolute())
    env = without_secrets(job_environ(), config)
    config_file = config_file if config.log.server else ""
    means = Means(store, config, SigningKey.load(), env, shown, config_file, watcher_of(config))
    try:
        done = recover(means, run, from_start=args.from_start, clean_room=args.clean_room)
        chain = keep_going(means, done.result, (done.link,), clean_room=args.clean_room)
    finally:
        shown.close()
    more = {
        "run": done.plan.run,
        "applied": True,
        "plan": done.plan,
        "new_run": chain.result.run_id,
        "loaded_checkpoint": done.link.loaded,
        "records": chain.result.records,
        "findings": told_findings(chain.result, details),
        "log_whole": chain.result.log_whole,
    }
    return finish(args, console, chain, more, details)


# --------------------------------------------------------------------------- showing


def _table(console: Console, plan: Plan, alive: Sequence[Survivor]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from trainwarden.respond.chain import headline

    table = Table(title=escape(headline(plan)), title_justify="left", show_lines=False)
    for name in ("act", "what", "why"):
        table.add_column(name, overflow="fold")
    rows = [("end", f"process {p.pid}", f"outlived the run: {p.words}") for p in alive]
    replays = [f"attempt {s.attempt}, steps {s.first}–{s.last}" for s in plan.audit]
    rows += [("replay", steps, "" if at else _FIRST) for at, steps in enumerate(replays)]
    rows += [("quarantine", m.path, m.reason) for m in plan.quarantine]
    rows += [("restore", r.path, f"{r.kind} file, from the store") for r in plan.restore]
    for act, path, why in rows[:_SHOWN]:
        table.add_row(act, escape(path), escape(why))
    if len(rows) > _SHOWN:
        table.add_row("…", f"and {len(rows) - _SHOWN} more (--json lists them)", "")
    for path in plan.missing:
        table.add_row("[bold red]cannot restore[/]", escape(path), "no copy was kept in the store")
    table.add_row("run", escape(" ".join(plan.argv)), escape(f"in {plan.cwd}; {plan.why}"))
    console.print(table)
