"""`trainwarden doctor -- CMD…`: does this job replay bit for bit here, and if not, which setting is missing?

The command's first steps are run and recorded for real, as a run that stays in the store; what CMD writes in them, it
writes where it always does. Then they are replayed in clean processes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import (
    CLEAN,
    FINDING,
    UNDECIDED,
    Subparsers,
    add_verb,
    consoles,
    open_store,
    print_json,
)
from trainwarden.errors import CannotDecide, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.audit.doctor import Diagnosis, Try
    from trainwarden.audit.limits import Looked
    from trainwarden.audit.recorded import Recorded
    from trainwarden.keys import SigningKey
    from trainwarden.seal.room import Room
    from trainwarden.store import Store

_EXIT = (
    "exit codes:\n"
    "  0  it replays bit for bit from the start, and from the middle in at least one way\n"
    "  1  it differs\n"
    "  2  it could not be tried\n"
    "  3  the call or its input is wrong"
)
_STYLE = {"bitwise": "green", "differs": "bold red", "not possible": "yellow"}
_FEWEST = 4


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "doctor",
        "Does this job replay bit for bit here, and if not, which setting is missing? Runs its first steps.",
        run=run,
        usage="trainwarden doctor [options] -- CMD …",
        examples=("trainwarden doctor -- torchrun --nproc-per-node 2 train.py --out /tmp/try",),
        exit_codes=_EXIT,
    )
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="steps to try (default: 6)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …", help="the launch command")


def run(args: argparse.Namespace) -> int:
    """Record the first steps, replay them in every way, and say what was found."""
    from rich.console import Console

    from trainwarden.audit.doctor import examine
    from trainwarden.commands.run import command_words
    from trainwarden.keys import SigningKey

    argv = command_words(args.command)
    if args.steps < _FEWEST:
        raise UsageError(f"--steps {args.steps} is too few", hint=f"at least {_FEWEST}: some before and some after")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    store = open_store(args, create=True)
    try:
        code, run_id = record_first_steps(store, console, argv, args.steps, SigningKey.load_or_create())
        with console.status("preparing the clean room") as status:
            recorded, room = _opened(store, run_id, code)
            status.update("replaying the first steps")
            found = examine(recorded, room, lambda tried: _say_try(console, tried))
    finally:
        store.close()
    if args.json:
        print_json({"run": run_id, "exit_code": code, "diagnosis": found})
    else:
        _show(consoles(args)[0], run_id, found)
    return UNDECIDED if found.replays is None else CLEAN if found.replays else FINDING


def record_first_steps(store: Store, console: Console, argv: list[str], steps: int, key: SigningKey) -> tuple[int, str]:
    """Run the command guarded until every rank has done `steps` steps; its exit code and the run's id."""
    import msgspec

    from trainwarden.audit.trying import STEPS_ENV, TRIER
    from trainwarden.commands.run import Terminal, progress_bar
    from trainwarden.config import AuditConfig, LogConfig, load_config
    from trainwarden.record.bootstrap import RECORDER_ENV
    from trainwarden.seal.command import parse_command
    from trainwarden.supervise.supervisor import supervise

    cwd = Path.cwd()
    config = load_config(None, cwd)
    config = msgspec.structs.replace(
        config,
        record=msgspec.structs.replace(config.record, snapshot_every=2, snapshot_share=0.0, activations_every=2),
        audit=AuditConfig(budget="0"),
        log=LogConfig(),  # a trial is nobody's record
    )
    env = {**os.environ, RECORDER_ENV: TRIER, STEPS_ENV: str(steps)}
    with progress_bar(console) as bar:
        result = supervise(
            parse_command(argv, str(cwd), env),
            store,
            config,
            key,
            on_event=Terminal(console, bar).tell,
            progress=bar,
        )
    return result.exit_code, result.run_id


def _opened(store: Store, run_id: str, code: int) -> tuple[Recorded, Room]:
    from trainwarden.audit.recorded import Recorded
    from trainwarden.casefile import Intact, load_case
    from trainwarden.model import StepRecord
    from trainwarden.seal.room import build_room

    case = load_case(store, run_id)
    if not any(isinstance(e, StepRecord) for e in case.entries):
        told = f"the command ended with code {code} and" if code else "the command ended and"
        raise CannotDecide(
            f"{told} no optimizer step was seen, so there is nothing to replay (run {run_id})",
            hint="it must call the step() of a torch optimizer, and hand PYTHONPATH and TRAINWARDEN_* to its workers",
        )
    if case.seal is None or not isinstance(case.state, Intact):
        raise CannotDecide(f"run {run_id} cannot be read back", hint=f"trainwarden verify {run_id}")
    return Recorded(store, store.run(run_id), case.seal, case.entries), build_room(store, case.seal)


# --------------------------------------------------------------------------- showing


def _say_try(console: Console, tried: Try) -> None:
    from rich.markup import escape

    from trainwarden.audit.starts import WAYS

    style = _STYLE[tried.outcome]
    console.print(f"[{style}]{tried.outcome:<12}[/]  {escape(WAYS[tried.way].words)}{escape(_where(tried))}")


def _where(tried: Try) -> str:
    if tried.at is not None:
        at = tried.at
        more = f" (and {len(at.tensors) - 1} more)" if len(at.tensors) > 1 else ""
        return f": first at step {at.step}, rank {at.rank}, {at.subject}, {at.tensor or 'no tensor'}{more}"
    if tried.reason:
        return f": {tried.reason}"
    return f": steps {tried.first}–{tried.last}"


def _show(console: Console, run_id: str, found: Diagnosis) -> None:
    from rich.markup import escape

    style = "yellow" if found.replays is None else "bold green" if found.replays else "bold red"
    console.print(f"[{style}]{escape(found.sentence)}[/]")
    for missing in found.missing:
        console.print(f"  missing: [bold]{escape(missing.setting)}[/]: {escape(missing.remedy)}")
    for gap in found.gaps:
        console.print(f"  not recorded: {escape(gap)}", style="yellow")
    _show_known(console, found.known)
    console.print(f"tried on the first {found.steps} steps, kept as run {run_id}", style="dim")


def _show_known(console: Console, known: Looked) -> None:
    from rich.markup import escape

    for met in known.met:
        told = f"{met.limit.feature} ({met.place}): {met.limit.holds}: {met.limit.why}"
        console.print(f"  known limit: {escape(told)}", style="yellow")
    for path in known.unread:
        console.print(f"  not looked at: {escape(path)}: no Python source that can be read", style="yellow")
    console.print(f"known limits were looked for in {known.files} files of sealed code, not in libraries", style="dim")
