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

from trainwarden.casefile import read_entries
from trainwarden.checks.begun import check_approvals, check_key, check_log, check_own_seal
from trainwarden.checks.elsewhere import check_cosigned, check_log_servers, check_witnesses
from trainwarden.checks.files import check_checkpoints, check_objects
from trainwarden.checks.records import check_details, check_draws, check_records
from trainwarden.checks.results import Check, Failed, LogServer, NotChecked, Passed, Progress, Result
from trainwarden.model import Sealed, UnitsDrawn
from trainwarden.store import Store

__all__ = [
    "Check",
    "Failed",
    "LogServer",
    "NotChecked",
    "Passed",
    "Result",
    "check_cosigned",
    "check_witnesses",
    "verify_run",
]

_AFTER_LOG = ("seal", "approvals", "records", "details", "checkpoints", "stored objects")


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
    checks = [Check("key", check_key(public_key, first)), Check("log", check_log(folder, first, key, damage))]
    if first is None or not isinstance(checks[1].result, Passed):
        checks += [Check(name, NotChecked("the log does not verify")) for name in _AFTER_LOG]
        return checks + check_log_servers(folder, key, log_server, tell)
    seal, result = check_own_seal(folder, first, key)
    checks.append(Check("seal", result))
    checks.append(Check("approvals", check_approvals(store, seal, entries)))
    checks.append(Check("records", check_records(entries)))
    if any(isinstance(e, UnitsDrawn) for e in entries):
        checks.append(Check("draws", check_draws(first.run, entries)))
    tell("details")
    checks.append(Check("details", check_details(folder, entries)))
    tell("checkpoints")
    checks.append(Check("checkpoints", check_checkpoints(store, entries)))
    tell("stored objects")
    checks.append(Check("stored objects", check_objects(store, seal, entries, deep)))
    return checks + check_log_servers(folder, key, log_server, tell)
