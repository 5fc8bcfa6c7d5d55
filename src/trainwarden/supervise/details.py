"""The per-tensor digests under the step records, one append-only file for each attempt and rank.

Rules
-----
* A file is a sequence of frames: a 4-byte big-endian length and a msgpack array. A `names` frame is written
  once for each distinct list of names; a `row` frame holds one record's digests, each stage pointing at its
  names.
* Details are made durable before the record's leaf is: a leaf in the log always has its details on disk.
* The file proves nothing by itself. Whoever reads it recomputes each stage's root and compares it with the
  record in the log (`record.fingerprint.stage_root`).
* A frame cut off at the very end is what a crash leaves and is ignored; damage anywhere else is an error.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec

from trainwarden.durable import fsync_folder
from trainwarden.errors import StoreError, StoreTampered
from trainwarden.model import Detail, Stage, cut_digests

_LENGTH = struct.Struct(">I")


class _Names(msgspec.Struct, frozen=True, array_like=True, tag="names"):
    number: int
    names: tuple[str, ...]


class _Row(msgspec.Struct, frozen=True, array_like=True, tag="row"):
    seq: int
    stages: dict[Stage, tuple[int, bytes]]  # number of the names, digests end to end


_Frame: TypeAlias = _Names | _Row
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Frame] = msgspec.msgpack.Decoder(_Frame)


def detail_path(folder: Path, attempt: int, rank: int) -> Path:
    """The file that holds the details of one attempt of one rank."""
    return folder / f"a{attempt}-r{rank}.bin"


class DetailWriter:
    """Appends details of one attempt of one rank. Digests are 16 bytes; used by one thread.

    What `append` wrote is durable only after `sync`. When writing fails, the file is cut back to its last
    whole frame, so that a full disk leaves nothing torn in the middle. A record that is already there is not
    written again, so a caller may repeat a group whose leaves could not be appended.
    """

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        self.path = detail_path(folder, attempt, rank)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o600)
            fsync_folder(folder)
        except OSError as e:
            raise StoreError(f"cannot create {self.path}: {e.strerror}") from e
        self._end = 0
        self._last_seq = -1
        self._numbers: dict[tuple[str, ...], int] = {}
        self._dirty = False

    def append(self, seq: int, details: Mapping[Stage, Detail]) -> None:
        """Write one record's details.

        Raises:
            StoreError: the file cannot be written; nothing of this record is in it.
        """
        if seq <= self._last_seq:
            return
        new: dict[tuple[str, ...], int] = {}
        frames = bytearray()
        stages: dict[Stage, tuple[int, bytes]] = {}
        for stage, detail in details.items():
            number = self._numbers.get(detail.names, new.get(detail.names))
            if number is None:
                number = new[detail.names] = len(self._numbers) + len(new)
                frames += _frame(_Names(number, detail.names))
            stages[stage] = (number, b"".join(detail.digests))
        frames += _frame(_Row(seq, stages))
        self._write(frames)
        self._numbers |= new
        self._last_seq = seq

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        at = self._end
        try:
            while view:
                n = os.pwrite(self._fd, view, at)
                view, at = view[n:], at + n
        except OSError as e:
            os.ftruncate(self._fd, self._end)
            raise StoreError(f"cannot write {self.path}: {e.strerror}") from e
        self._end = at
        self._dirty = True

    def sync(self) -> None:
        """Make everything appended durable.

        Raises:
            StoreError: the disk refused.
        """
        if not self._dirty:
            return
        try:
            os.fsync(self._fd)
        except OSError as e:
            raise StoreError(f"cannot write {self.path}: {e.strerror}") from e
        self._dirty = False

    def close(self) -> None:
        os.close(self._fd)


class DetailReader:
    """Reads details of a run, also while they are being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[int, int], _File] = {}

    def get(self, attempt: int, rank: int, seq: int) -> dict[Stage, Detail]:
        """The details of one record; empty when none were written.

        Raises:
            StoreTampered: the file is damaged.
        """
        file = self._files.get((attempt, rank))
        if file is None:
            file = self._files[attempt, rank] = _File(detail_path(self._folder, attempt, rank))
        return file.get(seq)


class _File:
    """One details file, indexed as far as it has been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to = 0
        self._names: dict[int, tuple[str, ...]] = {}
        self._rows: dict[int, tuple[int, int]] = {}  # seq → offset and length of the frame's body

    def get(self, seq: int) -> dict[Stage, Detail]:
        if seq not in self._rows and not self._index():
            return {}
        place = self._rows.get(seq)
        if place is None:
            return {}
        with open(self._path, "rb") as f:
            f.seek(place[0])
            row = self._decode(f.read(place[1]), place[0])
        if not isinstance(row, _Row):
            raise StoreTampered(f"{self._path} is damaged at byte {place[0]}: it changed while it was read")
        return {stage: self._detail(number, data, place[0]) for stage, (number, data) in row.stages.items()}

    def _detail(self, number: int, data: bytes, at: int) -> Detail:
        names = self._names.get(number)
        try:
            return Detail(names=names or (), digests=cut_digests(data, len(names or ())))
        except ValueError as e:
            raise StoreTampered(f"{self._path} is damaged at byte {at}: {e}") from e

    def _index(self) -> bool:
        try:
            with open(self._path, "rb") as f:
                for at, body in _bodies(f, self._read_to):
                    self._keep(at, body)
        except FileNotFoundError:
            return False
        return True

    def _keep(self, at: int, body: bytes) -> None:
        frame = self._decode(body, at)
        if isinstance(frame, _Names):
            self._names[frame.number] = frame.names
        else:
            self._rows[frame.seq] = (at, len(body))
        self._read_to = at + len(body)

    def _decode(self, body: bytes, at: int) -> _Frame:
        try:
            return _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise StoreTampered(f"{self._path} is damaged at byte {at}: {e}") from e


def _frame(frame: _Frame) -> bytes:
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def _bodies(f: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Every whole frame's body from byte `start` with its offset; a frame cut off by the end is left out."""
    f.seek(start)
    while len(head := f.read(_LENGTH.size)) == _LENGTH.size:
        at = f.tell()
        (length,) = _LENGTH.unpack(head)
        body = f.read(length)
        if len(body) < length:
            return
        yield at, body
