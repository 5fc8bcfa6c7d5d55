"""Offline checks of one run: log, seal, approvals, records, details, checkpoints, stored objects.

Rules
-----
* A check passes, fails with a reason, or was not made, with a reason. Nothing is left out silently: what could
  not be looked at is `NotChecked`, and never a pass.
* What a broken log says is not looked into further.
* A checkpoint file that was changed fails; one that is gone passes while its recorded bytes are in the store.

Trust: nothing but the public keys. A run is intact as of its newest signed head; that this head is the newest there
ever was shows only against a copy kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, assert_never

import msgspec

from trainwarden.actors import Enough, Lacking, judge_approvals, read_registry
from trainwarden.casefile import file_digest, indexed, read_entries
from trainwarden.errors import (
    LogError,
    LogUnreachable,
    SignatureInvalid,
    StoreError,
    StoreTampered,
    TrainWardenError,
    UsageError,
)
from trainwarden.log.client.link import HttpTransport
from trainwarden.log.client.state import Target, targets
from trainwarden.log.client.verify import verify_shipped
from trainwarden.log.cosignature import Cosignature, TooFew
from trainwarden.log.cosignature import Enough as Cosigned
from trainwarden.log.policy import NONE, Policy
from trainwarden.log.reader import LogReader
from trainwarden.log.verify import verify_log
from trainwarden.log.witnessed import OlderHead, RolledBack, Witnessed, judge_cosigned, read_cosigned
from trainwarden.model import (
    BUFFERS,
    Approved,
    CheckpointSaved,
    Detail,
    Entry,
    FileChanged,
    Gap,
    Manifest,
    Quarantined,
    RunEnded,
    Sealed,
    SignedSeal,
    Stage,
    StepRecord,
    UnitsDrawn,
)
from trainwarden.record.fingerprint import stage_root
from trainwarden.sampling import wrong_draws
from trainwarden.seal.seal import read_seal
from trainwarden.store import RunDir, Store
from trainwarden.supervise.details import DetailReader
from trainwarden.supervise.private import read_digest_key


class Passed(msgspec.Struct, frozen=True, tag="passed"):
    """The check was made and holds; `seen` says over how much."""

    seen: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The check was made and does not hold."""

    reason: str


class NotChecked(msgspec.Struct, frozen=True, tag="not checked"):
    """The check could not be made; never a pass."""

    reason: str


Result: TypeAlias = Passed | Failed | NotChecked


class Check(msgspec.Struct, frozen=True):
    """One check by name and its result."""

    name: str
    result: Result


Progress: TypeAlias = Callable[[str], None]


class LogServer(msgspec.Struct, frozen=True):
    """Ask the log servers that a run was sent to, at `url` if one is given; `key` is the public key they must have."""

    url: str = ""
    key: str = ""


def verify_run(
    store: Store,
    run: str,
    public_key: str = "",
    deep: bool = False,
    progress: Progress | None = None,
    log_server: LogServer | None = None,
) -> list[Check]:
    """Check everything of a run that can be checked offline; `deep` re-hashes every sealed file kept in the store.

    With `log_server` the log servers are asked as well; without, a run that was sent to one has that not checked.

    Raises:
        UsageError: there is no such run.
    """
    tell = progress or (lambda _: None)
    folder = store.run(run)
    tell("log")
    entries, damage = read_entries(folder)
    first = entries[0] if entries and isinstance(entries[0], Sealed) else None
    key = public_key or (first.key if first else "")
    checks = [Check("key", _key(public_key, first)), Check("log", _log(folder, first, key, damage))]
    if first is None or not isinstance(checks[1].result, Passed):
        checks += [Check(name, NotChecked("the log does not verify")) for name in _AFTER_LOG]
        return checks + _log_servers(folder, key, log_server, tell)
    seal, result = _seal(folder, first, key)
    checks.append(Check("seal", result))
    checks.append(Check("approvals", _approvals(store, seal, entries)))
    checks.append(Check("records", _records(entries)))
    if any(isinstance(e, UnitsDrawn) for e in entries):
        checks.append(Check("draws", _draws(first.run, entries)))
    tell("details")
    checks.append(Check("details", _details(folder, entries)))
    tell("checkpoints")
    checks.append(Check("checkpoints", _checkpoints(store, entries)))
    tell("stored objects")
    checks.append(Check("stored objects", _objects(store, seal, entries, deep)))
    return checks + _log_servers(folder, key, log_server, tell)


