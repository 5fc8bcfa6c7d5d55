"""The writer: what it acknowledges is there, one at a time, on a full disk as well."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from faulty import FaultyStorage, Reopened

from trainwarden.errors import LogError, LogLocked, LogTampered, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log import LogReader, LogWriter, verify_log
from trainwarden.log import journal as journal_module
from trainwarden.log.merkle import leaf_hash, root
from trainwarden.log.storage import Storage

KEY, OTHER = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
ORIGIN = "trainwarden/run/test"


def entries_of(where: Path | Storage) -> list[bytes]:
    with LogReader.open(where, KEY.public) as reader:
        found = list(reader.entries())
    assert [index for index, _ in found] == list(range(len(found)))
    return [data for _, data in found]


def test_what_is_appended_is_read_back_under_a_signed_root(tmp_path: Path) -> None:
    with_empty = [b"one", b"", b"three" * 1000]
    writer = LogWriter.create(tmp_path / "log", ORIGIN, KEY)
    assert writer.append(with_empty) == [0, 1, 2]
    assert writer.append([]) == []
    assert writer.append([b"four"]) == [3]
    assert writer.size == 4
    head = writer.head()
    assert head.root == root([leaf_hash(e) for e in [*with_empty, b"four"]]).hex()
    assert verify_log(tmp_path / "log", KEY.public, ORIGIN) == head, "while the writer holds it"
    writer.close()
    assert verify_log(tmp_path / "log", KEY.public) == head
    assert entries_of(tmp_path / "log") == [*with_empty, b"four"]


def test_an_empty_log_verifies_and_reopens(tmp_path: Path) -> None:
    LogWriter.create(tmp_path, ORIGIN, KEY).close()
    assert verify_log(tmp_path, KEY.public).size == 0
    writer = LogWriter.open(tmp_path, KEY)
    assert writer.append([b"x"]) == [0]
    writer.close()


def test_a_log_goes_on_after_reopening(tmp_path: Path) -> None:
    LogWriter.create(tmp_path, ORIGIN, KEY).close()
    for i in range(20):
        writer = LogWriter.open(tmp_path, KEY)
        assert writer.append([b"%d" % i] * i) == list(range(i * (i - 1) // 2, i * (i + 1) // 2))
        writer.close()
    assert verify_log(tmp_path, KEY.public).size == 190


def test_threads_may_share_a_writer(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path, ORIGIN, KEY)
    given: dict[int, bytes] = {}

    def work(name: int) -> None:
        for i in range(10):
            entry = b"%d-%d" % (name, i)
            given.update(zip(writer.append([entry]), [entry], strict=True))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    writer.close()
    assert dict(enumerate(entries_of(tmp_path))) == given


# --------------------------------------------------------------------------- who may write


HOLDER = """
import sys
from pathlib import Path
from trainwarden.keys import SigningKey
from trainwarden.log import LogWriter
writer = LogWriter.open(Path(sys.argv[1]), SigningKey(b"\\x01" * 32))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_told_which_process_holds_the_log(tmp_path: Path) -> None:
    LogWriter.create(tmp_path, ORIGIN, KEY).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for call in (lambda: LogWriter.open(tmp_path, KEY), lambda: LogWriter.create(tmp_path, ORIGIN, KEY)):
        with pytest.raises(LogLocked, match=f"process {holder.pid},") as e:
            call()
        assert e.value.hint
    assert verify_log(tmp_path, KEY.public).size == 0
    holder.communicate("")
    LogWriter.open(tmp_path, KEY).close()


def test_two_writers_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path, ORIGIN, KEY)
    with pytest.raises(LogLocked, match=str(os.getpid())):
        LogWriter.open(tmp_path, KEY)
    writer.close()
    LogWriter.open(tmp_path, KEY).close()


def test_another_key_cannot_go_on_with_a_log(tmp_path: Path) -> None:
    LogWriter.create(tmp_path, ORIGIN, KEY).close()
    with pytest.raises(SignatureInvalid, match=OTHER.public):
        LogWriter.open(tmp_path, OTHER)
    LogWriter.open(tmp_path, KEY).close()  # the refused one gave the lock back


def test_a_log_is_not_begun_twice(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path, ORIGIN, KEY)
    writer.append([b"x"])
    writer.close()
    with pytest.raises(LogError, match="already"):
        LogWriter.create(tmp_path, ORIGIN, KEY)
    (tmp_path / "head").unlink()
    for call in (
        lambda: LogWriter.create(tmp_path, ORIGIN, KEY),
        lambda: LogWriter.open(tmp_path, KEY),
        lambda: verify_log(tmp_path, KEY.public),
    ):
        with pytest.raises(LogTampered, match="head is missing"):
            call()


def test_no_log_is_an_error_with_a_hint_and_nothing_is_made(tmp_path: Path) -> None:
    for where, call in itertools.product(
        (tmp_path, tmp_path / "none"),
        (lambda p: LogWriter.open(p, KEY), LogReader.open, lambda p: verify_log(p, KEY.public)),
    ):
        with pytest.raises(LogError) as e:
            call(where)
        assert "no log" in e.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_bad_origin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        LogWriter.create(tmp_path / "log", "two words", KEY)
    assert not (tmp_path / "log").exists()


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path, ORIGIN, KEY)
    writer.close()
    writer.close()
    with pytest.raises(LogError, match="closed"):
        writer.append([b"x"])


