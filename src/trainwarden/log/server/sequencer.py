"""Puts what many hosts send into one order and commits it in groups.

Rules
-----
* One thread decides and writes. It takes what is waiting (up to a bound), commits it as one batch, brings the run
  index up to it, and only then answers.
* A request is taken whole or refused whole. Known items get their old index; another item under a known number is
  a conflict, kept as evidence; a number too far ahead is answered with the one expected.
* The queue is bounded in requests and bytes: what does not fit is refused at once with 429, to be sent again.
* After a failure nothing is judged before log and index are in agreement again.

No clock decides anything here: order is the order of arrival, and time is only measured.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TypeAlias

import msgspec
from blake3 import blake3

from trainwarden.errors import LogError, LogFenced, LogTampered, RequestRefused, TrainWardenError
from trainwarden.log.protocol import Append, Appended, entry_bytes, entry_digest
from trainwarden.log.server.index import Logged, RunIndex, logged
from trainwarden.log.server.metrics import Metrics
from trainwarden.log.server.tilelog import TileLog

MAX_WAITING = 4096
MAX_WAITING_BYTES = 256 * 1024 * 1024
MAX_GROUP_BYTES = 32 * 1024 * 1024
MAX_GROUP_ITEMS = 8192

Known: TypeAlias = Mapping[int, tuple[int, bytes]]


class Waiting(msgspec.Struct, frozen=True, eq=False):
    """A request in the queue, its size in bytes, and where its answer goes."""

    append: Append
    size: int
    answer: Future[Appended]


class Group(msgspec.Struct):
    """What one batch is made of, while it is put together."""

    first_index: int
    entries: list[bytes] = msgspec.field(default_factory=list)
    objects: dict[str, bytes] = msgspec.field(default_factory=dict)
    numbers: dict[tuple[str, str], int] = msgspec.field(default_factory=dict)
    taken: dict[tuple[str, str, int], tuple[int, bytes]] = msgspec.field(default_factory=dict)

    def take(self, append: Append, known: Known) -> tuple[int, ...]:
        """Put a request's new items into the group; the indexes of all its items.

        `known` has the items that the index has of it; `numbers` must have what its run expects next.

        Raises:
            RequestRefused: a gap, or a conflict (409); the group is as before.
        """
        run = (append.host, append.run)
        expected = self.numbers[run]
        if append.items and append.first > expected:
            raise RequestRefused(
                f"item {append.first} of {append.host}'s run {append.run} leaves a gap: expected {expected}",
                hint="send the items from the expected number on",
                status=409,
                expected=expected,
            )
        entries = [entry_bytes(*run, seq, item) for seq, item in enumerate(append.items, append.first)]
        old = entries[: max(0, expected - append.first)]
        indexes = [self._same(append, seq, entry, known) for seq, entry in enumerate(old, append.first)]
        for seq in range(append.first + len(old), append.first + len(entries)):
            entry, item = entries[seq - append.first], append.items[seq - append.first]
            indexes.append(self.first_index + len(self.entries))
            self.taken[(*run, seq)] = (indexes[-1], entry_digest(entry))
            self.entries.append(entry)
            if item.object:
                self.objects[blake3(item.object).hexdigest()] = item.object
            self.numbers[run] = seq + 1
        return tuple(indexes)

    def _same(self, append: Append, seq: int, entry: bytes, known: Known) -> int:
        before = self.taken.get((append.host, append.run, seq)) or known.get(seq)
        if before is None:
            raise LogError(f"the run index lacks item {seq} of {append.host}'s run {append.run}", hint="rebuild it")
        index, digest = before
        if digest != (given := entry_digest(entry)):
            raise RequestRefused(
                f"item {seq} of {append.host}'s run {append.run} was logged as {digest.hex()} (entry {index}), "
                f"now it is given as {given.hex()}",
                hint="the host's log was rewritten, or two processes send under one name; both are kept as evidence",
                status=409,
                expected=self.numbers[(append.host, append.run)],
                logged=digest.hex(),
                given=given.hex(),
            )
        return index


class Sequencer:
    """The writing thread and its queue."""

    def __init__(self, log: TileLog, index: RunIndex, metrics: Metrics) -> None:
        self._log, self._index, self._metrics = log, index, metrics
        self._queue: queue.Queue[Waiting | None] = queue.Queue()
        self._guard = threading.Lock()
        self._bytes = self._count = 0
        self._closed = False
        self._agreed = False
        self.failure: TrainWardenError | None = None
        self._thread = threading.Thread(target=self._run, name="sequencer", daemon=True)

    def start(self) -> None:
        """Bring the index up to the log and begin to work.

        Raises:
            LogError: they do not agree, or cannot be read.
        """
        self._agree()
        self._thread.start()

    def submit(self, append: Append, size: int) -> Future[Appended]:
        """Queue a request of that many bytes; the future has the answer, or the error.

        Raises:
            RequestRefused: the queue is full (429), or the server stops (503).
        """
        with self._guard:
            if self._closed:
                raise RequestRefused("the log server is stopping", hint="send it again", status=503)
            if self._count >= MAX_WAITING or (self._count and self._bytes + size > MAX_WAITING_BYTES):
                raise RequestRefused(
                    f"{self._count} requests of {self._bytes} bytes are waiting", hint="send it again later", status=429
                )
            self._count, self._bytes = self._count + 1, self._bytes + size
            waiting = Waiting(append, size, Future())
            waiting.answer.set_running_or_notify_cancel()  # who stops listening does not stop the commit
            self._queue.put(waiting)
        self._metrics.waiting.set(self._count)
        return waiting.answer

    def close(self) -> None:
        """Take no more, commit what waits, and end the thread."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> int:
        """Wait for requests and commit one batch of them; how many were answered, 0 at the end."""
        group = self._next()
        if group:
            self._commit(group)
            with self._guard:
                self._count, self._bytes = self._count - len(group), self._bytes - sum(w.size for w in group)
            self._metrics.waiting.set(self._count)
        return len(group)

    def _run(self) -> None:
        while self.step():
            pass

    def _next(self) -> list[Waiting]:
        """What waits now, within the bounds of a batch; nothing at the end."""
        first = self._queue.get()
        if first is None:
            return []
        group, size, items = [first], first.size, len(first.append.items)
        while size < MAX_GROUP_BYTES and items < MAX_GROUP_ITEMS:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._queue.put(None)
                break
            group.append(waiting)
            size, items = size + waiting.size, items + len(waiting.append.items)
        return group

    def _commit(self, group: Sequence[Waiting]) -> None:
        begin = time.perf_counter()
        try:
            self._agree()
            batch, answers = self._judge(group)
            head = self._write(batch)
        except TrainWardenError as e:
            self._fail(group, e)
            return
        except Exception as e:  # noqa: BLE001  the thread must outlive what nobody thought of; nothing is acknowledged
            self._fail(group, LogError(f"a defect of the log server: {e!r}"))
            return
        self.failure = None
        self._metrics.committed(time.perf_counter() - begin, len(batch.entries), self._log.head.size)
        for waiting, answer in zip(group, answers, strict=True):
            if isinstance(answer, RequestRefused):
                waiting.answer.set_exception(answer)
            else:
                number = batch.numbers[(waiting.append.host, waiting.append.run)]
                waiting.answer.set_result(Appended(indexes=answer, head=head, acknowledged=number))

    def _judge(self, group: Sequence[Waiting]) -> tuple[Group, list[tuple[int, ...] | RequestRefused]]:
        batch = Group(self._log.head.size)
        answers: list[tuple[int, ...] | RequestRefused] = []
        for append in (waiting.append for waiting in group):
            run, last = (append.host, append.run), append.first + len(append.items)
            if run not in batch.numbers:
                batch.numbers[run] = self._index.next_number(*run)
            old = append.items and append.first < batch.numbers[run]
            try:
                answers.append(batch.take(append, self._index.known(*run, append.first, last) if old else {}))
            except RequestRefused as e:
                answers.append(e)
        return batch, answers

    def _write(self, batch: Group) -> str:
        if not batch.entries:
            return self._log.head.note
        self._agreed = False
        head = self._log.append(batch.entries, batch.objects)
        rows: list[Logged] = [logged(i, entry) for i, entry in enumerate(batch.entries, batch.first_index)]
        self._index.add(rows, head)
        self._agreed = True
        return head.note

    def _agree(self) -> None:
        if not self._agreed:
            self._log.settle()
            self._index.catch_up(self._log)
            self._agreed = True

    def _fail(self, group: Sequence[Waiting], error: TrainWardenError) -> None:
        self._agreed, self.failure = False, error
        self._metrics.failures.inc()
        what = "it must be looked at" if isinstance(error, (LogFenced, LogTampered)) else "send it again"
        refused = RequestRefused(f"not acknowledged: {error}", hint=f"{what}; {error.hint}".rstrip("; "), status=503)
        for waiting in group:
            waiting.answer.set_exception(refused)
