"""`trainwarden redteam list|show|run`: sabotage on purpose, in a copy, and what TrainWarden says of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, consoles, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.redteam.interface import Technique, Variant
    from trainwarden.redteam.outcome import Outcome
    from trainwarden.redteam.place import Range
    from trainwarden.redteam.workloads import Workload

_EXIT = (
    "exit codes:\n"
    "  0  every expected piece of evidence was found, and no twin was accused\n"
    "  1  something expected was missed, or a benign twin was accused\n"
    "  2  could not decide: not carried out here, or evidence that was not looked for (--audit)\n"
    "  3  the call or its input is wrong, or an attack would have left its copy"
)
NEEDS = {
    "E": "the shared environment",
    "U": "the user's environment or launcher",
    "R": "the repository",
    "D": "data",
    "K": "checkpoints",
    "N": "nodes",
    "L": "logs or tracker",
    "S": "serving",
}
_STYLE = {"found": "green", "silent": "green", "missed": "bold red", "accused": "bold red"}


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "redteam",
        "Carry out sabotage from the catalogue against a copy of a job, and say what was found of it.",
        run=run,
        usage="trainwarden redteam list|show|run [ID[/VARIANT]] [options] [-- CMD …]",
        examples=(
            "trainwarden redteam list",
            "trainwarden redteam show 22",
            "trainwarden redteam run 22/one-tensor --audit --twin",
            "trainwarden redteam run 30 --job myjob --steps 200 --strike-at 100 -- torchrun --nproc-per-node 2 t.py",
        ),
        exit_codes=_EXIT,
    )
    parser.add_argument("action", choices=("list", "show", "run"), metavar="ACTION", help="list, show or run")
    parser.add_argument(
        "technique", nargs="?", default="", metavar="ID", help="22, rank-sign-flip, or 22/VARIANT; run: all"
    )
    parser.add_argument("--catalogue", type=Path, metavar="DIR", help="the attacks (default: attacks/ of the checkout)")
    parser.add_argument("--workload", metavar="NAME", default="chat", help="a job of the repository (default: chat)")
    parser.add_argument(
        "--job", type=Path, metavar="FOLDER", help="the folder of your own job, which is copied (default: .)"
    )
    parser.add_argument("--steps", type=int, default=120, metavar="N", help="of your own job: its steps (default: 120)")
    parser.add_argument(
        "--strike-at", type=int, default=60, metavar="N", help="of your own job: the first step to strike"
    )
    parser.add_argument(
        "--out", default="out", metavar="FOLDER", help="of your own job: its checkpoints (default: out)"
    )
    parser.add_argument(
        "--checkpoints", default="*", metavar="GLOB", help="of your own job: checkpoints in that folder (default: *)"
    )
    parser.add_argument(
        "--reads", type=Path, action="append", default=[], metavar="PATH",
        help="of your own job: a place outside of its folder that it only reads; may be given again",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="fills {seed} in the command (default: 0)")
    parser.add_argument("--audit", action="store_true", help="replay the attacked run, and explain what differs")
    parser.add_argument("--twin", action="store_true", help="run the benign twin too: nothing grave may be raised")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="the copy's folder (default: in ~/.cache)")
    parser.add_argument("--keep", action="store_true", help="leave the attacked job's folder for a look")
    parser.add_argument("command", nargs="*", metavar="-- CMD …", help="of your own job: its launch command")
    _split_off_command(parser)


def _split_off_command(parser: argparse.ArgumentParser) -> None:
    """Give everything after `--` to `command`: argparse would let it swallow the options that follow ID."""
    known = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        words = list(args or ())
        cut = words.index("--") if "--" in words else len(words)
        parsed, rest = known(words[:cut], namespace)
        parsed.command = words[cut + 1 :]
        return parsed, rest

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def run(args: argparse.Namespace) -> int:
    """List, show or carry out."""
    from trainwarden.redteam.catalogue import find, load

    techniques = load(args.catalogue)
    if args.action == "list":
        return _list(args, techniques)
    if args.action == "show":
        if not args.technique:
            raise UsageError("which technique?", hint="trainwarden redteam list")
        return _show(args, find(techniques, args.technique)[0])
    wanted = [(t, v) for t in techniques for v in t.variants]
    if args.technique:
        technique, variant = find(techniques, args.technique)
        wanted = [(technique, v) for v in ((variant,) if variant else technique.variants)]
    return _run(args, wanted, _workload(args, args.command))


# ------------------------------------------------------------------------- list, show


def _list(args: argparse.Namespace, techniques: Sequence[Technique]) -> int:
    if args.json:
        print_json({"techniques": [described(t) for t in techniques]})
        return CLEAN
    from rich.table import Table

    table = Table(title=f"{len(techniques)} techniques, ★ alleged in the incident", title_justify="left")
    for name in ("id", "technique", "★", "needs", "variants", "MITRE"):
        table.add_column(name)
    for t in techniques:
        table.add_row(t.id, t.title, "★" if t.alleged else "", t.needs, ", ".join(v.name for v in t.variants), t.atlas)
    results = consoles(args)[0]
    results.print(table)
    results.print("needs: " + ", ".join(f"{letter} {what}" for letter, what in NEEDS.items()))
    results.print("more of one: trainwarden redteam show ID; carry it out in a copy: trainwarden redteam run ID")
    return CLEAN


def described(technique: Technique) -> dict[str, Any]:
    """A technique as plain data, for `--json` and for the docs."""
    return {
        "id": technique.id,
        "slug": technique.slug,
        "title": technique.title,
        "alleged": technique.alleged,
        "needs": technique.needs,
        "atlas": technique.atlas,
        "level": technique.level,
        "variants": [
            {
                "name": v.name,
                "does": v.does,
                "evidence": [e.words for e in v.expects],
                "effect": v.effect.value,
                "needs": list(v.needs),
                "level": v.level or technique.level,
            }
            for v in technique.variants
        ],
        "twin": {"name": technique.twin.name, "does": technique.twin.does},
    }


def _show(args: argparse.Namespace, technique: Technique) -> int:
    from trainwarden.redteam.catalogue import document

    told = document(technique)
    if args.json:
        print_json({"technique": described(technique) | {"document": told}})
        return CLEAN
    from rich.markup import escape
    from rich.table import Table

    results = consoles(args)[0]
    results.print(escape(told))
    table = Table(title="variants", title_justify="left", show_lines=True)
    for name in ("variant", "what it does", "expected evidence", "effect", "the job must have"):
        table.add_column(name)
    for v in technique.variants:
        evidence = "\n".join(e.words for e in v.expects)
        table.add_row(v.name, v.does, evidence, v.effect.value, ", ".join(v.needs) or "nothing special")
    results.print(table)
    results.print(f"benign twin: {escape(technique.twin.name)}: {escape(technique.twin.does)}")
    return CLEAN


# ------------------------------------------------------------------------- run


def _workload(args: argparse.Namespace, words: list[str]) -> Workload:
    from trainwarden.redteam.workloads import own_job, workload

    if not words:
        if args.job is not None:
            raise UsageError(
                "--job needs the job's launch command", hint="trainwarden redteam run ID --job FOLDER -- CMD"
            )
        return workload(args.workload)
    return own_job(
        args.job or Path.cwd(), words, steps=args.steps, first=args.strike_at, out=args.out,
        checkpoints=args.checkpoints, reads=tuple(args.reads),
    )  # fmt: skip


def _run(args: argparse.Namespace, wanted: Sequence[tuple[Technique, Variant]], job: Workload) -> int:
    from trainwarden.redteam.place import Range
    from trainwarden.redteam.trial import attack, twin
    from trainwarden.respond.chain import interruptible

    results, shown = consoles(args)
    rows: list[Outcome] = []
    folder = args.folder or default_folder() / job.name
    with interruptible(), Range(folder, job, seed=args.seed) as place, shown.status("") as status:

        def say(what: str, step: int) -> None:
            status.update(f"{what}, step {step} of {job.steps}" if step else what)

        place.open(lambda text: say(text, 0))
        done: set[str] = set()
        for technique, variant in wanted:
            rows.append(attack(place, technique, variant, audit=args.audit, say=say))
            if args.twin and technique.id not in done:
                done.add(technique.id)
                rows.append(twin(place, technique, say))
            place.clean_up()
        kept = _kept(place) if args.keep else ""
    if args.json:
        print_json({"rows": rows})
    else:
        _tell(results, rows)
        if kept:
            results.print(f"the last attacked job is in {kept}")
    return code(rows)


def _kept(place: Range) -> Path:
    """A copy of the last attacked job, beside the range's own, which the next attack makes anew."""
    import shutil

    kept = place.folder / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(place.here, kept, symlinks=True)
    return kept


