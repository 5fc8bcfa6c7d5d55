"""What the gate's log and the runs' logs say of a serving name, and whether they went on as they began.

Rules
-----
* The gate's log is verified whole whenever it changed: every entry, every head, under the keeper's key.
* Its head must continue the last one that was seen (RFC 9162, 2.1.4.2), which is kept in a folder of its own, so that a
  log that was put back to an older state is found by a server that starts again too. The keeper's key of the first look
  is kept with it where settings name none.
* While the gate's log cannot be read or does not verify, what it said before holds, and the runs' logs are followed on.
* `stamp` is the heads of these logs as they lie on disk. A writer puts a head in place only when its entries are
  durable, so that an unchanged stamp means that nothing was acknowledged since.

Trust: the keeper's key, and the folder of the last head. An older state of everything at once, that folder included,
verifies; and a log that somebody keeps from growing looks like one to which nothing happens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec
from blake3 import blake3

from trainwarden.config import Config
from trainwarden.durable import hint_for, make_folder, write_atomically
from trainwarden.errors import (
    GateTampered,
    LogError,
    NotCleared,
    SignatureInvalid,
    StoreError,
    TrainWardenError,
    UsageError,
)
from trainwarden.gate.following import Follower, look_at, store_marks
from trainwarden.gate.ledger import read_gate
from trainwarden.gate.manifest import read_manifest
from trainwarden.gate.registry import Promotion, served
from trainwarden.log.reader import LogReader
from trainwarden.log.storage import HEAD
from trainwarden.model import CheckpointCleared, CheckpointManifest, GateBegun, GateEntry
from trainwarden.serving.offers import Offer, Version
from trainwarden.store import Store

_MOST = 64  # promotions of a name that are followed, the newest of them; what is older has to be promoted again
_Key: TypeAlias = tuple[str, int, str]


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gate's log at the last look: whose it is, how long it was, and its root then."""

    keeper: str
    size: int
    root: str


