"""Everything that can be a leaf of a log, and its bytes."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from trainwarden.model.actors import RegistryEntry
from trainwarden.model.audits import SampledAudit, UnitAudited, UnitsDrawn
from trainwarden.model.base import Noun
from trainwarden.model.custody import CustodyEntry
from trainwarden.model.findings import Finding
from trainwarden.model.gate import GateEntry
from trainwarden.model.happenings import (
    Approved,
    CheckpointLoaded,
    CheckpointSaved,
    CleanRoom,
    CodeSeen,
    DataOpened,
    FileChanged,
    ProcessExited,
    ProcessSeen,
    ProcessStarted,
    RunEnded,
)
from trainwarden.model.hosts import ClockShifted, HostCrowded, Stalled
from trainwarden.model.inputs import DataDiffers, PassSeen
from trainwarden.model.notes import Note
from trainwarden.model.reductions import ReductionSeen
from trainwarden.model.responses import (
    Contained,
    Quarantined,
    Recovered,
    Released,
    Responded,
    Restored,
    Undelivered,
    Undone,
)
from trainwarden.model.steps import Gap, StepRecord
from trainwarden.model.updates import UpdateSeen
from trainwarden.model.verdicts import Diverged, Explanation, Inconclusive, Matched


class Sealed(Noun, tag="sealed"):
    """First entry of every log: the seal by digest and the key that signed it."""

    run: str
    seal: str
    key: str
    parent: str = ""  # run this one recovers, if any
    wall_ns: int = 0


Entry: TypeAlias = (
    Sealed | ProcessStarted | StepRecord | Gap | CheckpointSaved | CheckpointLoaded | DataOpened
    | ProcessExited | FileChanged | CodeSeen | ProcessSeen | CleanRoom | Approved | Finding | Matched | Diverged
    | Inconclusive | Explanation | Quarantined | Restored | Recovered | Responded | Released
    | Undelivered | Contained | Undone | RunEnded
    | Note
    | Stalled | ClockShifted | HostCrowded
    | PassSeen | DataDiffers
    | UpdateSeen
    | ReductionSeen
    | UnitsDrawn | UnitAudited | SampledAudit
)  # fmt: skip
"""Everything that can be a leaf of the log. Each has its own `type` tag."""


class TreeHead(Noun):
    """A signed statement of the log's size and RFC 6962 root."""

    origin: str
    size: int
    root: str  # hex SHA-256
    note: str = ""  # the signed note (C2SP signed-note) that carries it


class RecordBatch(Noun, tag="records"):
    """The one leaf that binds a Parquet file of step records: entries `first` to `last` of a host's log of a run."""

    host: str
    run: str
    first: int  # log indexes on the host; every entry from first to last is in the file
    last: int
    count: int
    leaves: str  # RFC 6962 root over the leaf hashes that these entries have in the host's log
    sha256: str  # of the Parquet file
    size: int  # of the Parquet file, in bytes
    head: str = ""  # the signed tree head of the host's log that covers them


class LoggedEntry(Noun, tag="entry"):
    """Entry `index` of a host's log of a run; a large one travels as the leaf's object, or stays on the host."""

    host: str
    run: str
    index: int
    leaf: str  # its RFC 6962 leaf hash in the host's log
    size: int  # in bytes
    entry: str = ""  # its bytes as text; "" when it is too large for a leaf


Leaf: TypeAlias = RecordBatch | LoggedEntry
"""Everything that a host sends to a log server."""


_encoder = msgspec.json.Encoder(order="deterministic")
_entry_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
_leaf_decoder: msgspec.json.Decoder[Leaf] = msgspec.json.Decoder(Leaf)
_custody_decoder: msgspec.json.Decoder[CustodyEntry] = msgspec.json.Decoder(CustodyEntry)
_registry_decoder: msgspec.json.Decoder[RegistryEntry] = msgspec.json.Decoder(RegistryEntry)
_gate_decoder: msgspec.json.Decoder[GateEntry] = msgspec.json.Decoder(GateEntry)


T = TypeVar("T")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding hostile bytes raises; the last where they are nested without end."""


def canonical(noun: msgspec.Struct) -> bytes:
    """The one byte form of a noun that digests and signatures are made over: JSON, fields as defined, maps sorted."""
    return _encoder.encode(noun)


def decode_entry(data: bytes) -> Entry:
    """Parse the bytes of a log leaf.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not an entry.
    """
    return _decoded(_entry_decoder, data)


def decode_leaf(data: bytes) -> Leaf:
    """Parse the bytes of a leaf of a log server.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not such a leaf.
    """
    return _decoded(_leaf_decoder, data)


def decode_registry_entry(data: bytes) -> RegistryEntry:
    """Parse the bytes of a leaf of the log of actors.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not such an entry.
    """
    return _decoded(_registry_decoder, data)


def decode_gate_entry(data: bytes) -> GateEntry:
    """Parse the bytes of a leaf of a gate's log.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not such an entry.
    """
    return _decoded(_gate_decoder, data)


def decode_custody_entry(data: bytes) -> CustodyEntry:
    """Parse the bytes of a leaf of the log of custody.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: the bytes are not such an entry.
    """
    return _decoded(_custody_decoder, data)


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except RecursionError as e:
        raise msgspec.DecodeError("nested too deeply") from e