def default_folder() -> Path:
    """Where ranges are kept between calls."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "trainwarden-redteam"


def code(rows: Sequence[Outcome]) -> int:
    """The exit code that rows mean."""
    verdicts = {r.verdict for r in rows}
    if verdicts & {"missed", "accused"}:
        return FINDING
    return UNDECIDED if verdicts & {"undecided", "not carried out"} else CLEAN


def _tell(console: Console, rows: Sequence[Outcome]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="what was found", title_justify="left", show_lines=True)
    for name in ("attack", "verdict", "by", "place", "cause", "effect", "not found"):
        table.add_column(name)
    for r in rows:
        name = f"{r.technique}/{r.variant}" if r.kind == "attack" else f"twin of {r.technique}: {r.variant}"
        missing = [f"{e.when} {e.by} {e.stage}".strip() + f" ({e.state})" for e in r.expected if e.state != "found"]
        cause = "not explained" if r.cause_proved is None else r.cause or "not established"
        attacked = r.kind == "attack" and r.verdict != "not carried out"
        table.add_row(
            escape(name),
            f"[{_STYLE.get(r.verdict, 'yellow')}]{r.verdict}[/]",
            escape("\n".join(_by(f) for f in r.found)),
            r.located if attacked else "",
            escape(cause) if attacked else "",
            escape(_effect(r)) if attacked else "",
            escape("\n".join([*missing, *([r.note] if r.note else [])])),
        )
    console.print(table)


def _by(found: Any) -> str:
    late = f", {found.steps} steps, {found.seconds:.2f} s" if found.steps is not None else ""
    place = f" at step {found.step}" if found.step >= 0 else ""
    return f"{found.when} {found.by} ({found.severity}){place}{late}"


def _effect(row: Outcome) -> str:
    e = row.effect
    parts = [
        "" if e.weights_differ is None else "other weights" if e.weights_differ else "same weights",
        "" if e.loss_shift is None else f"loss {e.loss_shift:+.3f}",
        "" if e.seconds_lost is None else f"{e.seconds_lost:+.1f} s",
        f"{e.steps_twice} steps twice" if e.steps_twice else "",
        f"exit {e.exit_code}" if e.exit_code else "",
        {True: "", False: "NO EFFECT", None: "effect not measured"}[row.worked],
    ]
    return "\n".join(filter(None, parts))
