"""Decides whether a checkpoint may be served, by policy, and writes the decision into the gate's log.

Rules
-----
* Files first: they are taken into the store, and everything after that reads the store. What lies at the path later is
  of no account.
* Everything must be found: signed by its writer, safe to load, replayed back to the seal, nothing open against it,
  evaluated as claimed, approved. One reason refuses; anything that is not known leaves it undecided, with the command
  that would settle it. There is no way past a check.
* A refusal is logged too, and stands against every earlier clearance. An undecided checkpoint changes nothing.

Trust: the policy (whoever can write trainwarden.toml decides what is asked; each clearance names the policy by digest),
the keeper's key, and what the checks name.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden import descent
from trainwarden.actors.registry import Registry, has_registry, read_registry
from trainwarden.casefile import CaseFile
from trainwarden.config import GateConfig
from trainwarden.errors import CannotDecide, CheckpointRefused, KeyUnusable, StoreError, TrainWardenError, UsageError
from trainwarden.gate import results, statements
from trainwarden.gate.ancestry import Ancestry, Node, Tracer
from trainwarden.gate.convert.conversion import EDGE
from trainwarden.gate.decision import Checked, Cleared, Decision, Refused, Undecided, lacks, refuse
from trainwarden.gate.derive import TOLD, difference
from trainwarden.gate.evaluate import evaluate, read_claims, unequal
from trainwarden.gate.findings import finding_digest, open_findings
from trainwarden.gate.incidents import Incidents
from trainwarden.gate.ledger import append, read_gate
from trainwarden.gate.manifest import keep_files, keep_manifest, manifest_of
from trainwarden.gate.registry import fold
from trainwarden.gate.stored import decided_together, holds_tensors
from trainwarden.keys import SigningKey
from trainwarden.lineage import UNSEALED
from trainwarden.log.reader import LogReader
from trainwarden.model import (
    CheckpointApproval,
    CheckpointCleared,
    CheckpointManifest,
    ClearanceRefused,
    Derived,
    Evaluated,
    Finding,
    FindingClosed,
    RunSeen,
    Standing,
    Statement,
    canonical,
)
from trainwarden.standing import Doubt
from trainwarden.store import Store

Says = Callable[[str], None]
_SHOWN = 5
_BEGINS = "COMMAND that names what it begins from (or [seal] data does), so that its seal lists it"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that is to be cleared, by which policy, and where its claimed figures are ("" = as policy says)."""

    path: Path
    policy: GateConfig
    claims: str = ""


class _Asked(msgspec.Struct, frozen=True):
    """What all checks of one request share."""

    store: Store
    request: Request
    manifest: CheckpointManifest
    digest: str
    registry: Registry | None
    said: tuple[Statement, ...]
    tracing: Tracer
    ancestry: Ancestry
    cases: dict[str, CaseFile]


def clear(store: Store, request: Request, key: SigningKey, says: Says = lambda _: None) -> Decision:
    """Decide, and log a clearance or a refusal.

    Raises:
        UsageError: the checkpoint cannot be read.
        KeyUnusable: `key` is not the gate's keeper's.
        GateTampered, ActorsTampered, StoreError, LogError: what decides cannot be trusted, read or written.
    """
    if (keeper := keeper_of(store, request.policy) or key.public) != key.public:
        raise KeyUnusable(f"the gate's keeper is {keeper}, your key is {key.public}", hint="ask the keeper to clear it")
    says("hashing its files")
    manifest = manifest_of(request.path)
    keep_files(store, request.path, manifest)
    digest = keep_manifest(store, manifest)
    says("following it back to the seal")
    asked = _asked(store, request, manifest, digest, key)
    safe, figures = _safe(asked), None
    checked = safe + _lineage(asked) + _not_frozen(asked) + _no_incident(asked) + _findings(asked) + _approved(asked)
    if not checked.reasons and not safe.missing:  # what is not known to be safe is not loaded, here neither
        says("evaluating it anew")
        evaluated, figures = _evaluated(asked)
        checked += evaluated
    place, now = str(request.path.absolute()), time.time_ns()
    if checked.reasons:
        append(store, key, lambda _: ClearanceRefused(digest=digest, place=place, reasons=checked.reasons, wall_ns=now))
        return Refused(digest=digest, reasons=checked.reasons)
    if checked.missing:
        return Undecided(digest=digest, missing=checked.missing)
    clearance = _clearance(asked, place, now, figures)
    append(store, key, lambda _: clearance)
    return Cleared(clearance=clearance)


def keeper_of(store: Store, policy: GateConfig) -> str:
    """The key that keeps the gate: the policy's, else the log's, "" where neither is there yet.

    Raises:
        GateTampered: the log does not verify, or another keeper signed it.
    """
    return policy.keeper or fold(read_gate(store)).keeper


def policy_digest(policy: GateConfig) -> str:
    """What names a policy."""
    return blake3(canonical(policy)).hexdigest()