class GateCatalogue:
    """A serving name as the gate of a store has it; for one `Service`, which asks one question at a time."""

    def __init__(self, store: Store, name: str, config: Config) -> None:
        self._store, self._name, self._keeper = store, name, config.gate.keeper
        self._log = store.path / "gate" / "log"
        self._kept = state_file(store, config.serving.state)
        self._entries: tuple[GateEntry, ...] = ()
        self._entries_of: object = None
        self._followers: dict[_Key, Follower] = {}
        self._manifests: dict[str, CheckpointManifest] = {}
        self._heads: tuple[Path, ...] = ()  # of the runs that count

    def stamp(self) -> object:
        """The heads of the logs as they are on disk."""
        return (look_at(self._log / HEAD), *self._stamps_of_runs())

    def _stamps_of_runs(self) -> Iterator[object]:
        yield from map(look_at, self._heads)
        yield store_marks(self._store)

    def look(self) -> Offer:
        """Read what is new.

        Raises:
            GateTampered: the gate's log does not verify, went back, or is another one; never after a good look.
            NotCleared: there is no gate's log.
            UsageError: what was seen cannot be kept.
        """
        head, trouble = look_at(self._log / HEAD), ""
        if head != self._entries_of or head is None:
            try:
                self._entries, self._entries_of = self._read(), head
            except TrainWardenError as e:
                if not self._entries:
                    raise
                trouble, self._entries_of = str(e), None
        promotions = served(self._entries, self._name)[:_MOST]
        followers = self._follow(promotions)
        self._heads = tuple(dict.fromkeys(follower.head for follower in followers.values()))
        stamp = (head, *self._stamps_of_runs())
        troubles = {key: follower.look() for key, follower in followers.items()}
        versions = tuple(self._version(p, troubles) for p in promotions)
        return Offer(versions=versions, stamp=stamp, size=len(self._entries), trouble=trouble)

    def _read(self) -> tuple[GateEntry, ...]:
        """The entries, once they are known to continue what was seen."""
        seen = read_seen(self._kept)
        keeper = self._keeper or (seen.keeper if seen else "")
        entries = read_gate(self._store, keeper)
        if not entries or not isinstance(entries[0], GateBegun):
            if seen:
                raise GateTampered(f"the gate's log is gone; it had {seen.size} entries", hint=_EVIDENCE)
            raise NotCleared(f"nothing was promoted in {self._store.path}", hint="trainwarden promote NAME CHECKPOINT")
        try:
            with LogReader.open(self._log, entries[0].key) as log:
                if seen and seen.size:
                    check_continues(seen, log)
                new = Seen(keeper=entries[0].key, size=log.head.size, root=log.head.root)
        except (LogError, SignatureInvalid) as e:
            raise GateTampered(f"the gate's log does not verify: {e}", hint=_EVIDENCE) from e
        if new != seen:
            keep_seen(self._kept, new)
        return entries

    def _follow(self, promotions: tuple[Promotion, ...]) -> Mapping[_Key, Follower]:
        """A follower for each run of each clearance, those of earlier looks where they are the same."""
        needed = {
            _key(p.clearance, run.run): (run, p.clearance.findings) for p in promotions for run in p.clearance.runs
        }
        self._followers = {
            key: self._followers.get(key) or Follower(self._store, run, least) for key, (run, least) in needed.items()
        }
        return self._followers

    def _version(self, promotion: Promotion, troubles: Mapping[_Key, tuple[str, ...]]) -> Version:
        clearance = promotion.clearance
        against = [trouble for run in clearance.runs for trouble in troubles[_key(clearance, run.run)]]
        try:
            if promotion.digest not in self._manifests:
                self._manifests[promotion.digest] = read_manifest(self._store, promotion.digest)
        except StoreError as e:  # of this version alone: the others are served
            against.append(f"its manifest cannot be read: {e}")
        return Version(
            digest=promotion.digest,
            manifest=self._manifests.get(promotion.digest, CheckpointManifest(files=())),
            place=promotion.clearance.place,
            objects=str(self._store.objects),
            open=tuple(dict.fromkeys((*promotion.open, *against))),
        )


_EVIDENCE = "keep the store as evidence; what was cleared by the last good look goes on being served"


def _key(clearance: CheckpointCleared, run: str) -> _Key:
    """What tells followers apart: a checkpoint that is cleared anew is judged anew."""
    return clearance.digest, clearance.wall_ns, run


def state_file(store: Store, folder: str) -> Path:
    """Where the last seen head of this store's gate is kept."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    kept = Path(folder) if folder else base / "trainwarden"
    return kept / f"gate-{blake3(os.fsencode(store.path.resolve())).hexdigest()[:16]}.json"


def check_continues(seen: Seen, log: LogReader) -> None:
    """Check that the open log begins with what was seen.

    Raises:
        GateTampered: it is shorter, or says something else.
        LogError, SignatureInvalid: it does not verify.
    """
    if log.head.size < seen.size:
        raise GateTampered(f"the gate's log has {log.head.size} entries, {seen.size} were seen", hint=_EVIDENCE)
    root = log.root_at(seen.size).hex()
    if root != seen.root:
        raise GateTampered(
            f"the gate's log of {seen.size} entries had root {seen.root}, now that is {root}", hint=_EVIDENCE
        )


def read_seen(path: Path) -> Seen | None:
    """What was seen at the last look; None before the first.

    Raises:
        UsageError: the file is there and cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Seen)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as e:
        raise UsageError(
            f"{path} cannot be read: {e}", hint="[serving] state names a folder of the server's own"
        ) from e


def keep_seen(path: Path, seen: Seen) -> None:
    """Keep what was seen, durably.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        make_folder(path.parent, 0o700)
        write_atomically(path, msgspec.json.encode(seen))
    except OSError as e:
        hint = hint_for(e) or "[serving] state names a folder that the server may write and that outlives it"
        raise UsageError(f"cannot keep the last seen head in {path}: {e.strerror}", hint=hint) from e
