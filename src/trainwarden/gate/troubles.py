"""What became known against a cleared checkpoint since, and so what a name leads to now.

Rules
-----
* A clearance holds for the logs of its runs as they were. Each is looked at again: a log that is gone, was put back, or
  is signed by another key is a trouble, and so is a freeze, a divergence or a finding that came after. So is an open
  incident that one of the runs is part of.
* What could not be looked at is a trouble: nothing is served because nobody knew.
* A trouble is over when it is taken back (`contain --undo`, `incident close`), or when the checkpoint is cleared anew.

Trust: the logs of the runs by the keys that the clearance names.
"""

from __future__ import annotations

from trainwarden.gate.following import Following
from trainwarden.gate.ledger import read_gate
from trainwarden.gate.registry import Promotion, served
from trainwarden.model import CheckpointCleared
from trainwarden.store import Store


def look_up(store: Store, name: str, keeper: str = "") -> tuple[Promotion, ...]:
    """What may be served under a name now, the newest first, and what is open on each; () for a name that nobody
    promoted. Whoever serves takes the first with nothing open.

    Raises:
        GateTampered: the gate's log does not verify (against `keeper`, if given).
    """
    entries, following = read_gate(store, keeper), Following(store)
    troubles = {p.digest: following.against(p.clearance) for p in served(entries, name)} if entries else {}
    return served(entries, name, troubles)


def against(store: Store, clearance: CheckpointCleared) -> tuple[str, ...]:
    """What became known against a checkpoint since it was cleared; () for nothing."""
    return Following(store).against(clearance)
