"""`trainwarden audit RUN`: replay what was recorded from sealed inputs and say where it differs."""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from typing import Any, assert_never

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, consoles, print_json
from trainwarden.errors import CannotDecide
from trainwarden.model import Diverged, Inconclusive, Matched, Segment, Verdict


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "audit",
        "Replay a run's segments from sealed inputs in clean processes and compare every stage of every step.",
        run=run,
        examples=(
            "trainwarden audit last",
            "trainwarden audit 20261123-125301-k3f9 --sample 0.1",
            "trainwarden audit last --first",
            "trainwarden audit last --units --audit-budget 5%",
        ),
    )
    parser.add_argument("run_name", metavar="RUN", help='a run id, its beginning or end, or "last"')
    parser.add_argument("--sample", type=float, metavar="P", help="audit each segment with probability P")
    parser.add_argument("--first", action="store_true", help="stop at the first difference")
    parser.add_argument("--units", action="store_true", help="audit single (step, rank) units that are drawn by lot")
    parser.add_argument(
        "--audit-budget", metavar="SHARE", default="1%", help="with --units: of the ranks' CPU time (default: 1%%)"
    )
    parser.add_argument(
        "--beacon", metavar="PLACE", default="", help="with --units: a file or an address to draw from, e.g. https://…"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="with --units: audit a run that goes on, until stdin ends; tells entries as lines of JSON",
    )
    parser.add_argument("--finish", action="store_true", help="with --follow: run what was drawn after the end too")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="replays at once (default: CPUs / ranks)")


def run(args: argparse.Namespace) -> int:
    """Audit the run; 0 all matched, 1 a difference, 2 undecided."""
    if args.units or args.follow:
        from trainwarden.commands.audit_units import run_units

        return run_units(args)

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from trainwarden.audit.engine import Audit, choose
    from trainwarden.commands.opening import opened

    begin = time.monotonic()
    results, shown = consoles(args)
    with opened(args) as run:
        segments = choose(run.recorded.history.segments, args.sample, random.SystemRandom())
        if not segments:
            raise CannotDecide(
                f"run {run.case.run} has no recorded step to replay",
                hint="only torch optimizers in processes below the command are seen",
            )
        lock = threading.Lock()

        def told(verdict: Verdict) -> None:
            with lock:
                run.append(verdict)
                if not args.json:
                    results.print(sentence(verdict))

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=shown, transient=True) as progress:
            task = progress.add_task("preparing the clean room", total=None)
            audit = Audit(run.recorded, run.room(), lambda *_: progress.advance(task), told)
            total = sum(s.last - s.first + 1 for s in segments)
            progress.update(task, description="replaying steps", total=total)
            jobs = args.jobs or _jobs(run.recorded.history.attempts[0].world)
            found = audit.run(segments, jobs=jobs, first_only=args.first)
        skipped = len(run.recorded.history.segments) - len(found)
    seconds = time.monotonic() - begin
    if args.json:
        print_json({"run": run.case.run, "verdicts": found, "not_audited": skipped, "seconds": seconds})
    else:
        results.print(_summary(found, skipped, seconds))
    return code(found)


def code(verdicts: list[Verdict]) -> int:
    """The exit code that a list of verdicts means."""
    if any(isinstance(v, Diverged) for v in verdicts):
        return FINDING
    return UNDECIDED if any(isinstance(v, Inconclusive) for v in verdicts) else CLEAN


def sentence(verdict: Verdict) -> str:
    """A verdict in one line, as rich's markup."""
    from rich.markup import escape

    match verdict:
        case Matched():
            return (
                f"[green]matched[/]       {where(verdict.segment)}: {verdict.coverage.digests:,} digests, bit for bit"
            )
        case Diverged():
            at = verdict.at
            more = f" (and {len(at.tensors) - 1} more)" if len(at.tensors) > 1 else ""
            return (
                f"[bold red]diverged[/]      {where(verdict.segment)}: at step {at.step}, rank {at.rank}, "
                f"stage {at.subject}, {escape(at.tensor or 'no tensor')}{more}"
            )
        case Inconclusive():
            return f"[yellow]inconclusive[/]  {where(verdict.segment)}: {escape('; '.join(verdict.reasons))}"
        case _:
            assert_never(verdict)


def where(segment: Segment) -> str:
    """A segment in words."""
    return f"attempt {segment.attempt}, steps {segment.first}–{segment.last}"


def _summary(found: list[Verdict], skipped: int, seconds: float) -> str:
    matched = sum(isinstance(v, Matched) for v in found)
    diverged = sum(isinstance(v, Diverged) for v in found)
    parts = [f"{matched} matched", f"{diverged} diverged", f"{len(found) - matched - diverged} inconclusive"]
    rest = f", {skipped} not audited" if skipped else ""
    return f"{', '.join(parts)} of {len(found) + skipped} segments{rest} in {seconds:.1f} s"


def _jobs(world: int) -> int:
    return max(1, (os.cpu_count() or 1) // max(1, world))
