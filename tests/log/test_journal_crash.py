"""Crashes: whatever point the machine stops at and whatever had reached the disk, acknowledged entries are there."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import Crash, FaultyStorage, Reopened

from trainwarden.errors import LogError, LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log import LogReader, LogWriter, verify_log
from trainwarden.log.merkle import verify_consistency

KEY = SigningKey(b"\x01" * 32)
ORIGIN = "trainwarden/run/crash"
BATCHES = [[b"a"], [b"b", b"c"], [b"d" * 60, b"", b"e"]]


def life(storage: FaultyStorage, acked: list[bytes]) -> None:
    """Makes a log or opens it, and appends; `acked` grows with each acknowledgement."""
    fresh = storage.read_head() is None
    writer = LogWriter.create(storage, ORIGIN, KEY) if fresh else LogWriter.open(storage, KEY)
    for batch in BATCHES:
        writer.append(batch)
        acked += batch


def check_survivor(storage: FaultyStorage, acked: list[bytes]) -> None:
    """The log opens, has all that was acknowledged and at most the one batch more that was being written."""
    if storage.read_head() is None:
        assert acked == []
        writer = LogWriter.create(storage, ORIGIN, KEY)
    else:
        before = verify_log(Reopened(storage), KEY.public)
        writer = LogWriter.open(storage, KEY)
        assert writer.size >= before.size
    more = [list(b) for b in BATCHES if acked == [e for c in BATCHES[: BATCHES.index(b)] for e in c]]
    reader = LogReader.open(Reopened(storage), KEY.public)
    found = [data for _, data in reader.entries()]
    assert found == acked or (more and found == acked + more[0])
    old = reader.head
    writer.append([b"after the crash"])
    now = LogReader.open(Reopened(storage), KEY.public)
    assert verify_log(Reopened(storage), KEY.public) == now.head
    verify_consistency(
        old.size,
        now.head.size,
        now.consistency_proof(old.size),
        bytes.fromhex(old.root),
        bytes.fromhex(now.head.root),
    )


def test_a_crash_at_every_point_whatever_was_persisted() -> None:
    crashes, survivors = 0, 0
    while True:
        storage, acked = FaultyStorage(crash_at=crashes), []
        try:
            life(storage, acked)
        except Crash:
            crashes += 1
        else:
            break
        for survivor in storage.survivors():
            check_survivor(survivor, acked)
            survivors += 1
    assert crashes >= 9 * (len(BATCHES) + 1), "every write, sync and rename of every batch"
    assert survivors > 2 * crashes, "persisted and not persisted"


def test_a_crash_of_the_machine_while_recovering_from_a_crash_of_the_process() -> None:
    seen = 0
    for first in range(9, 48, 2):
        storage, acked = FaultyStorage(crash_at=first), []
        with contextlib.suppress(Crash):
            life(storage, acked)
        for second in range(9 if storage.read_head() else 0):
            again = storage.process_died(crash_at=second)
            with contextlib.suppress(Crash):
                LogWriter.open(again, KEY)
            for final in again.survivors():
                check_survivor(final, acked)
                seen += 1
    assert seen > 150


def test_a_torn_tail_beyond_the_head_is_cut_and_one_below_it_is_tampering() -> None:
    storage = FaultyStorage()
    writer = LogWriter.create(storage, ORIGIN, KEY)
    writer.append([b"a", b"b"])
    whole = len(storage.journal)
    storage.journal += storage.journal[-90:-30]
    assert verify_log(Reopened(storage), KEY.public).size == 2
    opened = Reopened(storage)
    assert LogWriter.open(opened, KEY).size == 2
    assert len(opened.journal) == whole
    for cut in range(1, whole, 7):
        torn = FaultyStorage(bytes(storage.journal[: whole - cut]), storage.head)
        with pytest.raises(LogTampered, match=r"truncated"):
            LogWriter.open(torn, KEY)
        assert len(torn.journal) == whole - cut, "the evidence is left as it was found"


def test_a_creation_that_was_cut_short_begins_again() -> None:
    for crash in range(12):
        storage = FaultyStorage(crash_at=crash)
        try:
            LogWriter.create(storage, ORIGIN, KEY)
        except Crash:
            for survivor in storage.survivors():
                if survivor.read_head() is None:
                    with pytest.raises(LogError, match="cut short"):
                        LogWriter.open(Reopened(survivor), KEY)
                    LogWriter.create(survivor, "another/name", KEY)
                assert verify_log(Reopened(survivor), KEY.public).size == 0


WRITER = """
import sys
from pathlib import Path
from trainwarden.keys import SigningKey
from trainwarden.log import LogWriter
folder, round, key = Path(sys.argv[1]), int(sys.argv[2]), SigningKey(b"\\x01" * 32)
writer = LogWriter.open(folder, key) if (folder / "head").exists() else LogWriter.create(folder, "kill/test", key)
i = 0
while True:
    batch = [b"%d.%d.%d" % (round, i, j) + b"x" * (37 * j) for j in range(1 + i % 4)]
    indexes = writer.append(batch)
    sys.stdout.write("".join(f"{index} {entry.decode()}\\n" for index, entry in zip(indexes, batch)))
    sys.stdout.flush()
    i += 1
"""


def test_a_writer_killed_at_random_moments_keeps_every_acknowledged_entry(tmp_path: Path) -> None:
    chance = random.Random(os.urandom(8))
    acked: dict[int, str] = {}
    for turn in range(14):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(chance.randrange(1, 12))] if turn else []
        time.sleep(chance.random() * 0.01)
        writer.kill()
        lines += writer.stdout.readlines()
        assert writer.wait() == -9
        for line in lines:
            if line.endswith("\n"):
                index, entry = line.split()
                assert acked.setdefault(int(index), entry) == entry, "an index was given twice"
        if (tmp_path / "head").exists():
            head = verify_log(tmp_path, KEY.public)
            found = {i: data.decode() for i, data in LogReader.open(tmp_path, KEY.public).entries()}
            assert acked.items() <= found.items()
            assert head.size == len(found)
    LogWriter.open(tmp_path, KEY).close()
    assert len(acked) > 13