def tracer(store: Store, policy: GateConfig, keeper: str, *, remake: bool) -> Tracer:
    """What follows checkpoints back; with `remake` what was made from others is made again and compared.

    Raises:
        ActorsTampered: the log of actors does not verify.
    """
    registry = read_registry(store) if has_registry(store) else None
    actors = registry.actors if registry else {}
    writers = [a.key for n in policy.writers if (a := actors.get(n)) and registry and a.key not in registry.revoked]

    def remade(said: Derived) -> Doubt | None:
        return _remade(store, policy, said) if remake else None

    return Tracer(store, registry, frozenset((keeper, *writers)), remade, lambda file: holds_tensors(store, file))


def _asked(store: Store, request: Request, manifest: CheckpointManifest, digest: str, key: SigningKey) -> _Asked:
    tracing = tracer(store, request.policy, key.public, remake=True)
    ancestry = tracing.trace(manifest)
    cases = {run: case for run in ancestry.until if isinstance(case := tracing.case(run), CaseFile)}
    registry = read_registry(store) if has_registry(store) else None
    return _Asked(store, request, manifest, digest, registry, statements.read_all(store), tracing, ancestry, cases)


def _remade(store: Store, policy: GateConfig, said: Derived) -> Doubt | None:
    if said.how in TOLD:
        if said.how in policy.told and said.actor in policy.approvers:
            return None
        return Doubt(Standing.UNDECIDED, f"that it is a {said.how} of these is the word of {said.actor} alone")
    try:
        different = difference(store, said)
    except (CannotDecide, CheckpointRefused, KeyUnusable, StoreError, UsageError) as e:
        return Doubt(Standing.UNDECIDED, f"it could not be made again: {e}")
    return Doubt(Standing.TAINTED, f"it is no {said.how} of these: {different}") if different else None


# ------------------------------------------------------------------------- the checks


def _safe(asked: _Asked) -> Checked:
    found, decisions = Checked(), decided_together(asked.store, asked.manifest.files)
    for file in asked.manifest.files:
        place = asked.request.path / file.path if asked.request.path.is_dir() else asked.request.path
        match decisions[file.path]:
            case results.Refused(objections=objections):
                first = objections[0]
                found += refuse(f"{file.path}: {first.opcode} {first.name} at {first.offset}: {first.why}")
            case results.Undecided(why=why):
                found += lacks(f"{file.path} was not understood: {why}", f"trainwarden scan {place}")
            case results.Clean():
                pass
    return found


def _lineage(asked: _Asked) -> Checked:
    found = Checked()
    for node in asked.ancestry.bearing():
        for doubt in node.doubts:
            words = f"{node.label}: {doubt.reason}"
            if doubt.standing is Standing.TAINTED:
                found += refuse(words)
            else:
                found += lacks(words, _settles(asked, node, doubt.reason))
    for run in asked.ancestry.until.keys() - asked.cases.keys():
        found += lacks(f"run {run}, on which it stands, cannot be read", f"trainwarden verify {run}")
    root = asked.ancestry.root
    if not found.reasons and not found.missing and (root.standing is not Standing.CLEARED or not asked.ancestry.until):
        found += lacks(root.reason or "it stands on no run", _settles(asked, root, root.reason))
    return found


def _settles(asked: _Asked, node: Node, doubt: str) -> str:
    """The command that would settle this doubt about a node."""
    if node.kind == "run":
        case = asked.cases.get(node.run)
        if case is not None and not asked.tracing.believes(case):
            return f"trainwarden keys new NAME --public {case.key}"
        if UNSEALED in doubt:
            return f"trainwarden run -- {_BEGINS}"
        return f"trainwarden audit {node.run}"
    if node.derived is not None:
        return (
            "trainwarden run -- COMMAND" if node.derived.how in TOLD else f"trainwarden keys show {node.derived.actor}"
        )
    converted = any(file.path == EDGE for file in asked.manifest.files) and node.id == asked.digest
    for path, saved in asked.tracing.nearest(asked.manifest.files).saved.items() if node.id == asked.digest else ():
        if _whole(asked.store, saved):
            place = asked.request.path / path if asked.request.path.is_dir() else asked.request.path
            return f"cp {shlex.quote(str(asked.store.object_path(saved)))} {shlex.quote(str(place))}"
    source, how = ("OLD", "convert") if converted else ("CHECKPOINT", "HOW")
    return f"trainwarden derive {asked.request.path} --from {source} --how {how} --as ACTOR"


def _whole(store: Store, digest: str) -> bool:
    try:
        store.check(digest)
    except StoreError:
        return False
    return True


def _not_frozen(asked: _Asked) -> Checked:
    frozen = {(f.run, f.index): f for run in asked.cases for f in descent.frozen_by(asked.store, run)}
    return sum(
        (
            refuse(f"run {f.run} is frozen (entry {f.index}: {f.reason or 'no reason given'}), by {f.by or 'somebody'}")
            for f in frozen.values()
        ),
        Checked(),
    )


