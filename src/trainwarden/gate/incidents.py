"""Open incidents hold back what stands on their runs: from the moment one is opened until it is closed.

Trust: as `custody.ledger`. A log of custody that does not verify holds everything back.
"""

from __future__ import annotations

from trainwarden.custody.ledger import read_custody
from trainwarden.errors import ActorsTampered, CustodyTampered
from trainwarden.model import IncidentStatus
from trainwarden.store import Store


def open_on(store: Store, run: str) -> tuple[str, ...]:
    """The open incidents that a run is part of, in words; () for none."""
    try:
        incidents = read_custody(store).incidents.values()
    except (CustodyTampered, ActorsTampered) as e:
        return (f"whether an incident is open on run {run} cannot be told: {e}",)
    return tuple(
        f"incident {i.id} is open on run {run}: {i.title or 'without a title'}"
        for i in incidents
        if i.status is IncidentStatus.OPEN and run in i.runs
    )
