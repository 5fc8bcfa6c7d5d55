"""`trainwarden seal -- CMD…`: seal the inputs of a launch command without running it, so that it can be approved."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json
from trainwarden.commands.run import command_words

if TYPE_CHECKING:
    from trainwarden.model import SignedSeal


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "seal",
        "Seal the inputs of a training command and print the seal's digest, without running it.",
        run=run,
        usage="trainwarden seal [options] -- CMD …",
        examples=("trainwarden seal -- torchrun --nproc-per-node 2 train.py --epochs 3",),
        exit_codes=(
            "exit codes:\n  0  sealed\n  1  the configuration demands fewer approvals than the store does\n"
            "  3  the call or its input is wrong"
        ),
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …", help="the launch command")


def run(args: argparse.Namespace) -> int:
    """Seal the command and say what it takes to run it."""
    from rich.console import Console

    from trainwarden.actors.approvals import keep_seal, policy_for
    from trainwarden.commands.run import progress_bar
    from trainwarden.config import load_config
    from trainwarden.keys import SigningKey
    from trainwarden.seal.command import parse_command
    from trainwarden.seal.seal import seal_command

    argv = command_words(args.command)
    cwd = Path.cwd()
    config = load_config(args.config, cwd)
    command = parse_command(argv, str(cwd), dict(os.environ))
    store = open_store(args, create=True)
    try:
        policy = policy_for(store, config.seal)
        with progress_bar(Console(stderr=True, highlight=False)) as bar:
            sealed = seal_command(store, command, config, SigningKey.load_or_create(), progress=bar, approval=policy)
        keep_seal(store, sealed)
    finally:
        store.close()
    if args.json:
        print_json({"seal": sealed.digest, "policy": policy, "files": _files(sealed), "argv": sealed.seal.argv})
        return CLEAN
    print(sealed.digest)
    Console(stderr=True, highlight=False, soft_wrap=True).print(_told(sealed), markup=False)
    return CLEAN


def _files(sealed: SignedSeal) -> dict[str, int]:
    seal = sealed.seal
    return {ref.kind: ref.files for ref in (seal.code, seal.environment, seal.data)}


def _told(sealed: SignedSeal) -> str:
    files = ", ".join(f"{count:,} {kind}" for kind, count in _files(sealed).items())
    policy = sealed.seal.approval
    if not policy.approvals:
        return f"sealed: {files} files; no approval is demanded"
    names = ", ".join(policy.approvers)
    return (
        f"sealed: {files} files; needs {policy.approvals} approvals of {names}: "
        f"trainwarden approve {sealed.digest[:12]} --as NAME"
    )
