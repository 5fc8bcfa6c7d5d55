"""Opens a run for audit, explanation and recovery: a log that verifies, its record, and its clean room."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainwarden.audit.recorded import Recorded
from trainwarden.casefile import CaseFile, Intact, load_case, read_entries
from trainwarden.commands.common import open_store
from trainwarden.errors import CannotDecide, LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import Entry, Sealed, canonical
from trainwarden.seal.room import Room, build_room
from trainwarden.store import Store


class Opened:
    """A run held open: its case, its record, and its log for appending."""

    def __init__(self, store: Store, case: CaseFile, recorded: Recorded, append: Callable[[Entry], object]) -> None:
        self.store, self.case, self.recorded, self.append = store, case, recorded, append

    def room(self) -> Room:
        """The clean room of the run's seal. Raises StoreError, StoreTampered, CannotDecide."""
        return build_room(self.store, self.recorded.seal)


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Opened]:
    """Open `args.run` for replay, with its log locked for appending.

    Raises:
        UsageError: there is no such run.
        LogTampered: its log does not verify; nothing is concluded from it.
        LogLocked: the run is still going, or another audit holds it.
        KeyUnusable, SignatureInvalid: the log cannot be continued with this key.
    """
    store = open_store(args)
    case = load_case(store, args.run_name)
    if not isinstance(case.state, Intact):
        raise LogTampered(
            f"the log of run {case.run} does not verify: {case.state.reason}",
            hint=f"trainwarden verify {case.run} says what is wrong; nothing is audited from a log that was altered",
        )
    if case.seal is None:
        raise CannotDecide(f"run {case.run} has no readable seal", hint=f"trainwarden verify {case.run}")
    folder = store.run(case.run)
    earlier = earlier_entries(store, case.sealed.parent)
    log = LogWriter.open(folder.log, SigningKey.load())
    try:
        recorded = Recorded(store, folder, case.seal, case.entries, earlier)
        yield Opened(store, case, recorded, lambda entry: log.append([canonical(entry)]))
    finally:
        log.close()


def earlier_entries(store: Store, parent: str) -> list[Entry]:
    """The entries of the run that another recovers, and of those before it, oldest first."""
    earlier: list[Entry] = []
    while parent:
        entries, _ = read_entries(store.run(parent))
        earlier = [*entries, *earlier]
        parent = next((e.parent for e in entries if isinstance(e, Sealed)), "")
    return earlier
