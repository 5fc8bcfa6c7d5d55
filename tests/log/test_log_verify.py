"""Attacks on a log on disk: each is found, and told apart from the others."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from faulty import FaultyStorage, Reopened
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogError, LogTampered, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log import LogReader, LogWriter, verify_log
from trainwarden.log.frames import EntryFrame, Frame, HeadFrame, entry_frame, head_frame, read_frames
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.notes import sign_head

KEY, OTHER = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
ORIGIN = "trainwarden/run/tamper"
BATCHES = [[b"a0", b"a1"], [b"b2"], [b"c3", b"c4", b"c5"]]


@cache
def _made() -> FaultyStorage:
    storage = FaultyStorage()
    writer = LogWriter.create(storage, ORIGIN, KEY)
    for batch in BATCHES:
        writer.append(batch)
    return storage


def made() -> FaultyStorage:
    """A log of six entries in three batches: its journal is H0 E0 E1 H2 E2 H3 E3 E4 E5 H6."""
    return Reopened(_made())


def frames(storage: FaultyStorage) -> list[Frame]:
    return list(read_frames(storage, 0, storage.size()))


def joined(parts: list[Frame]) -> bytes:
    """The bytes of frames as they are, whatever they claim."""
    return b"".join(
        head_frame(f.note.decode()) if isinstance(f, HeadFrame) else entry_frame(f.index, f.hash, f.data) for f in parts
    )


def entry(index: int, data: bytes, hashed: bytes | None = None) -> EntryFrame:
    return EntryFrame(index, leaf_hash(data if hashed is None else hashed), data, 0, 0)


def verify(journal: bytes, head: bytes | None = None) -> None:
    verify_log(FaultyStorage(journal, made().head if head is None else head), KEY.public, ORIGIN)


def edited(edit: Callable[[list[Frame]], None]) -> bytes:
    parts = frames(made())
    edit(parts)
    return joined(parts)


def test_the_untouched_log_verifies() -> None:
    assert joined(frames(made())) == bytes(made().journal)
    verify(bytes(made().journal))


# --------------------------------------------------------------------------- byte by byte


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_every_flipped_byte_is_found(mask: int) -> None:
    storage = made()
    journal, head = bytes(storage.journal), storage.head or b""
    for i in range(len(journal)):
        with pytest.raises((LogTampered, SignatureInvalid)) as e:
            verify(journal[:i] + bytes([journal[i] ^ mask]) + journal[i + 1 :])
        assert e.value.hint
    for i in range(len(head)):
        with pytest.raises((LogTampered, SignatureInvalid)):
            verify(journal, head[:i] + bytes([head[i] ^ mask]) + head[i + 1 :])


def test_every_removed_and_every_inserted_byte_is_found() -> None:
    journal = bytes(made().journal)
    for i in range(len(journal)):
        for changed in (journal[:i] + journal[i + 1 :], journal[:i] + b"E" + journal[i:]):
            with pytest.raises((LogTampered, SignatureInvalid)):
                verify(changed)


def test_every_truncation_is_found_and_called_so() -> None:
    journal = bytes(made().journal)
    for size in range(len(journal)):
        with pytest.raises(LogTampered, match="truncated"):
            verify(journal[:size])


def test_a_whole_batch_cut_off_the_end_is_found() -> None:
    with pytest.raises(LogTampered, match=r"truncated: its head says 6 entries, the journal ends after 3"):
        verify(edited(lambda f: f.__delitem__(slice(6, None))))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_in_place_of_any_part_are_found(data: st.DataObject) -> None:
    journal = bytes(made().journal)
    a = data.draw(st.integers(0, len(journal) - 1))
    b = data.draw(st.integers(a + 1, len(journal)))
    changed = journal[:a] + data.draw(st.binary(max_size=60)) + journal[b:]
    if changed[: len(journal)] != journal:
        with pytest.raises((LogTampered, SignatureInvalid)):
            verify(changed)


# --------------------------------------------------------------------------- entry by entry


@pytest.mark.parametrize("index", range(6))
def test_a_rewritten_entry_is_named_with_both_hashes(index: int) -> None:
    def edit(parts: list[Frame]) -> None:
        at = next(i for i, f in enumerate(parts) if isinstance(f, EntryFrame) and f.index == index)
        old = parts[at]
        assert isinstance(old, EntryFrame)
        parts[at] = entry(index, b"forged", hashed=old.data)

    with pytest.raises(LogTampered, match=f"entry {index} was rewritten") as e:
        verify(edited(edit))
    assert leaf_hash(b"forged").hex() in str(e.value)
    assert leaf_hash([x for b in BATCHES for x in b][index]).hex() in str(e.value)


def test_a_rewritten_entry_with_a_forged_hash_is_located_to_its_batch() -> None:
    with pytest.raises(LogTampered, match=r"one of the entries 3 to 5 was rewritten together with its hash"):
        verify(edited(lambda f: f.__setitem__(7, entry(4, b"forged"))))


def test_two_contents_swapped_are_named() -> None:
    def edit(parts: list[Frame]) -> None:
        parts[1], parts[7] = entry(0, b"c4", hashed=b"a0"), entry(4, b"a0", hashed=b"c4")

    with pytest.raises(LogTampered, match="entries 0 and 4 were swapped"):
        verify(edited(edit))


def test_two_frames_swapped_are_named() -> None:
    def edit(parts: list[Frame]) -> None:
        parts[6], parts[8] = parts[8], parts[6]

    with pytest.raises(LogTampered, match="entries 3 and 5 were swapped"):
        verify(edited(edit))


def test_two_entries_swapped_with_forged_indexes_and_hashes_are_located_to_their_batch() -> None:
    def edit(parts: list[Frame]) -> None:
        parts[6], parts[8] = entry(3, b"c5"), entry(5, b"c3")

    with pytest.raises(LogTampered, match="entries 3 to 5"):
        verify(edited(edit))


def test_a_removed_entry_is_named() -> None:
    with pytest.raises(LogTampered, match="entry 4 was removed: entry 5 is in its place"):
        verify(edited(lambda f: f.__delitem__(7)))


def test_an_entry_removed_from_a_renumbered_journal_is_found() -> None:
    def edit(parts: list[Frame]) -> None:
        parts[6:9] = [entry(3, b"c3"), entry(4, b"c5")]

    with pytest.raises(LogTampered, match="entries were removed before the head of size 6: the journal has 5"):
        verify(edited(edit))


def test_an_added_entry_is_found() -> None:
    with pytest.raises(LogTampered, match="entries were added before the head of size 6: the journal has 7"):
        verify(edited(lambda f: f.insert(9, entry(6, b"forged"))))


def test_a_repeated_head_is_found() -> None:
    with pytest.raises(LogTampered, match="twice"):
        verify(edited(lambda f: f.insert(4, f[3])))


# --------------------------------------------------------------------------- heads


def head_of(size: int, key: SigningKey, root: str, origin: str = ORIGIN) -> bytes:
    return sign_head(origin, size, bytes.fromhex(root), key).note.encode()


def note_at(parts: list[Frame], at: int) -> bytes:
    frame = parts[at]
    assert isinstance(frame, HeadFrame)
    return frame.note


@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_rewritten_head_is_a_broken_signature(size: int) -> None:
    journal, head = bytes(made().journal), made().head or b""
    forged = head_of(6, KEY, "11" * 32).splitlines()[2]
    with pytest.raises(SignatureInvalid, match="size 6"):
        verify(journal, head.replace(head.splitlines()[2], forged))
    at = {2: 3, 3: 5, 6: 9}[size]
    note = note_at(frames(made()), at)
    changed = HeadFrame(note.replace(note.splitlines()[2], forged), 0)
    with pytest.raises(SignatureInvalid, match=f"size {size}"):
        verify(edited(lambda f: f.__setitem__(at, changed)))


def test_a_log_signed_again_by_another_key_is_refused_with_the_expected_key_named() -> None:
    storage = FaultyStorage()
    writer = LogWriter.create(storage, ORIGIN, OTHER)
    writer.append([b"another history"])
    with pytest.raises(SignatureInvalid, match=KEY.public):
        verify_log(storage, KEY.public)
    verify_log(storage, OTHER.public)


def test_one_kept_head_signed_by_another_key_is_found() -> None:
    forged = HeadFrame(sign_head(ORIGIN, 3, bytes(32), OTHER).note.encode(), 0)
    with pytest.raises(SignatureInvalid, match="size 3"):
        verify(edited(lambda f: f.__setitem__(5, forged)))


def test_a_head_put_back_by_two_batches_is_found_and_by_one_is_healed_at_opening() -> None:
    journal, parts = bytes(made().journal), frames(made())
    for at in (0, 3):
        for call in (
            lambda note: verify(journal, note),
            lambda note: LogWriter.open(FaultyStorage(journal, note), KEY),
        ):
            with pytest.raises(LogTampered, match=r"rolled back.*goes on to a signed head of size 6"):
                call(note_at(parts, at))
    behind = FaultyStorage(journal, note_at(parts, 5))
    assert verify_log(behind, KEY.public).size == 3
    assert LogWriter.open(behind, KEY).size == 6
    assert verify_log(Reopened(behind), KEY.public).size == 6


def test_a_key_holder_that_signs_two_roots_of_one_size_is_found() -> None:
    with pytest.raises(LogTampered, match="head of size 6 was replaced"):
        verify(bytes(made().journal), head_of(6, KEY, "22" * 32))
    with pytest.raises(LogTampered, match="none of size 4 was kept"):
        verify(bytes(made().journal), head_of(4, KEY, "22" * 32))
    with pytest.raises(LogTampered, match="head says 9 entries"):
        verify(bytes(made().journal), head_of(9, KEY, "22" * 32))


def test_the_log_of_another_run_in_its_place_is_found() -> None:
    storage = FaultyStorage()
    LogWriter.create(storage, "trainwarden/run/other", KEY).append([b"x"])
    verify_log(storage, KEY.public)
    with pytest.raises(LogTampered, match="'trainwarden/run/other', expected 'trainwarden/run/tamper'"):
        verify_log(storage, KEY.public, ORIGIN)
    with pytest.raises(LogTampered, match="is of log"):
        verify(bytes(storage.journal))


def test_a_verification_without_a_key_is_refused() -> None:
    with pytest.raises(UsageError):
        verify_log(made(), "")
    with pytest.raises(UsageError):
        verify_log(made(), "not hex")


# --------------------------------------------------------------------------- on disk, and the reader


def on_disk(folder: Path) -> LogWriter:
    writer = LogWriter.create(folder, ORIGIN, KEY)
    for batch in BATCHES:
        writer.append(batch)
    return writer


def test_the_same_holds_for_a_folder(tmp_path: Path) -> None:
    on_disk(tmp_path / "log").close()
    assert verify_log(tmp_path / "log", KEY.public, ORIGIN).size == 6
    for name, attack, match in [
        ("journal", lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated"),
        ("journal", lambda p: p.write_bytes(p.read_bytes().replace(b"c4", b"C4")), "entry 4 was rewritten"),
        ("journal", lambda p: p.write_bytes(b""), "truncated"),
        ("head", lambda p: p.unlink(), "head is missing"),
        ("head", lambda p: p.write_bytes(b""), "malformed"),
    ]:
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "log", copy)
        attack(copy / name)
        for call in (lambda p: verify_log(p, KEY.public), lambda p: LogWriter.open(p, KEY)):
            with pytest.raises(LogTampered, match=match):
                call(copy)
        shutil.rmtree(copy)


def test_a_missing_or_unreadable_journal_is_an_error_not_a_pass(tmp_path: Path) -> None:
    on_disk(tmp_path).close()
    (tmp_path / "journal").unlink()
    with pytest.raises(LogError):
        verify_log(tmp_path, KEY.public)
    (tmp_path / "journal").mkdir()
    for call in (lambda: verify_log(tmp_path, KEY.public), lambda: LogReader.open(tmp_path)):
        with pytest.raises(LogError):
            call()


def test_reading_and_verifying_go_on_while_a_writer_appends(tmp_path: Path) -> None:
    writer = on_disk(tmp_path)
    with LogReader.open(tmp_path, KEY.public) as reader:
        writer.append([b"later"])
        assert [data for _, data in reader.entries()] == [x for b in BATCHES for x in b]
        assert reader.head.size == 6
    assert verify_log(tmp_path, KEY.public).size == 7
    writer.close()


def test_a_busy_writer_is_never_taken_for_a_rollback(tmp_path: Path) -> None:
    writer = on_disk(tmp_path)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            writer.append([b"more"])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        sizes = [verify_log(tmp_path, KEY.public, ORIGIN).size for _ in range(15)]
    finally:
        done.set()
        thread.join()
        writer.close()
    assert sizes == sorted(sizes)
