"""`trainwarden recover RUN [--apply]`: back to the last cleared checkpoint, in the sealed environment.

Without `--apply` the plan is shown and nothing is changed. With it, stdout belongs to the resumed command, as in
`trainwarden run`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json, watcher_of
from trainwarden.commands.run import add_show_findings
from trainwarden.errors import LogTampered

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.casefile import CaseFile
    from trainwarden.config import Config
    from trainwarden.model import SignedSeal
    from trainwarden.respond.plan import Plan
    from trainwarden.store import Store
    from trainwarden.supervise.responding import Response
    from trainwarden.supervise.supervisor import RunResult

_EXIT = (
    "exit codes:\n"
    "  without --apply: 0, the plan was shown and nothing was changed\n"
    "  with --apply: the resumed command's own exit code, as of `trainwarden run`\n"
    "  1  what is on disk cannot be made what was sealed (the command was not started)\n"
    "  2  no checkpoint is known to be safe\n"
    "  3  the call or its input is wrong"
)
_SHOWN = 20
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
    add_show_findings(parser)


def run(args: argparse.Namespace) -> int:
    """Show the plan, or carry it out and return the resumed command's exit code."""
    from rich.console import Console

    from trainwarden.casefile import Intact, load_case
    from trainwarden.commands.run import with_policy
    from trainwarden.config import load_config
    from trainwarden.respond.answer import response_to
    from trainwarden.respond.plan import make_plan

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    store = open_store(args)
    try:
        case = load_case(store, args.run_name, look_at_files=False)
        if not isinstance(case.state, Intact) or case.seal is None:
            reason = getattr(case.state, "reason", "its seal cannot be read")
            raise LogTampered(
                f"the log of run {case.run} does not verify: {reason}",
                hint=f"trainwarden verify {case.run}; nothing is concluded from a log that was altered",
            )
        config = load_config(args.config, Path(case.seal.seal.cwd))
        config = with_policy(_as_sealed(config, case.seal), args.on_environment_change)
        response = response_to(config)
        with console.status("comparing the disk with the seal"):
            plan = make_plan(store, case, config.replay.resume, from_start=args.from_start)
        if not args.apply:
            return _show(args, console, plan)
        return _apply(args, console, store, case, config, plan, response)
    finally:
        store.close()


def _as_sealed(config: Config, seal: SignedSeal) -> Config:
    """Record as the recovered run was recorded."""
    policy = seal.seal.comparison
    record = {"activations_every": policy.activations_every, "reduction": policy.reduction}
    return msgspec.structs.replace(config, record=msgspec.structs.replace(config.record, **record))


def _show(args: argparse.Namespace, console: Console, plan: Plan) -> int:
    if args.json:
        print_json({"run": plan.run, "applied": False, "plan": plan})
    else:
        _table(console, plan)
        console.print(_NOTHING_CHANGED)
    return CLEAN


def _apply(
    args: argparse.Namespace,
    console: Console,
    store: Store,
    case: CaseFile,
    config: Config,
    plan: Plan,
    response: Response,
) -> int:
    from trainwarden.commands.run import progress_bar, say, shell_code, shows_details, summary, tell, told_findings
    from trainwarden.isolation import job_environ
    from trainwarden.keys import SigningKey
    from trainwarden.respond.alerts.secrets import without_secrets
    from trainwarden.respond.recover import apply_plan, loaded_its_checkpoint, resume

    folder, seal, key = store.run(case.run), case.seal, SigningKey.load()
    if seal is None:
        raise LogTampered(f"run {case.run} has no readable seal", hint=f"trainwarden verify {case.run}")
    details = shows_details(config, args.show_findings)
    say(console, _headline(plan), "bold")
    apply_plan(store, folder, seal, plan, key, lambda sentence: say(console, sentence))
    os.chdir(plan.cwd)
    with progress_bar(console) as bar:
        result = resume(
            store,
            folder,
            seal,
            plan,
            config,
            key,
            env=without_secrets(job_environ(), config),
            on_event=lambda event: tell(console, bar, event, details),
            progress=bar,
            watcher=watcher_of(config),
            response=response,
        )
    summary(console, result)
    began = loaded_its_checkpoint(store, plan, result.run_id)
    if not began:
        say(console, f"the script did not load {plan.checkpoint}: it began anew ({_RESUME_HINT})", "yellow")
    if args.json:
        print_json(_as_json(plan, result, began, told_findings(result, details)))
    return shell_code(result.exit_code)


_RESUME_HINT = 'say how it resumes: [replay] resume = "--resume {checkpoint}" in trainwarden.toml'


def _as_json(plan: Plan, result: RunResult, began: bool, findings: list[object]) -> dict[str, object]:
    return {
        "run": plan.run,
        "applied": True,
        "plan": plan,
        "new_run": result.run_id,
        "loaded_checkpoint": began,
        "exit_code": result.exit_code,
        "records": result.records,
        "findings": findings,
        "log_whole": result.log_whole,
    }


# --------------------------------------------------------------------------- showing


def _headline(plan: Plan) -> str:
    if not plan.checkpoint:
        return f"run {plan.run} starts again from the beginning"
    return f"run {plan.run} goes back to step {plan.from_step} ({plan.checkpoint})"


def _table(console: Console, plan: Plan) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(_headline(plan)), title_justify="left", show_lines=False)
    for name in ("act", "file", "why"):
        table.add_column(name, overflow="fold")
    rows = [("quarantine", m.path, m.reason) for m in plan.quarantine]
    rows += [("restore", r.path, f"{r.kind} file, from the store") for r in plan.restore]
    for act, path, why in rows[:_SHOWN]:
        table.add_row(act, escape(path), escape(why))
    if len(rows) > _SHOWN:
        table.add_row("…", f"and {len(rows) - _SHOWN} more (--json lists them)", "")
    for path in plan.missing:
        table.add_row("[bold red]cannot restore[/]", escape(path), "no copy was kept in the store")
    table.add_row("run", escape(" ".join(plan.argv)), escape(f"in {plan.cwd}; {plan.why}"))
    console.print(table)
