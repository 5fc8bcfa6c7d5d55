"""Open incidents hold back what stands on their runs: from the moment one is opened until it is closed.

Trust: as `custody.ledger`. A log of custody that does not verify, or got shorter between two looks, holds everything
back.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainwarden.custody.folding import Custody
from trainwarden.custody.ledger import folder, read_custody
from trainwarden.errors import ActorsTampered, CustodyTampered
from trainwarden.log.storage import HEAD, look_at
from trainwarden.model import Incident, IncidentStatus
from trainwarden.store import Store


class Incidents:
    """The open incidents of a store as of one look; read again at a later one if the log of custody changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looked, self._trouble = False, ""
        self._read_at: bytes | None = None
        self._open: Sequence[Incident] = ()
        self._size = 0

    def look_again(self) -> None:
        """From here on a new look."""
        self._looked = False

    def open_on(self, run: str) -> tuple[str, ...]:
        """Those that a run is part of, in words; () for none."""
        if not self._looked:
            self._trouble, self._looked = self._look(), True
        if self._trouble:
            return (f"whether an incident is open on run {run} cannot be told: {self._trouble}",)
        return tuple(
            f"incident {i.id} is open on run {run}: {i.title or 'without a title'}" for i in self._open if run in i.runs
        )

    def _look(self) -> str:
        head = look_at(folder(self._store) / HEAD)
        if head is not None and head == self._read_at:
            return ""
        self._read_at = None
        try:
            self._read(read_custody(self._store))
        except (CustodyTampered, ActorsTampered) as e:
            return str(e)
        self._read_at = head
        return ""

    def _read(self, custody: Custody) -> None:
        if custody.size < self._size:
            raise CustodyTampered(f"the log of custody has {custody.size} entries, {self._size} were seen")
        self._open = [i for i in custody.incidents.values() if i.status is IncidentStatus.OPEN]
        self._size = custody.size
