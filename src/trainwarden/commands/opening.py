"""Opens a run for audit, explanation and recovery: a log that verifies, its record, and its clean room."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainwarden.audit.recorded import Recorded, recorded_of
from trainwarden.casefile import CaseFile, Intact, load_case
from trainwarden.commands.common import open_store
from trainwarden.errors import LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.model import Entry, canonical
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
    recorded = recorded_of(store, case)
    log = LogWriter.open(store.run(case.run).log, SigningKey.load())
    try:
        yield Opened(store, case, recorded, lambda entry: log.append([canonical(entry)]))
    finally:
        log.close()
