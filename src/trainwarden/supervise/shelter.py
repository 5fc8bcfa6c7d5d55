"""The clean room of one run while it is lived in: how the command gets into it, and whether it still holds.

Rules
-----
* Before each start of a process the room's files are compared with the seal, and in a namespace every mount is
  looked at from outside, through `/proc/PID/root`; between starts the mounts are looked at once a second.
* A room that does not hold, or cannot be looked at, is a reason to refuse the next start (`EnvironmentGuard`).
* In a namespace the store's objects and rooms are read-only for the command too.

Trust: as `seal.live`. Between two looks, at most a second, a hole is not seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from trainwarden.errors import TrainWardenError
from trainwarden.model import CleanRoom, Confidence, Finding, Severity, SignedSeal
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.live import Kind, LiveRoom, altered, build_live_room, holes
from trainwarden.seal.manifest import path_text
from trainwarden.store import Store
from trainwarden.supervise.process import no_namespace

_LOOK_SECONDS = 1.0
_STARTING_SECONDS = 60.0
_NAMED = 3


class Shelter:
    """One command's clean room; `entered` tells the command's process id."""

    def __init__(self, store: Store, sealed: SignedSeal, room: LiveRoom, reason: str = "") -> None:
        self.room, self.reason = room, reason
        self._store, self._sealed = store, sealed
        self._pid = 0
        self._inside = threading.Event()
        self._stop = threading.Event()

    @classmethod
    def build(cls, store: Store, sealed: SignedSeal, command: LaunchCommand) -> Shelter:
        """Make the room: for a namespace where the kernel allows one, else as a copy.

        Raises:
            StoreError, StoreTampered, SealBroken, UsageError: as `build_live_room`.
        """
        reason = no_namespace((store.path / "rooms").resolve())
        room = build_live_room(store, sealed, command, Kind.COPY if reason else Kind.NAMESPACE)
        return cls(store, sealed, room, reason)

    def entry(self) -> CleanRoom:
        """What the log says of it."""
        room = self.room
        return CleanRoom(
            kind=room.kind,
            path=str(room.path),
            covered=tuple(map(path_text, room.covered)),
            left=tuple(map(path_text, room.left)),
            reason=self.reason,
            wall_ns=time.time_ns(),
        )

    def sentence(self) -> str:
        """What the user is told."""
        how = "a namespace" if self.room.kind is Kind.NAMESPACE else f"a private copy (no namespace: {self.reason})"
        left = f"; not in it, seen as they are: {', '.join(self.room.left)}" if self.room.left else ""
        return f"the command runs in a clean room, {how}{left}"

    def binds(self) -> tuple[tuple[str, str], ...]:
        """What the command's namespace shows where; empty for a copy."""
        if self.room.kind is Kind.COPY:
            return ()
        own = (str(self._store.path.resolve() / name) for name in ("objects", "rooms"))
        return (*self.room.binds, *((place, place) for place in own))

    def covers(self, path: str) -> bool:
        """Does the command see the room at this sealed path?"""
        return self.room.covers(path)

    def trouble(self) -> str:
        """Why the room does not hold now; empty when it does."""
        try:
            wrong = altered(self._store, self._sealed, self.room)
        except TrainWardenError as e:
            return f"the clean room could not be compared with the seal: {e}"
        if wrong:
            return f"the clean room is no longer what was sealed ({_named(wrong)})"
        return self._holes()

    def _holes(self) -> str:
        if self.room.kind is Kind.COPY:
            return ""
        if not self._inside.wait(_STARTING_SECONDS):
            return "the clean room could not be looked at: the command has not entered it"
        try:
            open_places = holes(self.room, self._pid)
        except OSError as e:
            return f"the clean room could not be looked at: {e}"
        return f"the clean room does not cover {_named(open_places)} any more" if open_places else ""

    def entered(self, pid: int, on_finding: Callable[[Finding], object]) -> None:
        """The command runs: look at the mounts until `leave`."""
        self._pid = pid
        self._inside.set()
        if self.room.kind is Kind.NAMESPACE:
            threading.Thread(target=self._follow, args=(on_finding,), daemon=True, name="trainwarden-room").start()

    def leave(self) -> None:
        """The command has ended."""
        self._stop.set()

    def _follow(self, on_finding: Callable[[Finding], object]) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                open_places = holes(self.room, self._pid)
            except OSError:
                continue  # it is ending; a start that asks meanwhile is refused
            if open_places and not self._stop.is_set():
                on_finding(_opened(open_places))
                return


def _opened(places: list[str]) -> Finding:
    return Finding(
        detector="environment",
        severity=Severity.HIGH,
        confidence=Confidence.HIGH,
        seen=f"The clean room does not cover {_named(places)} any more: it or a folder above was moved or removed.",
        expected="The command sees the sealed environment from the store until it ends.",
        benign=("somebody moved or deleted the shared environment while the job ran",),
        wall_ns=time.time_ns(),
    )


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
