"""`trainwarden alerts test`: does every alert channel of the configuration work?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainwarden.commands.common import CLEAN, FINDING, Subparsers, add_verb, consoles, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.supervise.responding import Outlet


class Tried(msgspec.Struct, frozen=True):
    """What became of one channel's test; `failed` is empty when it was taken."""

    channel: str
    audience: str
    failed: str


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "alerts",
        "Try the alert channels of the configuration: a test alert goes over each.",
        run=run,
        examples=("trainwarden alerts test", "trainwarden alerts test --config trainwarden.toml --json"),
        exit_codes=(
            "exit codes:\n  0  every channel took its test\n  1  one did not\n"
            "  3  the call or a channel's settings are wrong"
        ),
    )
    parser.add_argument("what", choices=("test",), metavar="test", help="send a test over every channel")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")


def run(args: argparse.Namespace) -> int:
    """Send a test over each channel and say what came of it."""
    from trainwarden.config import load_config
    from trainwarden.respond.alerts import channel_name
    from trainwarden.respond.answer import response_to

    config = load_config(args.config, Path.cwd())
    if not config.alerts:
        raise UsageError("no alert channel is configured", hint="docs/guide.md shows an [[alerts]] section")
    outlets = response_to(config).outlets
    results, progress = consoles(args)
    with progress.status("sending tests"):
        tried = [
            Tried(channel_name(channel), channel.audience, _try(outlet))
            for channel, outlet in zip(config.alerts, outlets, strict=True)
        ]
    if args.json:
        print_json({"channels": tried})
    else:
        for one in tried:
            told = f"NOT DELIVERED: {one.failed}" if one.failed else "ok"
            results.print(f"{one.channel} ({one.audience}): {told}", markup=False)
    return FINDING if any(one.failed for one in tried) else CLEAN


def _try(outlet: Outlet) -> str:
    """Send one test; why it was not taken, "" when it was."""
    from trainwarden.model import Undelivered
    from trainwarden.respond.alerts import posts_of
    from trainwarden.respond.alerts.post import NotDelivered
    from trainwarden.respond.alerts.words import trial

    for post in posts_of([outlet]):
        try:
            post.carrier.send(trial("test", post.audience))
        except NotDelivered as e:
            return str(e)
        return ""
    failed: list[Undelivered] = []
    outlet.open("test", failed.append)
    outlet.close()
    return failed[0].reason if failed else ""
