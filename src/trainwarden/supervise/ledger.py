"""The one writer of a run's log: entries from every thread, grouped into durable appends.

Rules
-----
* Order: details are fsynced, then the leaves are appended in one durable `append`, then `done` is called.
  What is acknowledged from `done` is therefore durable.
* Entries that arrive while an append is under way form the next group (group commit), and a step record waits
  `GATHER_SECONDS` for those of other ranks, so the number of fsyncs follows the disk and the clock, and not the
  number of ranks. Any other entry, and whoever waits for the log, ends the waiting at once.
* When the log cannot be written, training goes on: entries wait in memory up to `MAX_WAITING` bytes, the
  append is tried again every `RETRY_SECONDS`, and what no longer fits is counted by rank and logged as a
  `Gap` once writing works. Nothing that was not written is ever acknowledged.
* A watcher (the detectors) sees every entry in log order after it became durable; its findings are entries
  too.
* A finding that names no entry (of the watcher itself, of what never became one) is given the newest ones of the ranks
  that it is of, or of its attempt, or else the first: the seal that the run stands on.
* This module is trusted with the order of the log and with nothing else: whoever controls it can leave
  entries out, and cannot change those under a signed tree head.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec

from trainwarden.errors import LogError, StoreError, TrainWardenError
from trainwarden.model import Detail, Entry, Finding, Gap, Stage, StepRecord, canonical
from trainwarden.supervise.details import DetailWriter

MAX_WAITING = 64 * 1024 * 1024
RETRY_SECONDS = 1.0
GATHER_SECONDS = 0.05
GATHER_BYTES = 4 * 1024 * 1024

Done = Callable[[int], None]
Details = Mapping[Stage, Detail]


class Log(Protocol):
    """What the ledger needs of a log: durable on return (`log.journal.LogWriter`)."""

    def append(self, entries: Sequence[bytes]) -> list[int]: ...


class Watcher(Protocol):
    """Sees every entry in log order; what it returns is logged as well (`detect.Engine`)."""

    def observe(self, index: int, entry: Entry, detail: Details | None) -> Iterable[Finding]: ...

    def finish(self) -> Iterable[Finding]: ...


class NoWatcher:
    """Watches nothing: for a run whose log is read later."""

    def observe(self, index: int, entry: Entry, detail: Details | None) -> Iterable[Finding]:
        return ()

    def finish(self) -> Iterable[Finding]:
        return ()


@dataclass(frozen=True)
class _Item:
    entry: Entry
    leaf: bytes
    details: Details | None
    done: Done | None

    @property
    def cost(self) -> int:
        tensors = sum(len(d.names) for d in self.details.values()) if self.details else 0
        return len(self.leaf) + 160 * tensors + 512


@dataclass
class _Loss:
    """Entries of one rank that could not be kept while the log was unwritable."""

    first: int = -1
    last: int = -1
    entries: int = 0


@dataclass
class _Counts:
    records: int = 0
    findings: list[Finding] = field(default_factory=list)


class Ledger:
    """Holds the log open for one run; `submit` from any thread, `close` once.

    `on_finding(index, finding)` is called for every finding once it is durable; `on_trouble(sentence, hint)` when
    the log stops or starts being writable. Both, and every `done`, are called from the writer's thread and may not
    submit.
    """

    def __init__(
        self,
        log: Log,
        details: Path,
        watcher: Watcher,
        on_finding: Callable[[int, Finding], None],
        on_trouble: Callable[[str, str], None],
        retry_seconds: float = RETRY_SECONDS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._log = log
        self._details = details
        self._watcher = watcher
        self._on_finding = on_finding
        self._on_trouble = on_trouble
        self._retry_seconds = retry_seconds
        self._max_waiting = max_waiting
        self._writers: dict[tuple[int, int], DetailWriter] = {}
        self._counts = _Counts()
        self._newest: dict[tuple[int, int], int] = {}  # (attempt, rank) → index of the newest entry about it
        self._lost: dict[tuple[int, int], _Loss] = {}
        self._trouble = ""
        self._failures = 0
        self._waiting: deque[_Item] = deque()
        self._bytes = 0
        self._urgent = False
        self._busy = False
        self._closing = False
        self._tried_last = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-ledger")
        self._thread.start()

    @property
    def records(self) -> int:
        """Step records that are durable."""
        return self._counts.records

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings that are durable, in the order of the log."""
        return tuple(self._counts.findings)

    def submit(self, entry: Entry, details: Details | None = None, done: Done | None = None) -> bool:
        """Queue an entry; `done(index)` is called once it is durable. False when it was lost and counted."""
        item = _Item(entry, canonical(entry), details, done)
        with self._changed:
            while self._bytes > self._max_waiting and not self._trouble and not self._closing:
                self._changed.wait()
            if self._bytes > self._max_waiting and self._trouble:
                self._count_lost(entry)
                return False
            self._waiting.append(item)
            self._bytes += item.cost
            if not isinstance(entry, StepRecord) or self._bytes > GATHER_BYTES:
                self._urgent = True
            self._changed.notify_all()
        return True

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything submitted so far is durable; False once writing has failed (again) or timed out."""
        with self._changed:
            failures = self._failures
            self._urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled() or self._failures > failures, timeout)
            return self._settled()

    def close(self, last: Callable[[int], Entry], settle: Callable[[], None] = lambda: None) -> bool:
        """Write what waits, `last(records)` and the watcher's last findings; False when the log refused.

        `settle` is called then, and may submit what was done about these findings.
        """
        self.flush()
        self.submit(last(self.records))
        whole = self.flush()
        for finding in self._watcher.finish() if whole else ():
            self.submit(finding)
        whole = self.flush() and whole
        settle()
        whole = self.flush() and whole
        self.stop()
        return whole

    def stop(self) -> None:
        """Stop writing, without an end to the log."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(60.0)
        for writer in self._writers.values():
            writer.close()

    def _settled(self) -> bool:
        return not self._waiting and not self._busy and not self._lost

    # -- the writer's thread

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            indexes = self._write(batch)
            if indexes is not None:
                self._after(batch, indexes)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _take(self) -> list[_Item] | None:
        """Everything that waits; None when the ledger closes. After a failed write it pauses first."""
        with self._changed:
            if self._trouble and not self._closing:
                self._changed.wait_for(lambda: self._closing, self._retry_seconds)
            self._changed.wait_for(lambda: self._waiting or self._lost or self._closing)
            if self._closing and (self._tried_last or not self._waiting):
                return None
            self._changed.wait_for(lambda: self._urgent or self._closing, GATHER_SECONDS)
            self._tried_last = self._closing
            self._urgent = False
            self._busy = True
            return list(self._waiting)

    def _write(self, batch: list[_Item]) -> list[int] | None:
        """Append the batch and take it off the queue; None when the disk refused and it all still waits."""
        with self._changed:
            gaps = [_gap(where, loss, self._trouble) for where, loss in self._lost.items()]
            counted = {where: loss.entries for where, loss in self._lost.items()}
        batch += [_Item(gap, canonical(gap), None, None) for gap in gaps]
        batch[:] = [self._grounded(item) for item in batch]
        try:
            self._write_details(batch)
            indexes = self._log.append([item.leaf for item in batch])
        except (LogError, StoreError) as e:
            self._refused(e)
            return None
        with self._changed:
            for item in batch[: len(batch) - len(gaps)]:
                self._waiting.popleft()
                self._bytes -= item.cost
            for where, entries in counted.items():
                if self._lost[where].entries == entries:
                    del self._lost[where]
            trouble, self._trouble = self._trouble, ""
            self._changed.notify_all()
        if trouble:
            self._on_trouble("The log can be written again.", "")
        return indexes

    def _grounded(self, item: _Item) -> _Item:
        finding = item.entry
        if not isinstance(finding, Finding) or finding.evidence or not self._newest:
            return item
        of_attempt = {rank: index for (attempt, rank), index in self._newest.items() if attempt == finding.attempt}
        known = [index for rank, index in of_attempt.items() if rank in (finding.ranks or of_attempt)]
        entry = msgspec.structs.replace(finding, evidence=tuple(sorted(known)) or (0,))
        return replace(item, entry=entry, leaf=canonical(entry))

    def _write_details(self, batch: list[_Item]) -> None:
        touched: set[tuple[int, int]] = set()
        for item in batch:
            entry = item.entry
            if isinstance(entry, StepRecord) and item.details:
                where = (entry.attempt, entry.rank)
                if where not in self._writers:
                    self._writers[where] = DetailWriter(self._details, *where)
                self._writers[where].append(entry.seq, item.details)
                touched.add(where)
        for where in touched:
            self._writers[where].sync()

    def _refused(self, error: TrainWardenError) -> None:
        with self._changed:
            first = not self._trouble
            self._failures += 1
            self._trouble = str(error)
            self._changed.notify_all()
        if first:
            sentence = f"The log cannot be written, and training goes on unrecorded: {error}"
            self._on_trouble(sentence, error.hint or "free some space; recording resumes by itself")

    def _after(self, batch: list[_Item], indexes: list[int]) -> None:
        for item, index in zip(batch, indexes, strict=True):
            if item.done is not None:
                item.done(index)
            if not isinstance(item.entry, Finding):
                where = getattr(item.entry, "attempt", -1), getattr(item.entry, "rank", -1)
                self._newest[where] = index
            if isinstance(item.entry, StepRecord):
                self._counts.records += 1
            elif isinstance(item.entry, Finding):
                self._counts.findings.append(item.entry)
                self._on_finding(index, item.entry)
            for finding in self._watcher.observe(index, item.entry, item.details):
                self._add(finding)

    def _add(self, finding: Finding) -> None:
        """A finding from the writer's own thread never waits for room."""
        item = _Item(finding, canonical(finding), None, None)
        with self._changed:
            self._waiting.append(item)
            self._bytes += item.cost
            self._urgent = True

    def _count_lost(self, entry: Entry) -> None:
        where = (getattr(entry, "attempt", -1), getattr(entry, "rank", -1))
        loss = self._lost.setdefault(where, _Loss())
        step = getattr(entry, "step", -1)
        loss.first = step if loss.entries == 0 else loss.first
        loss.last = step
        loss.entries += 1


def _gap(where: tuple[int, int], loss: _Loss, why: str) -> Gap:
    reason = f"{loss.entries} entries of steps {loss.first} to {loss.last} were lost: {why}"
    return Gap(attempt=where[0], rank=where[1], step=loss.first, reason=reason)
