"""`trainwarden log ship RUN`: send what a log server does not have yet of a run's log.

With `--follow` it is the process that `trainwarden run` keeps beside a run: it writes what happens as lines of JSON,
reads nothing, and finishes when its stdin ends, which it also does when the supervisor dies.
"""

from __future__ import annotations

import argparse
import os
import platform
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainwarden.commands.common import CLEAN, FINDING, UNDECIDED, Subparsers, add_verb, open_store, print_json
from trainwarden.commands.reading import add_run, public_key
from trainwarden.errors import LogTampered, TrainWardenError, UsageError
from trainwarden.model import Finding, Gap
from trainwarden.priority import give_way

if TYPE_CHECKING:
    from trainwarden.log.client.session import Shipping
    from trainwarden.log.client.shipper import Event, Limits
    from trainwarden.log.client.state import Target
    from trainwarden.store import RunDir

_NICE = 10  # training comes first


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the command."""
    parser = add_verb(
        subparsers,
        "ship",
        "Send what a log server does not have yet of a run's log, and check what it says it keeps.",
        run=run,
        examples=("trainwarden log ship last", "trainwarden log ship last --config trainwarden.toml --seconds 600"),
        exit_codes=(
            "exit codes:\n  0  the server's log has every entry\n"
            "  1  a finding: the server, or this run's own log, contradicts itself\n"
            "  2  some entries are not sent yet: the server was away or refused them\n"
            "  3  the call or its input is wrong"
        ),
    )
    add_run(parser)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="whose [log] names the server (default: where the run was sent)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=60.0, metavar="N", help="give up after so long (default: %(default)s)"
    )
    parser.add_argument("--follow", action="store_true", help="go on until stdin ends, then for --seconds more")


def run(args: argparse.Namespace) -> int:
    """Ship the run."""
    from trainwarden.log.client.session import Shipping

    folder = open_store(args).run(args.run_name)
    target, limits = _target(args, folder)
    key = public_key(args)
    if args.follow:
        return _follow(args, folder, target, limits, key)
    told: list[Event] = []
    shipping = Shipping.open(
        folder, target, told.append, public_key=key, limits=limits, progress=_progress(args, "reading")
    )
    try:
        whole = shipping.drain(args.seconds)
    except LogTampered as e:
        raise LogTampered(f"this run's own log contradicts its head: {e}", hint=e.hint) from e
    finally:
        shipping.close()
    findings = [e for e in told if isinstance(e, Finding)]
    _keep(folder, [e for e in told if isinstance(e, Finding | Gap)])
    code = FINDING if findings else CLEAN if whole else UNDECIDED
    _report(args, folder, target, shipping, findings, code)
    return code


def _seconds(text: str) -> float:
    """A time limit in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text[:40]!r}")
    return seconds


def _report(
    args: argparse.Namespace, folder: RunDir, target: Target, shipping: Shipping, findings: list[Finding], code: int
) -> None:
    done = shipping.shipper.progress
    if args.json:
        print_json(
            {
                "run": folder.id,
                "server": target.url,
                "origin": target.origin,
                "shipped": done.entries,
                "entries": done.of,
                "trouble": shipping.shipper.trouble,
                "findings": findings,
                "exit_code": code,
            }
        )
        return
    for finding in findings:
        print(f"{finding.severity.value} · {finding.detector}: {finding.seen}")
    print(f"{done.entries:,} of {done.of:,} entries of run {folder.id} are in the log {target.origin}")
    if shipping.shipper.trouble:
        print(f"the last try: {shipping.shipper.trouble}", file=sys.stderr)
        if shipping.shipper.hint:
            print(f"hint: {shipping.shipper.hint}", file=sys.stderr)


def _follow(args: argparse.Namespace, folder: RunDir, target: Target, limits: Limits, key: str) -> int:
    """Beside a run: events as lines of JSON on stdout, the end of stdin is the end of the run."""
    from trainwarden.log.client.session import Shipping

    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the supervisor blocks them where it starts us
    give_way(os.getpid(), _NICE)

    def tell(event: Event) -> None:
        with suppress(OSError):  # the supervisor is gone: what it would have been told, `log ship` tells later
            os.write(1, msgspec.json.encode(event) + b"\n")

    def ended(seconds: float) -> bool:
        ready, _, _ = select.select([0], [], [], seconds)
        return bool(ready) and not os.read(0, 1024)

    shipping = Shipping.open(folder, target, tell, public_key=key, limits=limits)
    try:
        whole = shipping.follow(ended, args.seconds)
        tell(shipping.shipper.progress)
    finally:
        shipping.close()
    return CLEAN if whole else UNDECIDED


def _target(args: argparse.Namespace, folder: RunDir) -> tuple[Target, Limits]:
    """Where to: as the configuration says when one is named, else where this run was sent before."""
    from trainwarden.config import load_config
    from trainwarden.log.client.session import limits_of, target_of
    from trainwarden.log.client.state import targets

    config = load_config(args.config, Path.cwd()).log
    known = targets(folder.shipping)
    if args.config is None and len(known) == 1:
        return known[0], limits_of(config)
    if args.config is None and len(known) > 1:
        raise UsageError(
            f"run {folder.id} was sent to {len(known)} log servers: {', '.join(t.url for t in known)}",
            hint="name one with --config FILE",
        )
    if not config.server:
        raise UsageError(f"run {folder.id} was never sent to a log server", hint="say which in [log] of --config FILE")
    return target_of(config, platform.node()), limits_of(config)


def _keep(folder: RunDir, events: list[Finding | Gap]) -> None:
    """Findings belong to the run; when its log cannot be continued here, they are told and kept as alarms only."""
    from trainwarden.keys import SigningKey
    from trainwarden.log.journal import LogWriter
    from trainwarden.model import canonical

    if not events:
        return
    try:
        log = LogWriter.open(folder.log, SigningKey.load())
    except TrainWardenError as e:
        print(f"the findings are not in the run's log: {e}", file=sys.stderr)
        return
    try:
        log.append([canonical(event) for event in events])
    finally:
        log.close()


def _progress(args: argparse.Namespace, what: str) -> Any:
    """Say on a terminal's stderr how far the log was read."""
    if args.json or not sys.stderr.isatty():
        return lambda size: None
    return lambda size: print(f"\r\x1b[K{what} entry {size:,} …\r", end="", file=sys.stderr, flush=True)
