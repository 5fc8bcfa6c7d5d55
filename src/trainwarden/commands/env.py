"""`trainwarden env diff [RUN|SEAL]`: what changed in an environment, against its seal or what the index shipped.

Contents of changed files may be hostile: they are shown with control characters made visible, and bounded.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, open_store, print_json
from trainwarden.commands.reading import add_key, public_key
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.model import FileChanged, SignedSeal
    from trainwarden.seal.baseline import Origin
    from trainwarden.seal.diff import FileDiff
    from trainwarden.store import Store

_EXIT = (
    "exit codes:\n"
    "  0  nothing differs, and everything that was asked for could be compared\n"
    "  1  something differs\n"
    "  2  nothing differs, but not every file could be compared with a baseline (never a pass)\n"
    "  3  the call or its input is wrong"
)
_SHOWN_FILES = 40
_NAMED = 40


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "env",
        "Show what changed in an environment, against its seal or against what the package index shipped.",
        run=run,
        usage="trainwarden env diff [RUN|SEAL] [options]",
        examples=(
            "trainwarden env diff last",
            "trainwarden env diff last --lock pylock.toml --wheels wheels/",
            "trainwarden env diff --python .venv/bin/python --lock requirements.txt --wheels wheels/",
        ),
        exit_codes=_EXIT,
    )
    parser.add_argument("action", choices=("diff",), metavar="diff", help="the one thing to do")
    parser.add_argument(
        "target", nargs="?", default="", metavar="RUN|SEAL", help='a run, or the file of a seal (default: "last")'
    )
    parser.add_argument("--lock", type=Path, metavar="FILE", help="pylock.toml, or requirements with --hash")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels that the lock names (pip download, pip cache)"
    )
    parser.add_argument("--python", default="", metavar="PATH", help="compare this Python's environment with the lock")
    parser.add_argument("--lines", type=int, default=60, metavar="N", help="lines of difference a file (default: 60)")
    add_key(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and show."""
    if args.wheels and not args.lock:
        raise UsageError("--wheels needs --lock", hint="only a lock says which wheels are the right ones")
    if args.lines < 0:
        raise UsageError(f"--lines is {args.lines}", hint="a number of lines, 0 for none")
    if args.python:
        return _of_python(args)
    store = open_store(args)
    seal = _seal(store, args)
    diffs = _diffs(store, seal, args)
    origins = _origins(args, store, seal) if args.lock else {}
    return _tell(args, seal.digest, diffs, origins)


def _of_python(args: argparse.Namespace) -> int:
    import os

    from trainwarden.seal.installed import baseline_of, look_at, of_interpreter
    from trainwarden.seal.interpreter import ask_interpreter

    if not args.lock or args.target:
        raise UsageError("--python takes --lock and no run", hint="a run has its own Python: leave --python out")
    interpreter = ask_interpreter(os.path.abspath(args.python), os.getcwd(), dict(os.environ))
    bar = _progress(args)
    env = look_at(*of_interpreter(interpreter), progress=bar)
    origins, _, _ = baseline_of(env, args.lock, args.wheels, bar)
    return _tell(args, "", [], origins)


def _seal(store: Store, args: argparse.Namespace) -> SignedSeal:
    """The seal that was named: a file, else a run's, with its signature checked."""
    from trainwarden.seal.seal import read_seal

    path = Path(args.target or "last")
    if not path.is_file():
        path = store.run(str(path)).seal_file
    return read_seal(path, public_key(args) or _first_signer(path))


def _first_signer(path: Path) -> str:
    """Without a key of one's own: whom the seal says that it is signed by. It then only fits itself."""
    from trainwarden.errors import SealBroken
    from trainwarden.model import UNREADABLE, SignedSeal
    from trainwarden.seal.seal import AGAIN

    try:
        seal = msgspec.json.decode(path.read_bytes(), type=SignedSeal)
    except (OSError, *UNREADABLE) as e:
        raise SealBroken(f"{path} is not a seal: {e}", hint=AGAIN) from e
    print("no key of yours was found: the seal is checked against the key that it names itself", file=sys.stderr)
    return seal.signatures[0].key if seal.signatures else ""


def _diffs(store: Store, seal: SignedSeal, args: argparse.Namespace) -> list[FileDiff]:
    from trainwarden.seal.check import check_seal
    from trainwarden.seal.diff import Differ, gone_by

    now = check_seal(store, seal, ("environment", "code"), progress=_progress(args))
    differ = Differ(store, seal.seal, args.lines)
    during = gone_by(now, _logged(store, args))
    return [differ.of(change) for change in now] + [differ.of(change, "during the run") for change in during]


