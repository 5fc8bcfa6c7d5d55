"""The one writer of the log: durable before acknowledged, whole again after a full disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest
from supervised import Bench, detail, of_kind, until

from trainwarden.errors import LogError, StoreTampered
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    Confidence,
    Entry,
    Finding,
    Gap,
    RunEnded,
    Severity,
    Stage,
    StageDigest,
    StepRecord,
    decode_entry,
)
from trainwarden.supervise import ledger
from trainwarden.supervise.details import DetailReader, DetailWriter
from trainwarden.supervise.ledger import Details, Ledger, NoWatcher

SPACE = b"x" * 16


def record(step: int, rank: int = 0) -> StepRecord:
    stages = {Stage.WEIGHTS: StageDigest(root="r", tensors=1)}
    return StepRecord(attempt=0, rank=rank, world=1, step=step, optimizer=0, seq=step, stages=stages)


class MemoryLog:
    """A log in memory whose disk can be full."""

    def __init__(self) -> None:
        self.leaves: list[bytes] = []
        self.groups: list[int] = []
        self.full = False
        self.slow: threading.Event | None = None
        self.tries = 0

    def append(self, entries: Sequence[bytes]) -> list[int]:
        self.tries += 1
        if self.slow is not None:
            self.slow.wait(30)
        if self.full:
            raise LogError("cannot append: No space left on device", hint="free some space")
        first = len(self.leaves)
        self.leaves += entries
        self.groups.append(len(entries))
        return list(range(first, len(self.leaves)))

    @property
    def entries(self) -> list[Entry]:
        return [decode_entry(leaf) for leaf in self.leaves]


class Room:
    """A ledger over a log in memory, and what it said."""

    def __init__(self, folder: Path, **kwargs: object) -> None:
        self.log = MemoryLog()
        self.folder = folder
        self.said: list[str] = []
        self.acked: list[int] = []
        self.ledger = Ledger(
            self.log,
            folder,
            kwargs.get("watcher", NoWatcher()),  # type: ignore[arg-type]
            lambda index, finding: None,
            lambda sentence, hint: self.said.append(sentence),
            retry_seconds=0.01,
            max_waiting=int(str(kwargs.get("max_waiting", 1 << 26))),
        )

    def step(self, step: int) -> bool:
        return self.ledger.submit(record(step), detail(SPACE), lambda index: self.acked.append(step))

    def end(self) -> bool:
        return self.ledger.close(lambda records: RunEnded(code=0, records=records, wall_ns=0))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_entries_that_arrive_during_an_append_form_one_group(room: Room) -> None:
    room.log.slow = threading.Event()
    room.step(0)
    until(lambda: room.log.tries == 1, "the first append began")
    for step in range(1, 50):
        room.step(step)
    room.log.slow.set()
    room.end()
    assert room.log.groups[:2] == [1, 49]
    assert room.acked == list(range(50))


def test_nothing_is_acknowledged_before_it_is_durable(room: Room) -> None:
    room.log.slow = threading.Event()
    room.step(0)
    until(lambda: room.log.tries == 1, "the append began")
    assert room.acked == []
    room.log.slow.set()
    room.end()
    assert room.acked == [0]


def test_a_full_disk_stops_no_rank_and_loses_nothing_that_fits_in_memory(room: Room) -> None:
    room.log.full = True
    for step in range(5):
        assert room.step(step)
    until(lambda: bool(room.said), "the trouble was told")
    assert room.acked == []
    room.log.full = False
    assert room.end()
    assert room.acked == [0, 1, 2, 3, 4]
    assert of_kind(room.log.entries, Gap) == []
    assert room.said[0].startswith("The log cannot be written")
    assert room.said[-1] == "The log can be written again."


def test_what_does_not_fit_is_counted_as_a_gap_and_never_acknowledged(tmp_path: Path) -> None:
    room = Room(tmp_path, max_waiting=4_000)
    room.log.full = True
    room.step(0)
    until(lambda: bool(room.said), "the trouble was told")
    kept = [step for step in range(1, 30) if room.step(step)]
    assert len(kept) < 29
    room.log.full = False
    assert room.end()
    assert room.acked == [0, *kept]
    (gap,) = of_kind(room.log.entries, Gap)
    assert gap.step == kept[-1] + 1
    assert gap.reason.startswith(f"{29 - len(kept)} entries of steps {kept[-1] + 1} to 29 were lost")


def test_a_disk_that_stays_full_ends_without_hanging(room: Room) -> None:
    room.log.full = True
    room.step(0)
    assert not room.end()
    assert room.acked == []


def test_details_that_cannot_be_written_keep_their_leaf_out(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def full(fd: int, data: memoryview, at: int) -> int:
        real(fd, data[:7], at)  # torn
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    room.step(0)
    until(lambda: bool(room.said), "the trouble was told")
    assert room.log.leaves == []
    monkeypatch.setattr(os, "pwrite", real)
    room.end()
    assert DetailReader(room.folder).get(0, 0, 0)[Stage.WEIGHTS].digests == (SPACE,)


def test_a_real_log_on_a_full_disk_goes_on_and_verifies(make_bench: Callable[..., Bench]) -> None:
    class Full:
        def __init__(self, log: MemoryLog) -> None:
            self.log, self.full = log, True

        def append(self, entries: Sequence[bytes]) -> list[int]:
            if self.full:
                raise LogError("No space left on device")
            return self.log.append(entries)

    logs: list[Full] = []
    bench = make_bench(wrap=lambda log: logs.append(Full(log)) or logs[0])
    rank = bench.rank("join:0/1", "steps:3", "until_acked", "bye")
    until(lambda: bool(bench.trouble), "the trouble was told")
    assert rank.poll() is None
    logs[0].full = False
    entries = bench.finish()
    assert rank.returncode == 0
    assert len(of_kind(entries, StepRecord)) == 3
    verify_log(bench.run.log, bench.key.public)


class Echo:
    """Raises one finding for each record and one at the end."""

    def observe(self, index: int, entry: Entry, detail: Details | None) -> Iterable[Finding]:
        if isinstance(entry, StepRecord):
            yield finding(f"step {entry.step} at {index}, details {detail is not None}")

    def finish(self) -> Iterable[Finding]:
        return (finding("end"),)


def finding(seen: str) -> Finding:
    return Finding(detector="echo", severity=Severity.LOW, confidence=Confidence.LOW, seen=seen, expected="")


def test_findings_become_entries_after_what_they_rest_on(tmp_path: Path) -> None:
    room = Room(tmp_path, watcher=Echo())
    room.step(0)
    room.ledger.flush()
    room.end()
    kinds = [getattr(e, "seen", type(e).__name__) for e in room.log.entries]
    assert kinds == ["StepRecord", "step 0 at 0, details True", "RunEnded", "end"]
    assert [f.seen for f in room.ledger.findings] == ["step 0 at 0, details True", "end"]


def test_a_finding_of_the_watcher_itself_names_the_newest_entries_of_its_ranks_or_the_seal(tmp_path: Path) -> None:
    room = Room(tmp_path)
    for rank in (0, 1, 0):
        room.ledger.submit(record(0, rank))
        room.ledger.flush()
    of_rank, of_attempt = msgspec.structs.replace(finding("a"), attempt=0, ranks=(0,)), finding("b")
    named = msgspec.structs.replace(finding("d"), evidence=(1,))
    for one in (of_rank, msgspec.structs.replace(of_attempt, attempt=0), finding("c"), named):
        room.ledger.submit(one)
    room.end()
    told = {e.seen: e.evidence for e in room.log.entries if isinstance(e, Finding)}
    assert told == {"a": (2,), "b": (1, 2), "c": (0,), "d": (1,)}


# -- details


def test_details_are_read_back_with_names_written_once(tmp_path: Path) -> None:
    writer = DetailWriter(tmp_path, 2, 3)
    for seq in range(100):
        writer.append(seq, detail(bytes([seq]) * 16, SPACE))
    writer.sync()
    reader = DetailReader(tmp_path)
    assert reader.get(2, 3, 41)[Stage.WEIGHTS].digests == (bytes([41]) * 16, SPACE)
    assert writer.path.read_bytes().count(b"t0") == 1
    writer.append(100, detail(SPACE))
    assert reader.get(2, 3, 100)[Stage.WEIGHTS].names == ("t0",)  # written after the reader began
    assert reader.get(2, 3, 101) == {}
    assert reader.get(9, 9, 0) == {}
    writer.close()


def test_a_torn_end_is_left_out_and_what_is_before_it_is_read(tmp_path: Path) -> None:
    writer = DetailWriter(tmp_path, 0, 0)
    writer.append(0, detail(SPACE))
    whole = writer.path.stat().st_size
    writer.append(1, detail(SPACE))
    writer.close()
    data = writer.path.read_bytes()
    for size in range(whole, len(data)):
        writer.path.write_bytes(data[:size])
        assert DetailReader(tmp_path).get(0, 0, 0)[Stage.WEIGHTS].digests == (SPACE,)
        assert DetailReader(tmp_path).get(0, 0, 1) == {}


def test_damaged_details_are_an_error_and_never_other_digests(tmp_path: Path) -> None:
    writer = DetailWriter(tmp_path, 0, 0)
    writer.append(0, detail(SPACE, SPACE))
    writer.close()
    data = writer.path.read_bytes()
    for at in range(len(data)):
        writer.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            found = DetailReader(tmp_path).get(0, 0, 0)
        except StoreTampered:
            continue
        # What is read nevertheless differs from the record's root, which its reader compares.
        assert found != detail(SPACE, SPACE)


def test_records_of_all_ranks_are_one_group_and_nobody_who_waits_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "GATHER_SECONDS", 60.0)
    room = Room(tmp_path)
    for rank in range(3):
        room.ledger.submit(record(0, rank), detail(SPACE), room.acked.append)
    assert room.ledger.flush(30)
    assert room.log.groups == [3]
    room.ledger.submit(record(1), detail(SPACE), room.acked.append)
    room.ledger.submit(Gap(attempt=0, rank=0, step=1, reason="x"), None, room.acked.append)
    until(lambda: len(room.acked) == 5, "a gap ends the waiting")
    room.ledger.stop()
