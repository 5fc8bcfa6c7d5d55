"""The gate's log on disk: one append-only Merkle log a store (`gate/log`), of the same form as a run's.

Rules
-----
* Its first entry names the keeper's key, which signs every tree head; nobody else appends.
* Only what follows is appended: the entries and the new one are folded while the log is held. Two who append at once
  do so one after the other, and the second sees what the first wrote.

Trust: whoever can write the store can put an older state of the whole log, or another keeper's, in its place. The
second shows where the keeper's key is given; the first by a head that was kept elsewhere (`log publish`, witnesses).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import msgspec

from trainwarden.errors import GateTampered, KeyUnusable, LogError, LogLocked, SignatureInvalid, UsageError
from trainwarden.gate.registry import fold
from trainwarden.keys import SigningKey
from trainwarden.log.following import LogFollower
from trainwarden.log.journal import LogWriter
from trainwarden.log.reader import LogReader
from trainwarden.log.storage import HEAD
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    CheckpointCleared,
    ClearanceRefused,
    GateBegun,
    GateEntry,
    Promoted,
    RolledBack,
    canonical,
    decode_gate_entry,
)
from trainwarden.store import Store, store_errors

ORIGIN = "trainwarden/gate"
_WAIT_SECONDS = 30.0  # for others who hold the log
_EVIDENCE = "keep the store as evidence; nothing is served by what it says"

E = TypeVar("E", CheckpointCleared, ClearanceRefused, Promoted, RolledBack)


def read_gate(store: Store, keeper: str = "") -> tuple[GateEntry, ...]:
    """The entries of the gate's log, verified against `keeper`, or the key that it names itself; () before the first.

    Raises:
        GateTampered: the log does not verify, or another keeper signed it.
    """
    place = folder(store)
    if not place.is_dir():
        return ()
    try:
        entries = _entries(place)
        if not entries:
            return ()
        named = entries[0].key if isinstance(entries[0], GateBegun) else ""
        if not named or (keeper and named != keeper):
            raise GateTampered(f"the gate's log is kept by {named or 'nobody'}, expected {keeper}", hint=_EVIDENCE)
        verify_log(place, named, ORIGIN)
    except (LogError, SignatureInvalid, msgspec.DecodeError) as e:
        raise GateTampered(f"the gate's log does not verify: {e}", hint=_EVIDENCE) from e
    fold(entries)
    return entries


class GateLog:
    """The gate's log while it grows: every entry is verified, and held against those before it, once."""

    def __init__(self, store: Store) -> None:
        self._folder = folder(store)
        self._log: LogFollower | None = None  # from the first good look on
        self._entries: list[GateEntry] = []

    def look(self, keeper: str = "") -> tuple[GateEntry, ...]:
        """All entries; () before the first.

        Raises:
            GateTampered: the log does not verify, does not continue what was read, or another keeper signed it.
        """
        if self._log is None and not self._folder.is_dir():
            return ()
        try:
            named, wanted = _named(self._folder), self._log.key if self._log else keeper
            if not named and self._log is None:
                return ()
            if not named or (wanted and named != wanted):
                raise GateTampered(f"the gate's log is kept by {named or 'nobody'}, expected {wanted}", hint=_EVIDENCE)
            self._read(named)
        except (LogError, SignatureInvalid, msgspec.DecodeError) as e:
            raise GateTampered(f"the gate's log does not verify: {e}", hint=_EVIDENCE) from e
        return tuple(self._entries)

    def root(self, size: int) -> str:
        """The root that the log had at that size, "" where no head of that size was ever kept."""
        return self._log.root(size) if self._log else ""

    def _read(self, key: str) -> None:
        log, entries = (self._log, self._entries) if self._log else (LogFollower(self._folder, key, ORIGIN), [])
        for batch in log.new():
            entries.extend([decode_gate_entry(frame.data) for frame in batch.entries])
        fold(entries)
        self._log, self._entries = log, entries


def append(store: Store, key: SigningKey, makes: Callable[[tuple[GateEntry, ...]], E]) -> E:
    """Append the entry that `makes` makes of all entries before it, and return it; what it raises appends nothing.

    Raises:
        KeyUnusable: `key` is not the keeper's.
        GateTampered: the log does not verify, or the entry does not follow.
        LogLocked, LogError, StoreError: it cannot be written.
    """
    place = folder(store)
    with store_errors(f"write the gate's log in {place}"):
        place.parent.mkdir(parents=True, exist_ok=True)
    with closing(_opened(place, key)) as log:
        if log.size == 0:
            log.append([canonical(GateBegun(key=key.public, wall_ns=time.time_ns()))])
        before: tuple[GateEntry, ...] = read_gate(store)
        entry = makes(before)
        fold([*before, entry])
        log.append([canonical(entry)])
    return entry


def _opened(place: Path, key: SigningKey) -> LogWriter:
    """The log held for writing; whoever holds it is waited for."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        begun = (place / HEAD).exists()
        try:
            return LogWriter.open(place, key) if begun else LogWriter.create(place, ORIGIN, key)
        except LogLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        except SignatureInvalid as e:
            raise KeyUnusable(
                f"the gate's log is not kept by your key: {e}", hint="ask its keeper, who alone clears and promotes"
            ) from e
        except LogError:
            if begun or not (place / HEAD).exists():  # else somebody began it meanwhile
                raise


def _named(place: Path) -> str:
    """The keeper's key that the log names, "" for none."""
    with LogReader.open(place) as log:
        first = next((decode_gate_entry(data) for _, data in log.entries()), None)
    return first.key if isinstance(first, GateBegun) else ""


def _entries(place: Path) -> tuple[GateEntry, ...]:
    with LogReader.open(place) as log:
        return tuple(decode_gate_entry(data) for _, data in log.entries())


def folder(store: Store) -> Path:
    """Where the gate's log lies."""
    return store.path / "gate" / "log"


def check_name(name: str) -> str:
    """A serving name.

    Raises:
        UsageError: it is none.
    """
    if not name or len(name) > 100 or not all((c.isalnum() and c.isascii()) or c in "-_./" for c in name):
        raise UsageError(f"{name[:80]!r} cannot name what is served", hint="letters, digits and - _ . /, at most 100")
    return name
