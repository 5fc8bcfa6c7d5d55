"""Files of pickles: one stream or several in a row, torch's legacy form, joblib's.

Source of the legacy form: torch/serialization.py, `_legacy_save`: magic number, protocol, system, object, keys of
storages, then each storage's number of items and bytes.
"""

from __future__ import annotations

from typing import Final

from trainwarden.gate.results import MOST_OBJECTIONS, Clean, Decision, Objection, Refused, Undecided, joined
from trainwarden.gate.scan.pickles.instructions import follow
from trainwarden.gate.scan.pickles.machine import Machine
from trainwarden.gate.scan.pickles.stream import Broken
from trainwarden.gate.scan.pickles.values import Many, Storage, Value
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.window import Window

MAGIC: Final = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL: Final = 1001
MOST_STREAMS: Final = 10_000
_ALIKE: Final = (
    ValueError,
    OverflowError,
    RecursionError,
    AttributeError,
    IndexError,
)  # hostile values; all of them doubts


class Followed:
    """One stream that was followed: what it leaves, where it ends, and what there is to say of it."""

    def __init__(self, window: Window, at: int, place: Place) -> None:
        machine = Machine(window, at, place.path, place.budget.instructions)
        self.result: Value = None
        self.broken = ""
        try:
            self.result = follow(machine)
        except Broken as e:
            self.broken = str(e)
        except _ALIKE as e:
            self.broken = f"it holds a value that cannot be followed ({type(e).__name__})"
        place.budget.instructions = machine.spent
        self.end, self.named = machine.offset(), machine.named
        self.objections: list[Objection] = machine.objections
        self.storages: list[Storage] = machine.storages
        self.nested = [
            place.inside(window.part(blob.offset, blob.size), f"bytes@{blob.offset}") for blob in machine.nested
        ]

    def decision(self, kind: str, place: Place) -> Decision:
        """The decision on this stream alone."""
        if self.objections:
            return joined(kind, [Refused(kind=kind, objections=tuple(self.objections[:MOST_OBJECTIONS])), *self.nested])
        if self.broken:
            return place.undecided(kind, self.broken)
        return joined(kind, [Clean(kind=kind), *self.nested])


def read_one(window: Window, place: Place) -> tuple[Decision, list[Storage]]:
    """The pickle of an archive: one stream and nothing behind it."""
    first = Followed(window, 0, place)
    decision = first.decision("pickle", place)
    if isinstance(decision, Clean) and first.end != window.size:
        decision = _behind(place, first.end)
    return decision, first.storages


def read_file(window: Window, place: Place) -> Decision:
    """A file that begins as a pickle."""
    first = Followed(window, 0, place)
    if first.result == MAGIC and type(first.result) is int:
        return _legacy(window, first, place)
    parts, at, count = [first.decision("pickle", place)], first.end, 1
    while isinstance(parts[-1], Clean) and at < window.size:
        following = Followed(window, at, place)
        if (following.broken and not following.named) or count >= MOST_STREAMS:
            parts.append(_behind(place, at))
            break
        parts = [parts[0], following.decision("pickle", place)]
        at, count = following.end, count + 1
    return joined("pickle", parts)


def _behind(place: Place, at: int) -> Refused:
    why = "bytes behind the end of the pickle: what reads on past it sees something else"
    return Refused(kind="pickle", objections=(Objection(part=place.path, offset=at, opcode="STOP", name="", why=why),))


def _legacy(window: Window, first: Followed, place: Place) -> Decision:
    kind = "torch legacy"
    streams, at = [first], first.end
    for _ in range(4):
        streams.append(Followed(window, at, place))
        at = streams[-1].end
        if streams[-1].broken or streams[-1].objections:
            return joined(kind, [s.decision(kind, place) for s in streams])
    judged = joined(kind, [s.decision(kind, place) for s in streams])
    if not isinstance(judged, Clean):
        return judged
    if streams[1].result != LEGACY_PROTOCOL:
        return place.undecided(kind, "a protocol of torch's that is not known")
    return _storages(window, streams, at, place) or judged


def _storages(window: Window, streams: list[Followed], at: int, place: Place) -> Undecided | Refused | None:
    kind = "torch legacy"
    keys = streams[4].result
    named = {s.key: s for s in streams[3].storages}
    if (
        not isinstance(keys, Many)
        or keys.count != len(keys.items)
        or {k for k in keys.items if isinstance(k, str)} != set(named)
    ):
        return place.undecided(kind, "the storages that follow are not those that it names")
    for key in keys.items:
        storage = named[str(key)]
        numel = int.from_bytes(window.read(at, 8), "little")
        if numel != storage.numel:
            return place.undecided(kind, f"storage {key} has another size than the pickle says")
        at += 8 + numel * storage.itemsize
    if at > window.size:
        return place.undecided(kind, "it is cut off: a storage's bytes are missing")
    return None if at == window.size else _behind(place, at)
