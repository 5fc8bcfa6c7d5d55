"""`trainwarden approve SEAL --as ACTOR`: sign a seal, so that it may run, or a checkpoint to be served."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwarden.commands.common import CLEAN, Subparsers, add_verb, open_store, print_json
from trainwarden.errors import UsageError

if TYPE_CHECKING:
    from trainwarden.actors.approvals import Judged
    from trainwarden.model import SignedSeal
    from trainwarden.store import Store


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "approve",
        "Approve a seal, so that it may run, or a checkpoint, so that it may be served, once enough have.",
        run=run,
        examples=(
            "trainwarden approve 3f9c20aa51be --as ada",
            "trainwarden approve last --as reviewer-agent",
            "trainwarden approve --checkpoint out/step-000024 --as ada",
        ),
        exit_codes=(
            "exit codes:\n  0  approved (whether or not others are still missing)\n"
            "  1  the seal or the log of actors was altered\n  3  the call, the actor or the key is wrong"
        ),
    )
    parser.add_argument(
        "seal", metavar="SEAL", nargs="?", default="", help='the digest of a waiting seal, its beginning, or "last"'
    )
    parser.add_argument("--checkpoint", metavar="PATH", type=Path, help="approve this checkpoint, and no seal")
    parser.add_argument("--as", dest="actor", metavar="ACTOR", required=True, help="who approves, an enrolled actor")


def run(args: argparse.Namespace) -> int:
    """Sign the seal and say where it stands."""
    from trainwarden.actors.approvals import approve, find_seal
    from trainwarden.actors.registry import known_actor, read_registry
    from trainwarden.keys import ring

    store = open_store(args)
    if bool(args.seal) == (args.checkpoint is not None):
        raise UsageError("one seal or one checkpoint is approved at a time", hint="trainwarden approve -h")
    if args.checkpoint is not None:
        return _checkpoint(args, store)
    seal = find_seal(store, args.seal)
    registry = read_registry(store, seal.seal.approval.registrar)
    actor = known_actor(registry, args.actor)
    judged = approve(store, seal, actor.name, ring.load(actor.name, actor.key))
    if args.json:
        print_json({"seal": seal.digest, "actor": actor, "judged": judged, "policy": seal.seal.approval})
    else:
        print("\n".join(_told(seal, actor.name, judged)))
    return CLEAN


def _checkpoint(args: argparse.Namespace, store: Store) -> int:
    from trainwarden.gate import statements
    from trainwarden.gate.manifest import manifest_digest, manifest_of
    from trainwarden.model import CheckpointApproval

    digest = manifest_digest(manifest_of(args.checkpoint))
    key = statements.key_of(store, args.actor)
    approval = statements.sign(CheckpointApproval(digest=digest, actor="", key=""), args.actor, key)
    statements.keep(store, approval)
    if args.json:
        print_json({"checkpoint": str(args.checkpoint), "approval": approval})
    else:
        print(f"{args.actor} approved checkpoint {digest}")
    return CLEAN


def _told(seal: SignedSeal, actor: str, judged: Judged) -> list[str]:
    from trainwarden.actors.approvals import Enough

    plain, have = seal.seal, [a.actor for a in judged.approvals]
    lines = [
        f"{actor} approved seal {seal.digest}",
        f"  command      {' '.join(plain.argv)}",
        f"  folder       {plain.cwd}",
    ]
    lines += [
        f"  {ref.kind:<12} {ref.files:,} files, {ref.digest[:16]}…"
        for ref in (plain.code, plain.environment, plain.data)
    ]
    lines.append(f"  registrar    {plain.approval.registrar}")
    if isinstance(judged, Enough):
        return [*lines, f"it has {len(have)} of {plain.approval.approvals} approvals ({', '.join(have)}): it may run"]
    missing = [name for name in plain.approval.approvers if name not in have]
    lines.append(f"it has {len(have)} of {plain.approval.approvals} approvals; left: {', '.join(missing) or 'nobody'}")
    return [*lines, *(f"not counted: {reason}" for reason in judged.refused)]
