"""Are the weights that a rank recorded the ones in the file that it saved?

Rules
-----
* The file is read from outside the rank, as bytes; nothing in it is executed and no torch is used. It is read
  and not mapped: whoever truncates a mapped file kills the process that reads it.
* safetensors (https://github.com/huggingface/safetensors, "Format"): an 8-byte little-endian header length, a
  JSON header, raw row-major tensors. The header is bounded, and every tensor must lie inside the file.
* A tensor is compared when a recorded name equals its name or is its ending after a dot (or the other way
  round). One that was cast to another dtype has another digest, which cannot be told from an edit by digests
  alone. So a file of which *no* tensor agrees is "not comparable", unless the same tensors, with the same
  dtype and shape, agreed in an earlier file of this run at such a place: then it differs. Places are the same when
  folder and name are equal but for numbers.
* A weight average has every parameter other than the model, under the same names, and may share its buffers. So buffers
  alone make no file comparable, and what was saved at one place says nothing of another.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from trainwarden.model import UNREADABLE, Detail
from trainwarden.record.fingerprint import digest_bytes

MAX_HEADER = 100 * 1024 * 1024  # the format's own limit
MAX_TENSOR = 8 * 1024 * 1024 * 1024  # bytes held in memory at a time
MATCHES, NOT_CHECKED = "matches", ""
_COUNTED = re.compile(r"[0-9a-f]{8,}|[0-9]+")  # numbers and names made of digests
_BUFFER = "buffer/"

_DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "I16": ("int16", 2), "U16": ("uint16", 2),
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I32": ("int32", 4), "U32": ("uint32", 4),
    "F32": ("float32", 4), "I64": ("int64", 8), "U64": ("uint64", 8), "F64": ("float64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "C64": ("complex64", 8),
}  # fmt: skip


class _Place(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class FileTensor(msgspec.Struct, frozen=True):
    """One tensor of a file: its name, dtype as torch names it, shape, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class WeightCheck:
    """Compares saved files with recorded weights, remembering which tensors were comparable before."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._agreed: set[tuple[str, str, str, tuple[int, ...]]] = set()

    def compare(self, path: Path, recorded: Detail, place: str = "") -> str:
        """ "matches", "differs: <first tensor>" or "" when nothing in the file can be compared.

        `place` is where the file was saved.

        Raises:
            ValueError: the file is not in the safetensors format.
            OSError: it cannot be read.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._judge(fd, recorded, _COUNTED.sub("#", "/".join(place.split("/")[-2:])))
        finally:
            os.close(fd)

    def _judge(self, fd: int, recorded: Detail, place: str) -> str:
        digests = dict(zip((n.removeprefix(_BUFFER) for n in recorded.names), recorded.digests, strict=True))
        buffers = {n.removeprefix(_BUFFER) for n in recorded.names if n.startswith(_BUFFER)}
        by_ending = _endings(digests)
        agree: list[tuple[str, str, str, tuple[int, ...]]] = []
        differ: list[tuple[str, str, str, tuple[int, ...]]] = []
        for tensor in safetensors(fd):
            name = _recorded_name(tensor.name, digests, by_ending)
            if name is not None:
                same = self._digest(fd, tensor) == digests[name]
                (agree if same else differ).append((place, name, tensor.dtype, tensor.shape))
        self._agreed.update(agree)
        found = {name for _, name, _, _ in (*agree, *differ)}
        comparable = any(name not in buffers or found <= buffers for _, name, _, _ in agree)
        certain = [which for which in differ if comparable or which in self._agreed]
        if certain:
            return f"differs: {certain[0][1]}"
        return MATCHES if comparable else NOT_CHECKED

    def _digest(self, fd: int, tensor: FileTensor) -> bytes:
        return digest_bytes(self._key, tensor.dtype, tensor.shape, _read(fd, tensor.start, tensor.size))


def safetensors(fd: int) -> list[FileTensor]:
    """Every tensor of a file in the safetensors format, in the order of the header.

    Raises:
        ValueError: the bytes are not in that format, or a tensor lies outside of them.
        OSError: the file cannot be read.
    """
    size = os.fstat(fd).st_size
    length = int.from_bytes(_read(fd, 0, 8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(f"header of {length} bytes in a file of {size}")
    try:
        header = msgspec.json.decode(_read(fd, 8, length), type=dict[str, msgspec.Raw])
        places = {n: msgspec.json.decode(p, type=_Place) for n, p in header.items() if n != "__metadata__"}
    except UNREADABLE as e:
        raise ValueError(f"not a safetensors header: {e}") from e
    return [_tensor(name, place, 8 + length, size) for name, place in places.items()]


def _read(fd: int, start: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.pread(fd, min(size - len(parts), 1 << 26), start + len(parts))
        if not part:
            raise ValueError(f"the file ends at byte {start + len(parts)}, {size - len(parts)} bytes early")
        parts += part
    return bytes(parts)


def _tensor(name: str, place: _Place, base: int, file_size: int) -> FileTensor:
    if place.dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {place.dtype!r}")
    dtype, width = _DTYPES[place.dtype]
    start, end = place.data_offsets
    size = width * math.prod(place.shape)
    if min(start, *place.shape, 0) < 0 or end - start != size or base + end > file_size:
        raise ValueError(f"tensor {name!r} does not lie where the header says")
    if size > MAX_TENSOR:
        raise ValueError(f"tensor {name!r} of {size} bytes is above the limit of {MAX_TENSOR}")
    return FileTensor(name=name, dtype=dtype, shape=place.shape, start=base + start, size=size)


def _endings(names: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Recorded names by each of their endings after a dot."""
    by_ending: dict[str, list[str]] = {}
    for name in names:
        for ending in _dotted_endings(name):
            by_ending.setdefault(ending, []).append(name)
    return by_ending


def _recorded_name(name: str, digests: Mapping[str, bytes], by_ending: Mapping[str, list[str]]) -> str | None:
    """The one recorded name that a file's name stands for; None when there is none or more than one."""
    if name in digests:
        return name
    longest = next((ending for ending in _dotted_endings(name) if ending in digests), None)
    if longest is not None:
        return longest
    candidates = by_ending.get(name, [])
    return candidates[0] if len(candidates) == 1 else None


def _dotted_endings(name: str) -> Iterable[str]:
    """`a.b.c` → `b.c`, `c`: longest first."""
    while "." in name:
        name = name.partition(".")[2]
        yield name
