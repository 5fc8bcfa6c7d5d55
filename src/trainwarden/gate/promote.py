"""Promotes cleared checkpoints to serving names, and takes names back.

Rules
-----
* Only a digest whose newest decision is a clearance, by the policy of now, is promoted, and only while nothing is open
  against it: there is no way to promote anything else.
* What is promoted is what was cleared: the files must still be what the manifest says, and the store must hold them.
* A name is taken from what it was when the decision began. Whoever comes second is told so, and changes nothing.
* A rollback goes to the newest earlier checkpoint of the name with nothing open against it.

Trust: as `registry`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from trainwarden.config import GateConfig
from trainwarden.errors import NotCleared, UsageError
from trainwarden.gate.clear import policy_digest
from trainwarden.gate.ledger import append, check_name, read_gate
from trainwarden.gate.manifest import manifest_digest, manifest_of, read_manifest
from trainwarden.gate.registry import Promotion, current, fold
from trainwarden.gate.troubles import against, look_up
from trainwarden.keys import SigningKey
from trainwarden.model import CheckpointCleared, ClearanceRefused, GateEntry, Promoted, RolledBack
from trainwarden.store import Store
from trainwarden.supervise.control import account


def promote(store: Store, name: str, path: Path, policy: GateConfig, key: SigningKey) -> Promoted:
    """Make `name` the checkpoint at `path`.

    Raises:
        UsageError: the checkpoint cannot be read, or the name is none.
        NotCleared: it is not cleared, or something is open against it, or the name became something else meanwhile.
        StoreError, StoreTampered: the store does not hold its files whole.
        KeyUnusable: `key` is not the keeper's.
        GateTampered, LogError: the gate's log cannot be trusted or written.
    """
    check_name(name)
    before = read_gate(store, policy.keeper)
    digest = manifest_digest(manifest_of(path))
    index, clearance = _clearance(before, digest, path)
    if clearance.policy != policy_digest(policy):
        raise NotCleared(f"{path} was cleared by another policy", hint=f"trainwarden clear {path}")
    if open_now := against(store, clearance):
        raise NotCleared(f"{path} was cleared, but since: {'; '.join(open_now)}", hint=f"trainwarden clear {path}")
    for file in read_manifest(store, digest).files:
        store.check(file.digest)
    was = now_at(before, name)

    def makes(entries: tuple[GateEntry, ...]) -> Promoted:
        if (meanwhile := now_at(entries, name)) != was:
            raise NotCleared(
                f"{name} became {meanwhile[:12]} meanwhile, it was {was[:12] or 'nothing'}",
                hint=f"trainwarden status {name}; then promote again if you still want to",
            )
        if _clearance(entries, digest, path)[0] != index:
            raise NotCleared(f"{path} was decided on again meanwhile", hint="promote again")
        return Promoted(name=name, digest=digest, cleared=index, previous=was, by=_account(), wall_ns=time.time_ns())

    return append(store, key, makes)


def roll_back(store: Store, name: str, key: SigningKey, reason: str, keeper: str = "") -> RolledBack:
    """Take `name` back to its newest earlier checkpoint with nothing open against it.

    Raises:
        UsageError: the name was never promoted.
        NotCleared: there is nothing that it could go back to.
        KeyUnusable, GateTampered, LogError: as `promote`.
    """
    served = look_up(store, name, keeper)
    if not served:
        raise UsageError(f"nothing is served as {name}", hint="trainwarden status")
    target = next((p for p in served[1:] if not p.open), None)
    if target is None:
        raise NotCleared(f"{name} has no earlier checkpoint that could be served", hint=f"trainwarden status {name}")
    entry = RolledBack(
        name=name, digest=target.digest, left=served[0].digest, reason=reason, by=_account(), wall_ns=time.time_ns()
    )

    def makes(entries: tuple[GateEntry, ...]) -> RolledBack:
        if now_at(entries, name) != entry.left:
            raise NotCleared(f"{name} became something else meanwhile", hint=f"trainwarden status {name}")
        return entry

    append(store, key, makes)
    return entry


def in_use(served: Sequence[Promotion]) -> Promotion | None:
    """What whoever serves takes: the newest with nothing open against it."""
    return next((p for p in served if not p.open), None)


def now_at(entries: Sequence[GateEntry], name: str) -> str:
    """The digest that a name leads to, "" for none."""
    found = current(entries, name)
    return found.digest if found else ""


def _clearance(entries: Sequence[GateEntry], digest: str, path: Path) -> tuple[int, CheckpointCleared]:
    found = fold(entries).decisions.get(digest)
    if found is None:
        raise NotCleared(f"{path} ({digest[:12]}) was never cleared", hint=f"trainwarden clear {path}")
    match found[1]:
        case ClearanceRefused(reasons=reasons):
            raise NotCleared(f"{path} was refused: {'; '.join(reasons)}", hint=f"trainwarden clear {path}")
        case CheckpointCleared() as clearance:
            return found[0], clearance


def _account() -> str:
    return account(os.getpid(), os.geteuid())
