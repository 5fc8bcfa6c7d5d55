"""What ranks draw from their data loaders, judged here: the order re-derived, each sample compared with what it was.

Rules
-----
* Ranks tell indexes and digests with every batch; none of that is logged. Logged are what is wrong (`DataDiffers`) and
  of each loader its first pass, passes whose settings are new, and passes 2, 4, 8, … with their coverage (`PassSeen`).
* Judged in a thread of its own: neither training nor the log waits for it.
* The facts of a sampler are the rank's word. That the indexes follow from them is checked here, with an
  implementation of our own; that the seed is an approved one is for the detector to say.
"""

from __future__ import annotations

import queue
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from trainwarden import wire
from trainwarden.errors import StoreError
from trainwarden.model import DataDiffers, Entry, Gap
from trainwarden.store import RunDir
from trainwarden.supervise import samples
from trainwarden.supervise.ledger import Ledger
from trainwarden.supervise.order import MOST_SAMPLES, At, Permutation, Permutations, distributed, drawn_seed, from_state
from trainwarden.supervise.passes import (
    ENOUGH,
    MOST_TOLD,
    DataSeen,
    DrawnPass,
    TensorPart,
    hold,
    located,
    settings_of,
    varying,
)
from trainwarden.supervise.rows import RowFile, Rows
from trainwarden.supervise.samples import Table, differing

MOST_WAITING = 4_096
MOST_PASSES = 64  # open at once for each rank
MOST_TABLES = 16
MOST_LOGGED = 65_536  # settings of passes that are logged
AUGMENTED = 0.05  # share of samples that differ above which it is random augmentation
LOCATED = 32  # samples in a row that show that a class hands out a part of an order that is known
COPIES = 0.3  # share of copies among the samples of a data set that is told


@dataclass(frozen=True)
class _Told:
    attempt: int
    rank: int
    step: int
    message: wire.Pass | wire.Given


