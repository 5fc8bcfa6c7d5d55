"""What each index of a data set gave, by digest: within a run, and as a manifest of samples.

A manifest is text: a line of JSON that names the tensors of a sample, then one line for each index with its digest in
hexadecimal, `-` where the sample was not seen. The digests have no key, so that one made in one run holds in another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from trainwarden.durable import hint_for, write_atomically
from trainwarden.errors import StoreError, UsageError
from trainwarden.wire import SAMPLE_BYTES

MOST_BYTES = 32 << 20  # of digests kept for one data set
FORMAT = "trainwarden-samples"
_TAG = 4


@dataclass
class Table:
    """The digests of the samples of one data set, by index; `names` are the tensors of a sample."""

    names: tuple[str, ...]
    size: int  # samples of the data set
    digests: bytearray = field(default_factory=bytearray)
    seen: bytearray = field(default_factory=bytearray)
    varying: set[str] = field(default_factory=set)  # tensors that differ as random augmentation makes them

    @property
    def width(self) -> int:
        """Bytes of a sample's digest."""
        return SAMPLE_BYTES * len(self.names)

    @property
    def room(self) -> int:
        """Indexes that are remembered."""
        return min(self.size, MOST_BYTES // max(1, self.width))

    def get(self, index: int) -> bytes | None:
        """The digest that was kept for an index."""
        if not 0 <= index < len(self.seen) or not self.seen[index]:
            return None
        return bytes(self.digests[index * self.width : (index + 1) * self.width])

    def put(self, index: int, digest: bytes) -> None:
        """Keep an index's digest, where there is room."""
        if not 0 <= index < self.room or len(digest) != self.width:
            return
        if index >= len(self.seen):
            grown = min(self.room, max(index + 1, 2 * len(self.seen)))
            self.digests.extend(bytes((grown - len(self.seen)) * self.width))
            self.seen.extend(bytes(grown - len(self.seen)))
        self.digests[index * self.width : (index + 1) * self.width] = digest
        self.seen[index] = 1

    def copies(self) -> tuple[int, int]:
        """Samples seen, and how many of them are equal to another one before them."""
        found = [d for i in range(len(self.seen)) if (d := self.get(i)) is not None]
        return len(found), len(found) - len(set(found))

    def text(self) -> str:
        """The manifest's text."""
        about = {"format": FORMAT, "version": 1, "names": self.names, "samples": self.size}
        head = json.dumps(about | {"varying": sorted(self.varying)})
        rows = ((d.hex() if (d := self.get(i)) is not None else "-") for i in range(len(self.seen)))
        return "\n".join((head, *rows)) + "\n"


def differing(names: tuple[str, ...], one: bytes, other: bytes) -> tuple[list[str], list[str], list[str]]:
    """The tensors of a sample that differ, that are equal, and that have another type or shape."""
    differ: list[str] = []
    same: list[str] = []
    unlike: list[str] = []
    for i, name in enumerate(names):
        a, b = (d[i * SAMPLE_BYTES : (i + 1) * SAMPLE_BYTES] for d in (one, other))
        (same if a == b else unlike if a[:_TAG] != b[:_TAG] else differ).append(name)
    return differ, same, unlike


def parse(text: str) -> Table:
    """A manifest's table.

    Raises:
        ValueError: it is no manifest of samples.
    """
    head, *rows = text.splitlines()
    about = json.loads(head)
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != 1:
        raise ValueError(f"it does not begin as a manifest of samples does: {head[:80]!r}")
    table = Table(tuple(str(n) for n in about["names"]), int(about["samples"]))
    table.varying.update(str(n) for n in about["varying"])
    if not table.names or len(rows) > table.size:
        raise ValueError(f"{len(rows)} lines for {table.size} samples of {len(table.names)} tensors")
    for index, row in enumerate(rows):
        if row != "-":
            digest = bytes.fromhex(row)
            if len(digest) != table.width:
                raise ValueError(f"line {index + 2} holds {len(digest)} bytes, not {table.width}")
            table.put(index, digest)
    return table


def read_manifest(path: Path) -> tuple[Table, bytes]:
    """A manifest's table and the bytes that it was read from.

    Raises:
        UsageError: it cannot be read or is no manifest of samples.
    """
    try:
        data = path.read_bytes()
        return parse(data.decode()), data
    except OSError as e:
        raise UsageError(f"cannot read the manifest of samples {path}: {e.strerror}", hint=hint_for(e)) from e
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        hint = "make one from a run that you trust: trainwarden query RUN --samples FILE"
        raise UsageError(f"{path} is no manifest of samples: {e}", hint=hint) from e


def kept_in(private: Path) -> Path:
    """Where a run keeps the samples of its largest data set, in its private folder."""
    return private / "samples.txt"


def keep(table: Table, private: Path) -> None:
    """Write a run's table, whole or not at all. Raises StoreError."""
    try:
        write_atomically(kept_in(private), table.text().encode(), mode=0o600)
    except OSError as e:
        raise StoreError(f"cannot write {kept_in(private)}: {e.strerror}", hint=hint_for(e)) from e