def test_an_entry_that_could_not_be_read_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_ENTRY", 10)
    writer = LogWriter.create(tmp_path, ORIGIN, KEY)
    with pytest.raises(LogError, match="11 bytes"):
        writer.append([b"x", b"y" * 11])
    assert writer.append([b"y" * 10]) == [0]
    writer.close()


# --------------------------------------------------------------------------- full and failing disks


def append_all(writer: LogWriter, batches: list[list[bytes]]) -> tuple[list[bytes], list[bytes], list[LogError]]:
    """Appends every batch, again after an error. Gives what was acknowledged, what was tried, and the errors."""
    acked: list[bytes] = []
    tried: list[bytes] = []
    errors: list[LogError] = []
    for batch in batches:
        for attempt in range(20):
            entries = [e + b"/%d" % attempt for e in batch]
            tried += entries
            try:
                writer.append(entries)
            except LogError as e:
                errors.append(e)
            else:
                acked += entries
                break
        else:
            pytest.fail("appends never worked again")
    return acked, tried, errors


BATCHES = [[b"a"], [b"b", b"c"], [b"d" * 50]]


def is_subsequence(part: list[bytes], whole: list[bytes]) -> bool:
    rest = iter(whole)
    return all(p in rest for p in part)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("fail_for", [1, 2, 3, 7])
def test_a_disk_that_fails_at_any_point_costs_no_entry_and_appends_work_again(fail_for: int, code: int) -> None:
    point, failures = 0, 0
    while True:
        storage = FaultyStorage()
        writer = LogWriter.create(storage, ORIGIN, KEY)
        storage.fail_at, storage.fail_for, storage.code = storage.points + point, fail_for, code
        acked, tried, errors = append_all(writer, BATCHES)
        assert all(e.hint for e in errors)
        found = entries_of(Reopened(storage))
        assert is_subsequence(acked, found), "an acknowledged entry is missing"
        assert is_subsequence(found, tried), "an entry that nobody gave, or twice"
        assert len(found) <= len(acked) + 2, "a failed batch is in the log only if its head was already replaced"
        assert verify_log(Reopened(storage), KEY.public) == writer.head()
        LogWriter.open(Reopened(storage), KEY)
        if not errors:
            break
        point, failures = point + 1, failures + 1
    assert failures >= 9 * len(BATCHES)


@pytest.mark.parametrize("fail_for", [1, 2])
def test_after_every_failure_the_log_verifies_at_once(fail_for: int) -> None:
    for point in range(30):
        storage = FaultyStorage()
        writer = LogWriter.create(storage, ORIGIN, KEY)
        storage.fail_at, storage.fail_for = storage.points + point, fail_for
        for batch in BATCHES:
            try:
                writer.append(batch)
            except LogError:
                head = verify_log(Reopened(storage), KEY.public)
                assert head == writer.head()
                taken_in = LogWriter.open(Reopened(storage), KEY).size - head.size
                assert taken_in == 0 or fail_for > 1, "what was refused is gone, unless cutting it failed as well"


class HeadUnreadable(FaultyStorage):
    """Neither replaces the head nor lets it be read: what is on the disk is unknown."""

    def write_head(self, note: bytes) -> None:
        if self.head is not None:
            raise OSError(errno.EIO, "Input/output error")
        super().write_head(note)

    def read_head(self) -> bytes | None:
        if self.head is not None:
            raise OSError(errno.EIO, "Input/output error")
        return None


def test_a_writer_that_no_longer_knows_its_disk_stops() -> None:
    storage = HeadUnreadable()
    writer = LogWriter.create(storage, ORIGIN, KEY)
    with pytest.raises(LogError, match="Input/output"):
        writer.append([b"x"])
    with pytest.raises(LogError, match="takes no more entries") as e:
        writer.append([b"y"])
    assert e.value.hint
    again = LogWriter.open(Reopened(storage), KEY)
    assert again.append([b"z"]) == [1], "the whole and signed batch beyond the head was taken in"


@pytest.mark.parametrize("where", ["create", "open"])
def test_a_disk_that_is_full_from_the_start_is_an_error(where: str) -> None:
    for point in range(12):
        storage = FaultyStorage()
        if where == "open":
            LogWriter.create(storage, ORIGIN, KEY).append([b"x"])
            storage.journal += b"E torn"
        storage.fail_at, storage.fail_for = storage.points + point, 99
        try:
            (LogWriter.open(storage, KEY) if where == "open" else LogWriter.create(storage, ORIGIN, KEY))
        except LogError as e:
            assert "full" in e.hint  # noqa: PT017
            assert storage.closed
        if where == "open":
            assert entries_of(Reopened(storage)) == [b"x"]


def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        writer = LogWriter.create(tmp_path / "log", ORIGIN, KEY)
        acked = []
        while True:
            entry = os.urandom(3000)
            try:
                writer.append([entry])
            except LogError as e:
                assert "full" in e.hint  # noqa: PT017
                break
            acked.append(entry)
        assert acked
        assert entries_of(tmp_path / "log") == acked
        with pytest.raises(LogError):
            writer.append([os.urandom(40_000)])
        writer.append([b"small enough"])
        assert verify_log(tmp_path / "log", KEY.public).size == len(acked) + 1
        writer.close()
        LogWriter.open(tmp_path / "log", KEY).close()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