class InputDesk:
    """Judges passes over data loaders; `manifest` is the sealed table that samples are compared with."""

    def __init__(self, ledger: Ledger, run: RunDir, manifest: Table | None = None) -> None:
        self._ledger, self._run, self._manifest = ledger, run, manifest
        self._permutations = Permutations()
        self._passes: dict[tuple[int, int], OrderedDict[int, DrawnPass]] = {}
        self._logged: dict[tuple[int, int, object], int] = {}  # rank and settings → passes
        self._located: set[tuple[int, int, object]] = set()  # classes that handed out a known order before
        self._listed = 0  # samples compared with the manifest
        self._expected = False
        self._data: OrderedDict[tuple[object, ...], DataSeen] = OrderedDict()
        self._told: dict[tuple[int, int, str], int] = {}
        self._queue: queue.Queue[_Told | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._missed = 0
        self._rows: RowFile | None = RowFile(run.private)

    def seen(self, attempt: int, rank: int, step: int, message: wire.Pass | wire.Given) -> None:
        """A rank told of a pass or a batch at a step of the job."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-inputs")
                self._thread.start()
        try:
            self._queue.put_nowait(_Told(attempt, rank, step, message))
        except queue.Full:
            self._missed += 1

    def joined(self) -> None:
        """A rank has joined: what it draws is expected to be told."""
        self._expected = True

    def close(self, timeout: float = 60.0) -> None:
        """Judge what waits and keep what the samples were; what is not done in time is a gap."""
        if self._thread is not None:
            self._drain(self._thread, timeout)
        if self._manifest is not None and self._expected and not self._listed:
            sizes = f"which lists {self._manifest.size} samples of {len(self._manifest.names)} tensors"
            self._gap(-1, -1, -1, f"no sample of the run was compared with the manifest of samples, {sizes}")
        if self._rows is not None and (self._thread is None or not self._thread.is_alive()):
            self._rows.close()

    def _drain(self, thread: threading.Thread, timeout: float) -> None:
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            pass
        thread.join(timeout)
        if thread.is_alive():
            self._gap(-1, -1, -1, f"{self._queue.qsize()} batches were not compared with their order in time")
            return
        if self._missed:
            self._gap(-1, -1, -1, f"{self._missed} batches were not compared with their order: too many waited")

    # -- the thread

    def _work(self) -> None:
        while (told := self._queue.get()) is not None:
            try:
                for entry in self._judged(told):
                    self._ledger.submit(entry)
            except ValueError as e:
                self._gap(told.attempt, told.rank, told.step, f"a batch was not compared with its order: {e}"[:2000])
        for entry in self._last():
            self._ledger.submit(entry)

    def _gap(self, attempt: int, rank: int, step: int, reason: str) -> None:
        self._ledger.submit(Gap(attempt=attempt, rank=rank, step=step, reason=reason))

    def _judged(self, told: _Told) -> Iterator[Entry]:
        passes = self._passes.setdefault((told.attempt, told.rank), OrderedDict())
        if isinstance(told.message, wire.Pass):
            yield from self._begins(passes, told, told.message)
            return
        one = passes.get(told.message.number)
        if one is None or one.ended:
            return
        one.step = told.step
        yield from self._given(one, told.message)

    def _begins(self, passes: OrderedDict[int, DrawnPass], told: _Told, message: wire.Pass) -> Iterator[Entry]:
        one = DrawnPass(message, told.attempt, told.rank, told.step, unordered=message.unordered)
        passes[message.number] = one
        if len(passes) > MOST_PASSES:
            passes.popitem(last=False)
        if not one.unordered:
            self._derive(one)
        key = (told.attempt, told.rank, settings_of(message))
        one.count = self._logged.get(key, 0) + 1
        if len(self._logged) < MOST_LOGGED or key in self._logged:
            self._logged[key] = one.count
            if one.count == 1:
                yield one.entry()

    def _derive(self, one: DrawnPass) -> None:
        """Re-derive the order of a pass, or say why it cannot be."""
        told, n = one.told, one.told.samples
        if not 0 < n <= MOST_SAMPLES:
            one.unordered = f"a data set of {n} samples is outside of what is re-derived (1 to {MOST_SAMPLES})"
        elif told.order == "sequential":
            one.at, one.length = (lambda place: place), n
        elif told.order == "random":
            one.at = self._random(told).__getitem__
            one.length = n if told.length < 0 else min(n, told.length)
        elif told.order == "distributed" and 0 <= told.part < told.replicas and told.seed is not None:
            shuffled = self._permutations.of_seed(n, told.seed + told.epoch).__getitem__ if told.shuffle else int
            one.length, one.at = distributed(n, told.replicas, told.part, told.even, shuffled)
        else:
            one.unordered = "the facts of its sampler do not hold together"
        one.place = 0 if told.exact else -1

    def _random(self, told: wire.Pass) -> Permutation:
        if not told.state and told.seed is not None:
            return self._permutations.of_seed(told.samples, told.seed + told.epoch)
        if told.drawn:
            return self._permutations.of_seed(told.samples, drawn_seed(from_state(told.state)))
        return self._permutations.of_state(told.samples, told.state)

    def _given(self, one: DrawnPass, message: wire.Given) -> Iterator[Entry]:
        if message.ended:
            yield from self._ends(one)
            return
        indexes = array("q", message.indexes)
        if not indexes:
            one.unordered = one.uncompared = message.unseen or "a batch came without indexes"
            return
        one.batches += 1
        if one.at is not None and not one.unordered:
            yield from self._in_order(one, message.batch, indexes, one.at)
        yield from self._compared(one, message, indexes)

    # -- order

    def _in_order(self, one: DrawnPass, batch: int, indexes: array[int], at: At) -> Iterator[Entry]:
        if one.place < 0:
            one.place = located(indexes, at, one.length)
            if one.place < 0:
                one.unordered = f"{one.told.sampler[:100]} hands out an order of its own"
                if (one.attempt, one.rank, settings_of(one.told)) in self._located:  # and it did not before
                    yield self._differs(one, "order", batch, expected=at(0), found=indexes[0], exact=False)
                return
        wrong = self._first_wrong(one, indexes, at)
        if wrong is None:
            one.place += len(indexes)
            one.short = len(indexes) != one.told.batch
            one.ordered += 1
            if not one.told.exact and one.ordered * one.told.batch >= LOCATED and len(self._located) < MOST_LOGGED:
                self._located.add((one.attempt, one.rank, settings_of(one.told)))
            return
        if not one.told.exact and one.ordered * one.told.batch < LOCATED:
            one.unordered = f"{one.told.sampler[:100]} hands out an order of its own"
            return
        expected, found = wrong
        one.unordered = "an earlier batch of this pass held other samples than its order has"
        yield self._differs(one, "order", batch, expected=expected, found=found, exact=one.told.exact)

    def _first_wrong(self, one: DrawnPass, indexes: array[int], at: At) -> tuple[int, int] | None:
        """The index that belongs at the first place that differs, and the one that came; −1 for none."""
        if one.short or len(indexes) > one.told.batch:
            return -1, indexes[0]  # a batch that is not full was the last one
        for i, index in enumerate(indexes):
            expected = at(one.place + i) if one.place + i < one.length else -1
            if expected != index:
                return expected, index
        return None

    def _ends(self, one: DrawnPass) -> Iterator[Entry]:
        one.ended = True
        told = one.told
        if one.at is not None and not one.unordered and told.exact:
            whole = one.length - one.length % told.batch if told.drop_last else one.length
            if one.place < whole:
                yield self._differs(one, "lost", one.batches, expected=whole, found=one.place)
        if one.count & (one.count - 1) == 0:
            yield one.entry()

    # -- samples

    def _compared(self, one: DrawnPass, message: wire.Given, indexes: array[int]) -> Iterator[Entry]:
        rows, width = array("I", message.rows), wire.SAMPLE_BYTES * len(message.names)
        if not message.names:
            one.uncompared = message.unseen
            return
        if len(message.digests) != len(rows) * width or any(row >= len(indexes) for row in rows):
            raise ValueError(f"{len(message.digests)} bytes of digests for {len(rows)} samples")
        self._keep(one, message)
        data = self._of(one, message.names)
        for i, row in enumerate(rows):
            digest, index = message.digests[i * width : (i + 1) * width], indexes[row]
            if self._manifest is not None:
                yield from self._against_manifest(one, message, index, digest)
            known = data.table.get(index) if data else None
            if data is None:
                one.uncompared = "the data set does not say how large it is"
            elif known is None:
                data.table.put(index, digest)
                if copies := data.copies(digest):
                    yield self._differs(one, "copies", message.batch, expected=len(data.recent), found=copies)
            else:
                one.compared += 1
                yield from self._against_earlier(one, message, data, index, known, digest)

    def _keep(self, one: DrawnPass, message: wire.Given) -> None:
        """Keep what the rank told of a batch's rows for a later explanation; once that fails, it is left."""
        if self._rows is None:
            return
        told = message.names, message.indexes, message.rows, message.digests
        try:
            self._rows.append(Rows(one.attempt, one.rank, one.step, *told))
        except StoreError as e:
            self._rows = None
            self._gap(-1, -1, -1, f"the digests of batches' rows are no longer kept: {e}")

    def _of(self, one: DrawnPass, names: tuple[str, ...]) -> DataSeen | None:
        """The data set of a pass. Ranks share it where their sampler divides one data set among them."""
        told = one.told
        own = () if told.order == "distributed" and told.replicas > 1 else (one.attempt, one.rank)
        key = (told.data, told.dataset, told.samples, names, own)
        found = self._data.get(key)
        if found is None and told.samples > 0:
            found = self._data[key] = DataSeen(Table(names, told.samples), {name: TensorPart() for name in names}, one)
            if len(self._data) > MOST_TABLES:
                _, oldest = self._data.popitem(last=False)
                oldest.newest.uncompared = f"more than {MOST_TABLES} data sets are in use"
        if found is not None:
            self._data.move_to_end(key)
            found.newest = one
            if found.table.varying:
                one.uncompared = varying(found.table)
        return found

    def _against_manifest(self, one: DrawnPass, message: wire.Given, index: int, digest: bytes) -> Iterator[Entry]:
        manifest = self._manifest
        if manifest is None or manifest.names != message.names or manifest.size != one.told.samples:
            return
        listed = manifest.get(index)
        if listed is None:
            return
        differ, same, unlike = differing(message.names, listed, digest)
        one.listed += 1
        self._listed += 1
        if (differ or unlike) and self._may_tell(one, "manifest"):
            yield self._differs(one, "manifest", message.batch, index=index, parts=(*differ, *unlike), same=tuple(same))

    def _against_earlier(
        self, one: DrawnPass, message: wire.Given, data: DataSeen, index: int, known: bytes, digest: bytes
    ) -> Iterator[Entry]:
        differ, same, _ = differing(message.names, known, digest)  # another shape is another padding
        enough = min(ENOUGH, data.table.size)
        for name in same:
            data.parts[name].compared += 1
        for name in differ:
            part = data.parts[name]
            if not part.differed:
                part.steady = part.compared >= enough
            part.compared += 1
            part.differed += 1
        if differ:
            changed = self._differs(one, "changed", message.batch, index=index, parts=tuple(differ), same=tuple(same))
            hold(data, changed)
        for name, part in data.parts.items():
            yield from self._settled(one, data, name, part, enough)

    def _settled(self, one: DrawnPass, data: DataSeen, name: str, part: TensorPart, enough: int) -> Iterator[Entry]:
        """What was held back, once it is clear that it is no augmentation."""
        if not part.differed or name in data.table.varying:
            return
        if part.steady or part.compared >= enough:
            if not part.steady and part.differed > AUGMENTED * part.compared:
                data.table.varying.add(name)
                held, part.held = part.held, []
                for changed in held:
                    hold(data, changed)
                one.uncompared = varying(data.table)
                yield one.entry()
                return
            for differs in part.held:
                if self._may_tell(one, "changed"):
                    yield differs
            part.held.clear()

    def _may_tell(self, one: DrawnPass, kind: str) -> bool:
        key = (one.attempt, one.rank, kind)
        self._told[key] = self._told.get(key, 0) + 1
        return self._told[key] <= MOST_TOLD

    def _differs(self, one: DrawnPass, kind: str, batch: int, **found: object) -> DataDiffers:
        return msgspec.structs.replace(
            DataDiffers(
                attempt=one.attempt,
                rank=one.rank,
                step=one.step,
                kind=kind,
                number=one.told.number,
                loader=one.told.loader,
                batch=batch,
                wall_ns=time.time_ns(),
            ),
            **found,
        )

    # -- the end

    def _last(self) -> Iterator[Entry]:
        """The newest passes that were not told whole, copies, and the samples kept."""
        for passes in self._passes.values():
            newest = {settings_of(one.told): one for one in passes.values()}
            yield from (one.entry() for one in newest.values() if not one.ended)
        largest = max(self._data.values(), key=lambda data: sum(data.table.seen), default=None)
        if largest is None:
            return
        for data in self._data.values():
            seen, copies = data.table.copies()
            if seen >= ENOUGH and seen > copies + 8 and copies > COPIES * seen:
                yield self._differs(data.newest, "copies", -1, expected=seen, found=copies)
        try:
            samples.keep(largest.table, self._run.private)
        except StoreError as e:
            yield Gap(attempt=-1, rank=-1, step=-1, reason=f"the digests of samples were not kept: {e}")
