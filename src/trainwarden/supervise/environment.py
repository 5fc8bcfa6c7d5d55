"""Is what a starting process would import still what was sealed?

Rules
-----
* Asked by every Python process before it imports torch. The answer comes from a comparison of the disk with the
  seal that is at most `FRESH_SECONDS` old, so that all ranks of one start share it, and from what the watch on
  the files saw until now. An edit between the answer and the import is not prevented; the watch tells of it.
* The walk that made the seal is such a comparison of the environment if the watch missed nothing since it began
  (`seal.walked` says why); its age counts from then. Code and data are compared once more: not all of their folders
  are watched.
* Under the policy `refuse`, a changed environment file stops the start, and so does an environment that cannot be
  checked. Changed code and data are told and never refused: people edit their code while it trains.
* In a clean room a change of what the room covers is told and no reason to refuse: the process does not see it. A
  room that no longer holds is one.
* A log that the job appends to is told as grown: its name says that it is one, or it is text by its name and the kernel
  says that a rank of this run wrote it; all that was sealed is still its beginning, and no rank has told that it reads
  it. When a rank reads it later, it is a changed file like any other.
* Every change is logged once for each content found, and its bytes are kept in the object store; of a code or data
  file that goes on changing (a log beside the code) after the first `FREELY` contents at most one in `SELDOM` seconds.
  Who wrote it is added where the kernel told (`writers.py`), else the reason why that is not known.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from trainwarden.errors import TrainWardenError
from trainwarden.model import Confidence, FileChanged, Finding, Gap, Severity, Writer
from trainwarden.seal.check import KINDS
from trainwarden.seal.manifest import path_real
from trainwarden.store import Store
from trainwarden.supervise.ledger import Ledger

FRESH_SECONDS = 2.0
FREELY = 8
SELDOM = 60.0
_NAMED = 3  # changed files named in a refusal
_LOG = re.compile(r"(?i).*\.(log|out|err)|.*(log|loss|metric|history|progress|track).*\.(txt|jsonl|csv|tsv)")
_TEXT = re.compile(r"(?i).*\.(log|out|err|txt|jsonl|csv|tsv)")
_CHUNK = 1 << 20  # bytes


class Room(Protocol):
    """A clean room that the processes run in (`shelter.Shelter`)."""

    def covers(self, path: str) -> bool: ...

    def trouble(self) -> str: ...


class Watch(Protocol):
    """The watch on the sealed files (`seal.watch.FileWatch`)."""

    @property
    def since(self) -> float: ...

    def settle(self) -> None: ...


class EnvironmentGuard:
    """Knows which sealed files differ now: `begin` and `check` compare the disk, `changed` is told by the watch."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        check: Callable[[Sequence[str]], Sequence[FileChanged]],
        *,
        refuse: bool,
        shelter: Room | None = None,
        fresh_seconds: float = FRESH_SECONDS,
        writer: Callable[[str], Writer | str] = lambda _: "",
        was_rank: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._writer, self._was_rank = writer, was_rank
        self._store, self._ledger, self._check, self._refuse = store, ledger, check, refuse
        self._shelter = shelter
        self._fresh_seconds = fresh_seconds
        self._checking = threading.Lock()
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._watch: Watch | None = None
        self._current: dict[str, FileChanged] = {}
        self._indexes: dict[tuple[str, str], int] = {}
        self._grown: dict[str, FileChanged] = {}  # logs that were told as such
        self._read: set[str] = set()  # sealed files that ranks read
        self._told: dict[str, tuple[int, float]] = {}  # code and data: path → contents logged, when last

    def changed(self, change: FileChanged) -> None:
        """A sealed file is no longer what was sealed: keep its bytes and log it, once for each content."""
        seen = (change.path, change.found)
        with self._lock:
            self._current[change.path] = change
            if seen in self._indexes or self._too_often(change):
                return
            self._indexes[seen] = -1
        if change.found:
            self._keep(change)
        told = self._writer(path_real(change.path))
        if self._has_grown(change, told):
            change = msgspec.structs.replace(change, grown=True)
        if isinstance(told, Writer):
            change = msgspec.structs.replace(change, writer=told)
        else:
            change = msgspec.structs.replace(change, untold=told)
        with self._lock:
            if change.grown and change.path in self._read:
                change = msgspec.structs.replace(change, grown=False)
            elif change.grown:
                self._grown[change.path] = change
        self._ledger.submit(change, done=lambda index: self._indexes.__setitem__(seen, index))

    def was_read(self, path: str) -> None:
        """A rank reads this sealed file: what was told of it as the growth of a log is told as a change."""
        with self._lock:
            self._read.add(path)
            grown = self._grown.pop(path, None)
        if grown is not None:
            self._ledger.submit(msgspec.structs.replace(grown, grown=False, wall_ns=time.time_ns()))

    def _has_grown(self, change: FileChanged, writer: Writer | str) -> bool:
        """Is this a log beside the code that has only become longer?"""
        if change.kind != "code" or not change.sealed or not change.found or change.path in self._read:
            return False
        name = change.path.rpartition("/")[2]
        own = isinstance(writer, Writer) and self._was_rank(writer.pid)
        if not (_TEXT if own else _LOG).fullmatch(name) or not self._store.has(change.sealed):
            return False
        now = self._store.object_path(change.found) if self._store.has(change.found) else Path(path_real(change.path))
        try:
            return _begins_with(now, self._store.object_path(change.sealed))
        except OSError:
            return False

    def _too_often(self, change: FileChanged) -> bool:
        """Whether this file's changes are only sampled by now."""
        if change.kind == "environment":
            return False
        times, last = self._told.get(change.path, (0, 0.0))
        if times >= FREELY and time.monotonic() - last < SELDOM:
            return True
        self._told[change.path] = times + 1, time.monotonic()
        return False

    def begin(self, watch: Watch) -> None:
        """The first comparison, with the watch set. Of the environment, its seal's own walk may be one.

        Raises:
            TrainWardenError: the comparison is not possible.
        """
        self._watch = watch
        watch.settle()
        if self._is_fresh(watch.since):
            self._compare(("code", "data"))
            self._checked_at = watch.since
        self.check()

    def check(self) -> None:
        """Compare the disk with the seal, unless that was just done.

        Raises:
            TrainWardenError: the comparison is not possible.
        """
        with self._checking:
            if not self._is_fresh(self._checked_at):
                self._compare(KINDS)
                self._checked_at = time.monotonic()

    def _is_fresh(self, at: float) -> bool:
        return time.monotonic() - at < self._fresh_seconds

    def _compare(self, kinds: Sequence[str]) -> None:
        with self._lock:
            before = {path: change for path, change in self._current.items() if change.kind in kinds}
        found = {change.path: change for change in self._check(kinds)}
        with self._lock:  # what the watch told meanwhile stays
            for path, change in before.items():
                if self._current.get(path) is change:
                    del self._current[path]
        for change in found.values():
            self.changed(change)

    def may_start(self) -> str:
        """Why a process may not start now; empty when it may."""
        try:
            if self._watch is not None:
                self._watch.settle()
            self.check()
        except TrainWardenError as e:
            reason = f"the environment could not be compared with the seal: {e}"
            self._ledger.submit(Gap(attempt=-1, rank=-1, step=-1, reason=reason))
            return reason if self._refuse else ""
        with self._lock:
            changes = [c for c in self._current.values() if c.kind == "environment" and not self._is_covered(c)]
        if not self._refuse:
            return ""
        reason = _refusal(changes) if changes else self._shelter.trouble() if self._shelter else ""
        if reason:
            self._tell(changes, reason)
        return reason

    def _is_covered(self, change: FileChanged) -> bool:
        return self._shelter is not None and self._shelter.covers(path_real(change.path))

    def _tell(self, changes: Sequence[FileChanged], reason: str) -> None:
        self._ledger.flush(5.0)
        evidence = (self._indexes.get((c.path, c.found), -1) for c in changes)
        finding = Finding(
            detector="environment",
            severity=Severity.HIGH,
            confidence=Confidence.HIGH,
            seen=f"A process was not allowed to start: {reason}.",
            expected="Every file that can be imported is the sealed one when a process starts.",
            evidence=tuple(sorted(i for i in evidence if i >= 0)),
            benign=("somebody installed or upgraded a package in this environment while the job ran",),
            wall_ns=time.time_ns(),
        )
        self._ledger.submit(finding)

    def _keep(self, change: FileChanged) -> None:
        try:
            self._store.put_file(Path(path_real(change.path)))
        except TrainWardenError as e:
            reason = f"the changed file {change.path} could not be kept: {e}"
            self._ledger.submit(Gap(attempt=-1, rank=-1, step=-1, reason=reason))


def _begins_with(longer: Path, shorter: Path) -> bool:
    """Are all bytes of one file the beginning of the other?"""
    with longer.open("rb") as whole, shorter.open("rb") as beginning:
        while part := beginning.read(_CHUNK):
            if whole.read(len(part)) != part:
                return False
    return True


def _refusal(changes: Sequence[FileChanged]) -> str:
    named = ", ".join(sorted(c.path for c in changes)[:_NAMED])
    more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    count = "1 sealed environment file has" if len(changes) == 1 else f"{len(changes)} sealed environment files have"
    return f"{count} changed since the seal ({named}{more})"
