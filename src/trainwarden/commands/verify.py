"""`trainwarden verify RUN|DOSSIER`: check a run, or a dossier that somebody handed over, offline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
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
from trainwarden.commands.reading import add_run, check_key, public_key
from trainwarden.commands.witnesses import add_witnesses, read_policy
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.checks import Check, LogServer
    from trainwarden.dossier.nouns import Manifest


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "verify",
        "Check a run, or a dossier (a zip file or its folder), offline: signatures, logs, proofs, digests.",
        run=run,
        examples=(
            "trainwarden verify last",
            "trainwarden verify last --key HEX --deep",
            "trainwarden verify last --log-server --log-key HEX",
            "trainwarden verify last --witness NAME+ID+KEY --witness NAME+ID+KEY --cosignatures 1",
            "trainwarden verify dossier.zip --key HEX",
        ),
        exit_codes=(
            "exit codes:\n  0  every check passed\n  1  a check failed\n"
            "  2  none failed, but something could not be checked (never a pass)\n"
            "  3  the call or its input is wrong"
        ),
    )
    add_run(parser)
    parser.add_argument(
        "--log-server",
        nargs="?",
        const="",
        metavar="URL",
        help="ask the log server that the run was sent to, too (at URL instead of where the run says)",
    )
    parser.add_argument(
        "--log-key", metavar="HEX", default="", help="the log server's public key (default: the one this host names)"
    )
    parser.add_argument("--deep", action="store_true", help="hash every sealed file kept in the store, too")
    parser.add_argument(
        "--reproduce",
        action="store_true",
        help="of a dossier: replay its kit here, too; code of the job that it is about is run",
    )
    add_witnesses(parser)


def run(args: argparse.Namespace) -> int:
    """Verify the run or the dossier."""
    from trainwarden.checks import check_witnesses, verify_run

    if _is_dossier(args.run_name):
        return _verify_dossier(args)
    if args.reproduce:
        raise UsageError("--reproduce is of a dossier", hint=f"trainwarden audit {args.run_name} replays a run")
    policy = read_policy(args)
    store = open_store(args)
    folder = store.run(args.run_name)
    key = public_key(args)
    checks = verify_run(store, folder.id, key, args.deep, _progress(args), _log_server(args))
    witnesses = check_witnesses(store, folder.id, key, policy)
    code = _exit_code([*checks, witnesses] if policy else checks)  # a check that nobody asked for decides nothing
    checks.append(witnesses)
    if args.json:
        print_json({"run": folder.id, "checks": checks, "exit_code": code})
        return code
    from rich.console import Console

    from trainwarden.report.text import print_checks

    print_checks(Console(highlight=False), f"run {folder.id}", checks)
    return code


def _is_dossier(name: str) -> bool:
    """A path that is there is a dossier; runs are named by their ids."""
    return Path(name).is_file() or (Path(name) / "manifest.json").exists()


def _verify_dossier(args: argparse.Namespace) -> int:
    """Check a dossier; no key of this host is taken for its maker's."""
    from trainwarden.dossier.container import unpack
    from trainwarden.dossier.reading import read_file, read_folder
    from trainwarden.dossier.verifying import verify_files, verify_zip

    if args.log_server is not None or args.log_key or args.deep:
        raise UsageError(
            "--log-server, --log-key and --deep are of runs", hint="leave them out: a dossier is checked from its bytes"
        )
    key, policy = check_key(args.key) if args.key else "", read_policy(args)
    path = Path(args.run_name)
    if path.is_dir():
        files = read_folder(path)
        manifest, checks = verify_files(files, key, policy)
    else:
        data = read_file(path)
        manifest, checks = verify_zip(data, key, policy)
        files = unpack(data) if manifest is not None else {}
    if args.reproduce:
        checks += _reproduced(args, files, manifest, checks)
    code = _exit_code([c for c in checks if policy or c.name != "witnesses"])
    if args.json:
        print_json({"dossier": str(path), "checks": checks, "exit_code": code})
        return code
    from rich.console import Console

    from trainwarden.report.text import print_checks

    print_checks(Console(highlight=False), f"dossier {path}", checks)
    return code


def _reproduced(
    args: argparse.Namespace, files: Mapping[str, bytes], manifest: Manifest | None, checks: Sequence[Check]
) -> list[Check]:
    """Replay the kit of a dossier that holds."""
    from trainwarden.checks import Check, Failed, NotChecked
    from trainwarden.dossier.reproducing import reproduce

    if manifest is None or any(isinstance(c.result, Failed) for c in checks):
        return [Check("reproduction", NotChecked("the dossier does not hold, and nothing of it is run"))]
    with consoles(args)[1].status("unpacking the kit …") as status:
        return reproduce(files, manifest, status.update)


def _exit_code(checks: Sequence[Check]) -> int:
    from trainwarden.checks import Failed, NotChecked

    if any(isinstance(check.result, Failed) for check in checks):
        return FINDING
    return UNDECIDED if any(isinstance(check.result, NotChecked) for check in checks) else CLEAN


def _log_server(args: argparse.Namespace) -> LogServer | None:
    from trainwarden.checks import LogServer
    from trainwarden.log.client.link import check_url

    if args.log_server is None:
        if args.log_key:
            raise UsageError("--log-key goes with --log-server", hint="add --log-server, or leave --log-key out")
        return None
    if args.log_server:
        check_url(args.log_server)
    return LogServer(url=args.log_server, key=check_key(args.log_key) if args.log_key else "")


def _progress(args: argparse.Namespace) -> Any:
    """Name the check under way on a terminal's stderr, where it is wiped by the next."""
    if args.json or not sys.stderr.isatty():
        return None
    return lambda name: print(f"\r\x1b[Kchecking {name} …\r", end="", file=sys.stderr, flush=True)
