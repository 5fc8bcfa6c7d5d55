"""What policy demands for a finding (pure).

Rules
-----
* Each detector has one action; those that the policy does not name have that of `default`, which is to alert.
* A finding of severity info never acts: it says what was not checked, or that something is as it should be.
* A detector that nobody knows is an error before anything is started: a policy with a slip of the pen protects nobody.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping

from trainwarden.errors import UsageError
from trainwarden.model import Action, Finding, Severity

DEFAULT = "default"
_NAMED = 3


def action_by(table: Mapping[str, Action], detectors: Collection[str]) -> Callable[[Finding], Action]:
    """The action that `table` demands for a finding, where `detectors` are all that there are.

    Raises:
        UsageError: the table names a detector that is not among them.
    """
    known = {DEFAULT, *detectors}
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=_NAMED, cutoff=0.5)
            raise UsageError(
                f"[policy.detectors] names {name!r}, which is no detector",
                hint=f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(known))}",
            )
    others = table.get(DEFAULT, Action.ALERT)

    def action_of(finding: Finding) -> Action:
        return Action.NOTE if finding.severity is Severity.INFO else table.get(finding.detector, others)

    return action_of