def _logged(store: Store, args: argparse.Namespace) -> list[FileChanged]:
    """What the run's log says changed; nothing for a seal that was named by its file."""
    from trainwarden.casefile import read_entries
    from trainwarden.model import FileChanged

    if Path(args.target or "last").is_file():
        return []
    entries, _ = read_entries(store.run(args.target or "last"))
    return [e for e in entries if isinstance(e, FileChanged) and e.kind in ("environment", "code")]


def _origins(args: argparse.Namespace, store: Store, seal: SignedSeal) -> dict[str, Origin]:
    from trainwarden.seal.check import cache_of
    from trainwarden.seal.installed import baseline_of, look_at, of_seal

    bar = _progress(args)
    with cache_of(store) as cache:
        env = look_at(*of_seal(seal.seal), cache=cache, progress=bar)
    return baseline_of(env, args.lock, args.wheels, bar)[0]


# ------------------------------------------------------------------------- telling


def _tell(args: argparse.Namespace, seal: str, diffs: list[FileDiff], origins: Mapping[str, Origin]) -> int:
    from trainwarden.seal.baseline import AsShipped, Changed, NotShipped
    from trainwarden.seal.installed import not_checked

    wrong = {p: o for p, o in origins.items() if isinstance(o, Changed | NotShipped)}
    missing = not_checked(origins.values())
    if args.lock and not any(isinstance(o, AsShipped | Changed) for o in origins.values()):
        missing.setdefault("nothing that the lock names was found in this environment", len(origins))
    code = FINDING if diffs or wrong else UNDECIDED if missing else CLEAN
    if args.json:
        told = {p: o for p, o in sorted(origins.items()) if not isinstance(o, AsShipped)}
        counts = Counter(str(o.__struct_config__.tag) for o in origins.values())
        baseline = {"counts": counts, "not_checked": missing, "files": told} if args.lock else None
        print_json({"seal": seal, "changes": diffs, "baseline": baseline, "exit_code": code})
        return code
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not args.python:
        _print_diffs(console, diffs)
    if args.lock:
        _print_baseline(console, origins, wrong, missing)
    return code


def _print_diffs(console: Console, diffs: list[FileDiff]) -> None:
    if not diffs:
        _line(console, "environment and code are as sealed")
    for d in diffs[:_SHOWN_FILES]:
        when = "" if d.when == "now" else f", {d.when}; as sealed now"
        _line(console, f"{d.path}: {d.change}{when}", "bold")
        _line(console, f"  {d.kind} of {d.package}; source and bytecode: {d.bytecode}")
        _line(console, f"  {d.sealed[:12] or 'nothing'} → {d.found[:12] or 'nothing'}; {d.shown or 'nothing to show'}")
        for text in d.diff:
            style = "green" if text.startswith("+") else "red" if text.startswith("-") else "dim"
            _line(console, f"    {text}", style)
        if d.cut:
            _line(console, f"    … and {d.cut:,} lines more (--lines)", "dim")
    if len(diffs) > _SHOWN_FILES:
        _line(console, f"… and {len(diffs) - _SHOWN_FILES:,} files more (--json lists them)")


def _print_baseline(
    console: Console, origins: Mapping[str, Origin], wrong: Mapping[str, Origin], missing: Mapping[str, int]
) -> None:
    from trainwarden.seal.baseline import AsShipped, Changed, NotShipped

    same = sum(isinstance(o, AsShipped) for o in origins.values())
    _line(console, f"baseline: {same:,} of {len(origins):,} files are what the package index shipped", "bold")
    for path, origin in sorted(wrong.items())[:_NAMED]:
        match origin:
            case Changed():
                how = "is missing" if not origin.found else f"is not what its {origin.against} says"
                _line(console, f"  {path} ({origin.package}) {how}", "red")
            case NotShipped():
                _line(console, f"  {path}: {origin.reason}", "red")
            case _:
                pass
    if len(wrong) > _NAMED:
        _line(console, f"  … and {len(wrong) - _NAMED:,} more (--json lists them)")
    for reason, count in sorted(missing.items()):
        _line(console, f"  not checked: {count:,} files, {reason}", "yellow")


def _line(console: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    from trainwarden.report.words import clean

    console.print(Text(clean(text.expandtabs(4)), style))


def _progress(args: argparse.Namespace) -> Any:
    """What is being read, on a terminal's stderr."""
    if args.json or not sys.stderr.isatty():
        return None
    return lambda done, total, label: print(
        f"\r\x1b[K{label} {100 * done // max(total, 1)} %\r", end="", file=sys.stderr, flush=True
    )
