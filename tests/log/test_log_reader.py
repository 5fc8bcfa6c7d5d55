"""The reader: entries, and proofs that convince someone who has only a tree head."""

from __future__ import annotations

from pathlib import Path

import pytest

import trainwarden.log
from trainwarden.errors import LogTampered, SignatureInvalid, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log import LogReader, LogWriter
from trainwarden.log.merkle import leaf_hash, verify_consistency, verify_inclusion
from trainwarden.model import TreeHead

KEY = SigningKey(b"\x01" * 32)
ENTRIES = [b"%d" % i * (i % 7) for i in range(60)]


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, list[TreeHead]]:
    writer = LogWriter.create(tmp_path, "o", KEY)
    heads = [writer.head()]
    at = 0
    for step in (1, 2, 3, 4, 10, 20, 20):
        writer.append(ENTRIES[at : at + step])
        heads.append(writer.head())
        at += step
    writer.close()
    return tmp_path, heads


def test_every_entry_is_proven_under_the_head(log: tuple[Path, list[TreeHead]]) -> None:
    with LogReader.open(log[0]) as reader:
        root = bytes.fromhex(reader.head.root)
        for i, data in reader.entries():
            assert reader.entry(i) == data == ENTRIES[i]
            verify_inclusion(leaf_hash(data), i, reader.head.size, reader.inclusion_proof(i), root)
            with pytest.raises(LogTampered):
                verify_inclusion(leaf_hash(data + b"!"), i, reader.head.size, reader.inclusion_proof(i), root)


def test_every_kept_head_is_proven_to_be_a_beginning_of_the_newest(log: tuple[Path, list[TreeHead]]) -> None:
    with LogReader.open(log[0]) as reader:
        for old in log[1]:
            verify_consistency(
                old.size,
                reader.head.size,
                reader.consistency_proof(old.size),
                bytes.fromhex(old.root),
                bytes.fromhex(reader.head.root),
            )


@pytest.mark.parametrize("index", [-1, 60, 10**9])
def test_what_is_not_there_is_the_callers_mistake(log: tuple[Path, list[TreeHead]], index: int) -> None:
    with LogReader.open(log[0]) as reader:
        with pytest.raises(UsageError):
            reader.entry(index)
        with pytest.raises(UsageError):
            reader.inclusion_proof(index)
        with pytest.raises(UsageError):
            reader.consistency_proof(61 if index > 0 else index)


def test_no_entry_of_a_changed_batch_is_handed_out(log: tuple[Path, list[TreeHead]]) -> None:
    path = log[0] / "journal"
    data = bytearray(path.read_bytes())
    data[data.rindex(ENTRIES[34])] ^= 1
    path.write_bytes(data)
    seen = []
    with LogReader.open(log[0]) as reader:
        with pytest.raises(LogTampered, match="entry 34"):
            seen.extend(index for index, _ in reader.entries())
        with pytest.raises(LogTampered):
            reader.entry(0)
    assert seen == list(range(20)), "the batch of entries 20 to 39 is held back as a whole"


def test_an_entry_changed_after_the_reader_looked_is_noticed(log: tuple[Path, list[TreeHead]]) -> None:
    path = log[0] / "journal"
    with LogReader.open(log[0]) as reader:
        assert reader.entry(34) == ENTRIES[34]
        data = bytearray(path.read_bytes())
        data[data.rindex(ENTRIES[34])] ^= 1
        path.write_bytes(data)
        with pytest.raises(LogTampered, match="entry 34 was rewritten"):
            reader.entry(34)
        assert reader.entry(33) == ENTRIES[33]


def test_a_reader_with_a_key_refuses_another_signer(log: tuple[Path, list[TreeHead]]) -> None:
    with pytest.raises(SignatureInvalid):
        LogReader.open(log[0], SigningKey(b"\x02" * 32).public)
    with LogReader.open(log[0], KEY.public) as reader:
        assert len(list(reader.entries())) == 60


def test_the_package_exports_only_the_spine() -> None:
    assert trainwarden.log.__all__ == ["LogReader", "LogWriter", "verify_log"]