def check_witnesses(store: Store, run: str, public_key: str, policy: Policy | None) -> Check:
    """Check that the head of a run's log is cosigned as `policy` demands.

    Raises:
        UsageError: there is no such run.
    """
    folder = store.run(run)
    return check_cosigned(folder.log, lambda: public_key or _named_key(folder), policy)


def check_cosigned(log_folder: Path, key: Callable[[], str], policy: Policy | None) -> Check:
    """Check that the head of the log in a folder is cosigned as `policy` demands."""
    if policy is None or policy.quorum == NONE:
        return Check("witnesses", NotChecked("no cosignature was asked for; name witnesses with --witness or --policy"))
    try:
        note = read_cosigned(log_folder)
        with LogReader.open(log_folder, key()) as log:
            return Check("witnesses", _witnessed(judge_cosigned(log, note, policy)))
    except TrainWardenError as e:
        return Check("witnesses", Failed(str(e)))


def _draws(run: str, entries: Sequence[Entry]) -> Result:
    """The draws of the sampled audit, made again from the log."""
    made = [e for e in entries if isinstance(e, UnitsDrawn)]
    try:
        wrong = wrong_draws(run, entries)
    except ValueError as e:
        return Failed(f"a draw's randomness cannot be read: {e}")
    if wrong:
        return Failed("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    sources = sorted({e.source for e in made})
    return Passed(f"{len(made)} draws made again from what they name as their randomness ({', '.join(sources)})")


def _named_key(folder: RunDir) -> str:
    """The key that the log itself names, "" when it has no first entry."""
    entries, _ = read_entries(folder)
    return entries[0].key if entries and isinstance(entries[0], Sealed) else ""


def _witnessed(found: Witnessed) -> Result:
    match found:
        case Cosigned(needed, cosignatures):
            return Passed(f"{len(cosignatures)} cosignatures, {needed} needed: {_names(cosignatures)}")
        case TooFew(needed, cosignatures, missing):
            have = f", by {_names(cosignatures)}" if cosignatures else ""
            return Failed(f"{len(cosignatures)} of {needed} cosignatures{have}; missing: {', '.join(missing)}")
        case OlderHead(size, now):
            return Failed(f"the head of size {now} is not cosigned, an earlier one of size {size} is")
        case RolledBack(reason):
            return Failed(reason)
        case _ as unreachable:
            assert_never(unreachable)


def _names(cosignatures: Sequence[Cosignature]) -> str:
    return ", ".join(c.witness.name for c in cosignatures)


_AFTER_LOG = ("seal", "approvals", "records", "details", "checkpoints", "stored objects")


# --------------------------------------------------------------------------- log and seal


def _key(given: str, first: Sealed | None) -> Result:
    if not given:
        return NotChecked("checked against the key that the log itself names; give yours with --key")
    if first is not None and first.key != given:
        return Failed(f"the log names key {first.key}, expected {given}")
    return Passed(given)


def _log(folder: RunDir, first: Sealed | None, key: str, damage: str) -> Result:
    if first is None:
        return Failed(damage or "the log has no first entry that names its seal and key")
    try:
        head = verify_log(folder.log, key)
    except TrainWardenError as e:
        return Failed(str(e))
    if damage:
        return Failed(damage)
    if first.run != folder.id:
        return Failed(f"it is the log of run {first.run}, found in the folder of run {folder.id}")
    return Passed(f"{head.size} entries under root {head.root[:16]}…")


def _seal(folder: RunDir, first: Sealed, key: str) -> tuple[SignedSeal | None, Result]:
    try:
        seal = read_seal(folder.seal_file, key)
    except TrainWardenError as e:
        return None, Failed(str(e))
    if seal.digest != first.seal:
        return None, Failed(f"the log was begun for seal {first.seal}, seal.json holds {seal.digest}")
    return seal, Passed(f"{seal.digest[:16]}…, signed by {len(seal.signatures)}")


def _approvals(store: Store, seal: SignedSeal | None, entries: Sequence[Entry]) -> Result:
    """Was the seal approved as its own policy demands when the run began, by keys that are still believed?"""
    if seal is None:
        return NotChecked("the seal does not verify")
    policy = seal.seal.approval
    if not policy.approvals:
        return Passed("the seal demands none")
    found = indexed(entries, Approved)
    if not found:
        return Failed(
            f"the seal demands {policy.approvals} approvals of {', '.join(policy.approvers)}, the log has none"
        )
    index, approved = found[0]
    try:
        then = read_registry(store, policy.registrar, approved.actors)
        now = read_registry(store, policy.registrar)
    except UsageError as e:
        return NotChecked(f"the keys of the approvers cannot be checked: {e}")
    except TrainWardenError as e:
        return Failed(str(e))
    match judge_approvals(seal, approved.approvals, then):
        case Lacking() as lacking:
            why = f": {lacking.refused[0]}" if lacking.refused else ""
            return Failed(f"entry {index}: {len(lacking.approvals)} of {policy.approvals} approvals count{why}")
        case Enough(approvals=approvals):
            for a in approvals:
                revoked = now.revoked.get(a.key)
                if revoked is not None and revoked[1].since_ns <= approved.wall_ns:
                    return Failed(f"the key of {a.actor} was revoked as of before the run began (entry {revoked[0]})")
            names = ", ".join(a.actor for a in approvals)
            return Passed(f"{len(approvals)} of {policy.approvals}: {names}; registrar {policy.registrar[:16]}…")


# --------------------------------------------------------------------------- records


def _records(entries: Sequence[Entry]) -> Result:
    """Are the records of each rank numbered without a hole, and as many as the run's end says?"""
    next_seq: dict[tuple[int, int], int] = {}
    for index, r in indexed(entries, StepRecord):
        expected = next_seq.get((r.attempt, r.rank), 0)
        if r.seq != expected:
            return Failed(f"entry {index}: attempt {r.attempt}, rank {r.rank} has record {r.seq}, expected {expected}")
        next_seq[r.attempt, r.rank] = expected + 1
    gaps = indexed(entries, Gap)
    if gaps:
        index, gap = gaps[0]
        return Failed(f"{len(gaps)} gaps; the first is entry {index}, step {gap.step}, rank {gap.rank}: {gap.reason}")
    total = sum(next_seq.values())
    ends = indexed(entries, RunEnded)
    if not ends:
        return NotChecked(f"{total} records and no end of the run: it goes on, or its supervisor was killed")
    if ends[-1][1].records != total:
        return Failed(f"the run's end counts {ends[-1][1].records} records, the log has {total}")
    return Passed(f"{total} records of {len(next_seq)} rank starts, no hole")


def _details(folder: RunDir, entries: Sequence[Entry]) -> Result:
    """Does every stage root follow from the per-tensor digests kept beside the log?"""
    try:
        key = read_digest_key(folder.private)
    except StoreError as e:
        return NotChecked(str(e))
    reader, roots = DetailReader(folder.details), 0
    for index, r in indexed(entries, StepRecord):
        where = f"entry {index}: attempt {r.attempt}, rank {r.rank}, step {r.step}"
        try:
            under = reader.get(r.attempt, r.rank, r.seq)
        except (StoreError, OSError) as e:
            return Failed(f"{where}: {e}")
        for stage, committed in r.stages.items():
            if not committed.root:
                continue
            detail = under.get(stage)
            if detail is None:
                return Failed(f"{where}: the digests of stage {stage} are missing")
            found = stage_root(key, detail.names, detail.digests)
            if found != committed.root:
                return Failed(f"{where}: stage {stage} is recorded as {committed.root}, its digests give {found}")
            roots += 1
        if r.left and (wrong := _left_wrong(key, r, under.get(Stage.WEIGHTS))):
            return Failed(f"{where}: {wrong}")
    return Passed(f"{roots} stage roots recomputed")


def _left_wrong(key: bytes, record: StepRecord, weights: Detail | None) -> str:
    """What is wrong with a record's root over the weights without buffers."""
    pairs = zip(weights.names, weights.digests, strict=True) if weights else ()
    own = {name: digest for name, digest in pairs if not name.startswith(BUFFERS)}
    found = stage_root(key, own, own.values())
    if found == record.left:
        return ""
    return f"the weights without buffers are recorded as {record.left}, their digests give {found}"


# --------------------------------------------------------------------------- files


def _checkpoints(store: Store, entries: Sequence[Entry]) -> Result:
    saved = {s.path: s for _, s in indexed(entries, CheckpointSaved)}
    intact, kept, lost = 0, 0, []
    for path, save in saved.items():
        found = file_digest(Path(path))
        if found and found != save.digest:
            return Failed(f"{path} is recorded as {save.digest} and is now {found}")
        if found:
            intact += 1
        elif store.has(save.digest):
            kept += 1
        else:
            lost.append(path)
    if lost:
        return NotChecked(f"{len(lost)} of {len(saved)} files are gone and have no copy in the store: {lost[0]}")
    return Passed(f"{intact} files intact" + (f", {kept} gone with their bytes in the store" if kept else ""))


def _objects(store: Store, seal: SignedSeal | None, entries: Sequence[Entry], deep: bool) -> Result:
    """Do the objects that this run needs still have the bytes they are named by?"""
    if seal is None:
        return NotChecked("the seal does not verify")
    refs = (seal.seal.code, seal.seal.environment, seal.seal.data)
    required = [ref.digest for ref in refs if ref.digest]
    optional = _referred(entries)
    try:
        for digest in required:
            store.check(digest)
        listed = list(_listed(store, required)) if deep else []
        present = {d for d in (*optional, *listed) if d and store.has(d)}
        for digest in sorted(present):
            store.check(digest)
    except StoreTampered as e:
        return Failed(str(e))
    except (StoreError, msgspec.DecodeError) as e:
        return Failed(f"a manifest of the seal cannot be read: {e}")
    more = f", {len(set(listed) - present)} sealed files are not kept" if deep else "; --deep adds the sealed files"
    return Passed(f"{len(required) + len(present)} objects{more}")


def _referred(entries: Iterable[Entry]) -> set[str]:
    found: set[str] = set()
    for entry in entries:
        if isinstance(entry, CheckpointSaved):
            found |= {entry.digest, entry.sidecar}
        elif isinstance(entry, FileChanged):
            found |= {entry.found, entry.sealed}
        elif isinstance(entry, Quarantined):
            found.add(entry.digest)
    return {d for d in found if d}


def _listed(store: Store, manifests: Iterable[str]) -> Iterator[str]:
    for digest in manifests:
        manifest = msgspec.json.decode(store.get(digest), type=Manifest)
        yield from (entry.digest for tree in manifest.trees for entry in tree if not entry.link)


# --------------------------------------------------------------------------- log servers


def _log_servers(folder: RunDir, key: str, asked: LogServer | None, tell: Progress) -> list[Check]:
    """Two checks for each server that the run was sent to: what it keeps, and that it was sent everything."""
    try:
        known = targets(folder.shipping)
    except LogError as e:
        return [Check("log server", NotChecked(str(e)))]
    if not known:
        return [Check("log server", NotChecked("this run was never sent to one"))] if asked is not None else []
    checks: list[Check] = []
    for target in known:
        name = "log server" if len(known) == 1 else f"log server {target.origin}"
        if asked is None:
            checks.append(Check(name, NotChecked(f"sent to {target.url}; --log-server asks it")))
            continue
        tell(name)
        checks += _log_server(folder, key, target, asked, name)
    return checks


def _log_server(folder: RunDir, key: str, target: Target, asked: LogServer, name: str) -> list[Check]:
    sent = f"{name}, sent"
    if asked.key and asked.key != target.server_key:
        reason = f"this run was sent to a log server with key {target.server_key}, expected {asked.key}"
        return [Check(name, Failed(reason)), Check(sent, NotChecked("it was sent to another log server"))]
    if asked.url:
        target = msgspec.structs.replace(target, url=asked.url.rstrip("/"))
    try:
        kept = verify_shipped(folder, target, HttpTransport(), public_key=key)
    except LogUnreachable as e:
        return [Check(name, NotChecked(str(e))), Check(sent, NotChecked("the log server does not answer"))]
    except (LogError, SignatureInvalid) as e:
        return [Check(name, Failed(str(e))), Check(sent, NotChecked("what the log server keeps does not hold"))]
    of_key = "" if asked.key else ", under the key that this host names; give yours with --log-key"
    seen = f"{kept.entries} entries in {kept.items} leaves under {target.origin}'s root {kept.head.root[:16]}…{of_key}"
    if kept.entries < kept.of:
        missing = f"entries {kept.entries} to {kept.of - 1} were not sent; trainwarden log ship {folder.id}"
        return [Check(name, Passed(seen)), Check(sent, NotChecked(missing))]
    return [Check(name, Passed(seen)), Check(sent, Passed(f"all {kept.of} entries"))]