def _no_incident(asked: _Asked) -> Checked:
    found, incidents = Checked(), Incidents(asked.store)
    for told in dict.fromkeys(t for run in asked.cases for t in incidents.open_on(run)):
        found += lacks(told, "trainwarden incident show last")
    return found


def _findings(asked: _Asked) -> Checked:
    found, left = Checked(), 0
    closed = {(c.run, c.index, c.finding) for c in _closures(asked)}
    for run, case in asked.cases.items():
        own = {(index, digest) for name, index, digest in closed if name == run}
        entries = enumerate(case.entries)
        for index, finding in open_findings(entries, asked.ancestry.until[run], asked.request.policy.findings, own):
            left += 1
            if left <= _SHOWN:
                who = asked.request.policy.approvers[:1] or ("ACTOR",)  # whom [gate] approvers has yet to name
                command = f"trainwarden close {run} {index} --as {who[0]} --reason WHY"
                found += lacks(
                    f"entry {index} of run {run}, {finding.severity} {finding.detector}: {finding.seen}", command
                )
    if left > _SHOWN:
        found += lacks(f"and {left - _SHOWN} more findings", f"trainwarden show {next(iter(asked.cases))}")
    return found


def _closures(asked: _Asked) -> Iterator[FindingClosed]:
    """The closures that count: by those who may approve, of a finding that is there."""
    if asked.registry is None:
        return
    for said in asked.said:
        if not isinstance(said, FindingClosed) or said.actor not in asked.request.policy.approvers:
            continue
        if not statements.trouble_with(said, asked.registry) and _is_there(asked, said):
            yield said


def _is_there(asked: _Asked, said: FindingClosed) -> bool:
    case = asked.cases.get(said.run)
    entry = case.entries[said.index] if case and 0 <= said.index < len(case.entries) else None
    return isinstance(entry, Finding) and finding_digest(entry) == said.finding


def _approved(asked: _Asked) -> Checked:
    policy = asked.request.policy
    if policy.approvals == 0:
        return Checked()
    counted = _approvals(asked)
    have = [a.actor for a in counted.approvals]
    if len(have) >= policy.approvals:
        return Checked()
    left = [name for name in policy.approvers if name not in have]
    why = f" ({'; '.join(counted.refused[:3])})" if counted.refused else ""
    return lacks(
        f"it has {len(have)} of {policy.approvals} approvals{why}",
        f"trainwarden approve --checkpoint {asked.request.path} --as {left[0] if left else 'ACTOR'}",
    )


def _approvals(asked: _Asked) -> statements.Counted:
    if asked.registry is None:
        return statements.Counted((), ("no actor is enrolled",))
    own = [s for s in asked.said if isinstance(s, CheckpointApproval) and s.digest == asked.digest]
    return statements.count_approvals(asked.digest, asked.request.policy.approvers, own, asked.registry)


def _evaluated(asked: _Asked) -> tuple[Checked, Evaluated | None]:
    policy, path = asked.request.policy, asked.request.path
    if not policy.evaluate:
        return Checked(), None
    claims_at = Path((asked.request.claims or policy.claims).replace("{checkpoint}", str(path)))
    again = f"trainwarden clear {path}"
    if not claims_at.exists():
        return lacks(f"no figures are claimed in {claims_at}", f"{again} --claims FILE"), None
    claims = read_claims(claims_at)
    try:
        figures = evaluate(asked.store, policy.evaluate, path.name, asked.manifest)
    except TrainWardenError as e:
        return lacks(f"it could not be evaluated: {e}", e.hint or again), None
    if wrong := unequal(claims, figures):
        return refuse(f"evaluated anew, {'; '.join(wrong)}"), None
    kept = {name: figures[name] for name in claims}
    return Checked(), Evaluated(seal=policy.evaluate, figures=kept)


# ------------------------------------------------------------------------- the clearance


def _clearance(asked: _Asked, place: str, now: int, figures: Evaluated | None) -> CheckpointCleared:
    policy = asked.request.policy
    return CheckpointCleared(
        digest=asked.digest,
        place=place,
        policy=policy_digest(policy),
        findings=policy.findings,
        runs=tuple(_seen(asked.store, case, asked.ancestry.until[run]) for run, case in sorted(asked.cases.items())),
        sources=asked.ancestry.made,
        approvals=_approvals(asked).approvals if policy.approvals else (),
        closed=tuple(_closures(asked)),
        evaluated=figures,
        segments=asked.ancestry.segments,
        wall_ns=now,
    )


def _seen(store: Store, case: CaseFile, until: dict[str, int]) -> RunSeen:
    """The run's log as it was read, which may have grown since."""
    size = len(case.entries)
    with LogReader.open(store.run(case.run).log, case.key) as log:
        return RunSeen(run=case.run, key=case.key, size=size, root=log.root_at(size).hex(), until=until)
