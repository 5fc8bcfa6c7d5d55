"""Is the log whole, is it this run's, and was what it begins with signed and approved?"""

from __future__ import annotations

from collections.abc import Sequence

from trainwarden.actors import Enough, Lacking, judge_approvals, read_registry
from trainwarden.casefile import indexed
from trainwarden.checks.results import Failed, NotChecked, Passed, Result
from trainwarden.errors import (
    TrainWardenError,
    UsageError,
)
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    Approved,
    Entry,
    Sealed,
    SignedSeal,
)
from trainwarden.seal.seal import read_seal
from trainwarden.store import RunDir, Store


def check_key(given: str, first: Sealed | None) -> Result:
    """Does the log name the key that it is checked against?"""
    if not given:
        return NotChecked("checked against the key that the log itself names; give yours with --key")
    if first is not None and first.key != given:
        return Failed(f"the log names key {first.key}, expected {given}")
    return Passed(given)


def check_log(folder: RunDir, first: Sealed | None, key: str, damage: str) -> Result:
    """Do all entries lie under a head that the key signed, and is the log this run's?"""
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


def check_own_seal(folder: RunDir, first: Sealed, key: str) -> tuple[SignedSeal | None, Result]:
    """Is the seal beside the log signed, and the one that the log was begun for? The seal, where it is."""
    try:
        seal = read_seal(folder.seal_file, key)
    except TrainWardenError as e:
        return None, Failed(str(e))
    if seal.digest != first.seal:
        return None, Failed(f"the log was begun for seal {first.seal}, seal.json holds {seal.digest}")
    return seal, Passed(f"{seal.digest[:16]}…, signed by {len(seal.signatures)}")


def check_approvals(store: Store, seal: SignedSeal | None, entries: Sequence[Entry]) -> Result:
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
