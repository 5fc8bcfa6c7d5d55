"""What witnesses and log servers keep of a run, against the log at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_never

import msgspec

from trainwarden.casefile import read_entries
from trainwarden.checks.results import Check, Failed, LogServer, NotChecked, Passed, Progress, Result
from trainwarden.errors import (
    LogError,
    LogUnreachable,
    SignatureInvalid,
    TrainWardenError,
)
from trainwarden.log.client.link import HttpTransport
from trainwarden.log.client.state import Target, targets
from trainwarden.log.client.verify import verify_shipped
from trainwarden.log.cosignature import Cosignature, TooFew
from trainwarden.log.cosignature import Enough as Cosigned
from trainwarden.log.policy import NONE, Policy
from trainwarden.log.reader import LogReader
from trainwarden.log.witnessed import OlderHead, RolledBack, Witnessed, judge_cosigned, read_cosigned
from trainwarden.model import (
    Sealed,
)
from trainwarden.store import RunDir, Store


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


def check_log_servers(folder: RunDir, key: str, asked: LogServer | None, tell: Progress) -> list[Check]:
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
