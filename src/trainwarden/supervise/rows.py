"""What ranks told of the samples of each batch, row by row, kept for whoever explains a batch that differs.

Rules
-----
* Kept in the run's private folder as frames of a 4-byte big-endian length and a msgpack array. Of a long run only the
  newest are there: two files, of which the older one goes when the newer is full.
* These are hints. They say where to look, and prove nothing: what is found must give the digest that the log has.
* A frame that is cut off, and all after one that is damaged, is not read: less is found then, and nothing false.
"""

from __future__ import annotations

import struct
from io import FileIO
from pathlib import Path

import msgspec

from trainwarden.durable import hint_for
from trainwarden.errors import StoreError

MOST_BYTES = 32 << 20  # of each of the two files
_NEW, _OLD = "rows.bin", "rows.old.bin"
_LENGTH = struct.Struct(">I")


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """A batch: the indexes of its samples (8 bytes each, little-endian), and digests of some rows of its tensors.

    `rows` are their places in the batch, 4 bytes each; `digests` holds one for each of them and each of `names`.
    """

    attempt: int
    rank: int
    step: int
    names: tuple[str, ...]
    indexes: bytes
    rows: bytes
    digests: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Rows)


class RowFile:
    """Appends batches; used by one thread. `close` once; an `append` afterwards opens the file again."""

    def __init__(self, private: Path) -> None:
        self._path, self._older = private / _NEW, private / _OLD
        self._file: FileIO | None = None

    def append(self, rows: Rows) -> None:
        """Keep a batch. Raises StoreError."""
        data = _encoder.encode(rows)
        try:
            self._open(len(data)).write(_LENGTH.pack(len(data)) + data)
        except OSError as e:
            raise StoreError(f"cannot write {self._path}: {e.strerror}", hint=hint_for(e)) from e

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, more: int) -> FileIO:
        if self._file is not None and self._file.tell() + more > MOST_BYTES:
            self.close()
            self._path.replace(self._older)
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)  # unbuffered: who explains a batch reads it meanwhile
        return self._file


def read_rows(private: Path, attempt: int, steps: range) -> dict[tuple[int, int], list[Rows]]:
    """What is kept of an attempt's batches in these steps: (step, rank) → batches in the order of time."""
    found: dict[tuple[int, int], list[Rows]] = {}
    for name in (_OLD, _NEW):
        for rows in _frames(private / name):
            if rows.attempt == attempt and rows.step in steps:
                found.setdefault((rows.step, rows.rank), []).append(rows)
    return found


def _frames(path: Path) -> list[Rows]:
    found: list[Rows] = []
    try:
        data = path.read_bytes()
        at = 0
        while at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + length
            if at > len(data):
                break
            found.append(_decoder.decode(data[at - length : at]))
    except (OSError, msgspec.DecodeError):
        return found
    return found
