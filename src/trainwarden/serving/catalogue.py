"""What the gate's log and the runs' logs say of a serving name, and whether they went on as they began.

Rules
-----
* The gate's log is verified whole at the first look, and what was added to it at each later one: every entry, every
  head, under the keeper's key.
* Its head must continue the last one that was seen (RFC 9162, 2.1.4.2), which is kept in a folder of its own, so that a
  log that was put back to an older state is found by a server that starts again too. The keeper's key of the first look
  is kept with it where settings name none.
* Of a name's versions, the newest first, as many are looked at as it takes to have some that nothing is found against
  and that stand on different runs: however often it was promoted since, the last cleared one is found.
* While the gate's log cannot be read or does not verify, what it said before holds, and the runs' logs are followed on.
* `stamp` is the heads of these logs as they lie on disk. A writer puts a head in place only when its entries are
  durable, so that an unchanged stamp means that nothing was acknowledged since.

Trust: the keeper's key, and the folder of the last head. An older state of everything at once, that folder included,
verifies; and a log that somebody keeps from growing looks like one to which nothing happens.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import msgspec
from blake3 import blake3

from trainwarden.config import Config
from trainwarden.durable import hint_for, make_folder, write_atomically
from trainwarden.errors import GateTampered, NotCleared, StoreError, TrainWardenError, UsageError
from trainwarden.gate.following import Following, head_of, store_marks
from trainwarden.gate.ledger import GateLog
from trainwarden.gate.manifest import read_manifest
from trainwarden.gate.registry import Promotion, served
from trainwarden.log.storage import HEAD, look_at
from trainwarden.model import CheckpointManifest, GateBegun, GateEntry
from trainwarden.serving.offers import Offer, Version
from trainwarden.store import Store

_ENOUGH = 4  # versions with nothing against them, each standing on other runs than the others


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gate's log at the last look: whose it is, how long it was, and its root then."""

    keeper: str
    size: int
    root: str


class GateCatalogue:
    """A serving name as the gate of a store has it; for one `Service`, which asks one question at a time.

    `least` versions are looked at in any case, if there are so many.
    """

    def __init__(self, store: Store, name: str, config: Config, least: int = 1) -> None:
        self._store, self._name, self._keeper, self._least = store, name, config.gate.keeper, least
        self._enough = max(_ENOUGH, config.serving.keep)
        self._head = store.path / "gate" / "log" / HEAD
        self._kept = state_file(store, config.serving.state)
        self._gate, self._following = GateLog(store), Following(store)
        self._entries: tuple[GateEntry, ...] = ()
        self._entries_of: object = None
        self._manifests: dict[str, CheckpointManifest] = {}
        self._heads: tuple[Path, ...] = ()  # of the runs that count

    def stamp(self) -> object:
        """The heads of the logs as they are on disk."""
        return look_at(self._head), tuple(map(look_at, self._heads)), store_marks(self._store)

    def look(self, passed_over: Collection[str] = ()) -> Offer:
        """Read what is new.

        Raises:
            GateTampered: the gate's log does not verify, went back, or is another one; never after a good look.
            NotCleared: there is no gate's log.
            UsageError: what was seen cannot be kept.
        """
        head, marks, trouble = look_at(self._head), store_marks(self._store), ""
        if head != self._entries_of or head is None:
            try:
                self._entries, self._entries_of = self._read(), head
            except TrainWardenError as e:
                if not self._entries:
                    raise
                trouble, self._entries_of = str(e), None
        promotions = served(self._entries, self._name)
        self._following.look_again()
        versions, heads = self._looked_at(promotions, passed_over)
        self._heads = tuple(heads)
        self._following.keep([promotion.clearance for promotion in promotions])
        return Offer(
            versions=versions,
            stamp=(head, tuple(heads.values()), marks),
            size=len(self._entries),
            trouble=trouble,
            more=len(versions) < len(promotions),
        )

    def _looked_at(
        self, promotions: Collection[Promotion], passed_over: Collection[str]
    ) -> tuple[tuple[Version, ...], dict[Path, bytes | None]]:
        """As many versions as it takes, and the heads of their runs from before these were read."""
        versions: list[Version] = []
        heads: dict[Path, bytes | None] = {}
        free: set[frozenset[str]] = set()
        for promotion in promotions:
            if len(versions) >= self._least and len(free) >= self._enough:
                break
            for run in promotion.clearance.runs:
                path = head_of(self._store, run.run)
                heads.setdefault(path, look_at(path))
            versions.append(version := self._version(promotion))
            if not version.open and version.digest not in passed_over:
                free.add(version.runs)
        return tuple(versions), heads

    def _read(self) -> tuple[GateEntry, ...]:
        """The entries, once they are known to continue what was seen."""
        seen = read_seen(self._kept)
        entries = self._gate.look(self._keeper or (seen.keeper if seen else ""))
        if not entries or not isinstance(entries[0], GateBegun):
            if seen:
                raise GateTampered(f"the gate's log is gone; it had {seen.size} entries", hint=_EVIDENCE)
            raise NotCleared(f"nothing was promoted in {self._store.path}", hint="trainwarden promote NAME CHECKPOINT")
        if seen:
            check_continues(seen, self._gate, len(entries))
        new = Seen(keeper=entries[0].key, size=len(entries), root=self._gate.root(len(entries)))
        if new != seen:
            keep_seen(self._kept, new)
        return entries

    def _version(self, promotion: Promotion) -> Version:
        clearance, against = promotion.clearance, list(self._following.against(promotion.clearance))
        try:
            if promotion.digest not in self._manifests:
                self._manifests[promotion.digest] = read_manifest(self._store, promotion.digest)
        except StoreError as e:  # of this version alone: the others are served
            against.append(f"its manifest cannot be read: {e}")
        return Version(
            digest=promotion.digest,
            manifest=self._manifests.get(promotion.digest, CheckpointManifest(files=())),
            place=clearance.place,
            objects=str(self._store.objects),
            runs=frozenset(run.run for run in clearance.runs),
            open=tuple(dict.fromkeys((*promotion.open, *against))),
        )


_EVIDENCE = "keep the store as evidence; what was cleared by the last good look goes on being served"


def state_file(store: Store, folder: str) -> Path:
    """Where the last seen head of this store's gate is kept."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    kept = Path(folder) if folder else base / "trainwarden"
    return kept / f"gate-{blake3(os.fsencode(store.path.resolve())).hexdigest()[:16]}.json"


def check_continues(seen: Seen, log: GateLog, size: int) -> None:
    """Check that the log, of `size` entries, begins with what was seen.

    Raises:
        GateTampered: it is shorter, or says something else.
    """
    if size < seen.size:
        raise GateTampered(f"the gate's log has {size} entries, {seen.size} were seen", hint=_EVIDENCE)
    root = log.root(seen.size)
    if root != seen.root:
        now = root or "no head of that size"
        raise GateTampered(f"the gate's log of {seen.size} entries had root {seen.root}, now {now}", hint=_EVIDENCE)


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
