"""Which checkpoint each serving name is, from the entries of the gate's log alone (pure).

Rules
-----
* A name leads to a digest, and only the log says to which: nothing is ever moved, replaced or forgotten.
* A `Promoted` follows only from an earlier clearance of that digest that no refusal came after, and from what the name
  was at that time: one of two that were promoted at once does not follow, and is never written.
* A rollback takes the name back to what it was, and drops what it left: that is served again only if promoted again.

Trust: the keeper, whose key signed the log, for having decided by the policy. What became known against a checkpoint
since is not in this log but in those of the runs that it stands on: `troubles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from trainwarden.errors import GateTampered
from trainwarden.model import (
    CheckpointCleared,
    ClearanceRefused,
    GateBegun,
    GateEntry,
    Promoted,
    RolledBack,
)


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that a name leads to; `open` says what became known against it since, () for nothing."""

    name: str
    digest: str  # of its manifest, which is an object of the store
    index: int  # of its `Promoted`
    clearance: CheckpointCleared  # the newest, in what `served` gives
    wall_ns: int
    open: tuple[str, ...] = ()


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate's log says at one size."""

    keeper: str
    size: int
    decisions: Mapping[
        str, tuple[int, CheckpointCleared | ClearanceRefused]
    ]  # the newest of each digest, and its index
    names: Mapping[str, tuple[Promotion, ...]]  # the newest last; what was left by a rollback is gone

    def clearance(self, digest: str) -> tuple[int, CheckpointCleared] | None:
        """The clearance of a checkpoint and its index, None when it has none or was refused since."""
        found = self.decisions.get(digest)
        return (found[0], found[1]) if found and isinstance(found[1], CheckpointCleared) else None


def fold(entries: Iterable[GateEntry]) -> Gate:
    """What the entries say together.

    Raises:
        GateTampered: one of them does not follow from those before it.
    """
    keeper, size = "", 0
    decisions: dict[str, tuple[int, CheckpointCleared | ClearanceRefused]] = {}
    names: dict[str, list[Promotion]] = {}
    for index, entry in enumerate(entries):
        size = index + 1
        _check(index, isinstance(entry, GateBegun) == (index == 0), "the first entry alone names the keeper")
        match entry:
            case GateBegun():
                keeper = entry.key
            case CheckpointCleared() | ClearanceRefused():
                decisions[entry.digest] = (index, entry)
            case Promoted():
                names.setdefault(entry.name, []).append(_promotion(index, entry, decisions, names))
            case RolledBack():
                _roll_back(index, entry, names)
    return Gate(
        keeper=keeper, size=size, decisions=decisions, names={name: tuple(stack) for name, stack in names.items()}
    )


def history(entries: Iterable[GateEntry], name: str) -> tuple[tuple[int, Promoted | RolledBack], ...]:
    """Everything that ever happened to a name, with log indexes, oldest first."""
    return tuple((i, e) for i, e in enumerate(entries) if isinstance(e, Promoted | RolledBack) and e.name == name)


def current(entries: Iterable[GateEntry], name: str) -> Promotion | None:
    """What the name leads to, None when it was never promoted.

    Raises:
        GateTampered: the log does not follow.
    """
    return next(iter(fold(entries).names.get(name, ())[::-1]), None)


def served(
    entries: Iterable[GateEntry], name: str, troubles: Mapping[str, Sequence[str]] | None = None
) -> tuple[Promotion, ...]:
    """What may be served under a name, the newest first: whoever serves takes the first with nothing `open`.

    `troubles` says what the logs of runs have against a digest (`troubles.against`).

    Raises:
        GateTampered: the log does not follow.
    """
    gate, known = fold(entries), troubles or {}
    found: dict[str, Promotion] = {}
    for promotion in reversed(gate.names.get(name, ())):
        cleared = gate.clearance(promotion.digest)
        against = (*_refused_since(gate, promotion.digest), *known.get(promotion.digest, ()))
        newest = cleared[1] if cleared else promotion.clearance
        found.setdefault(promotion.digest, msgspec.structs.replace(promotion, open=against, clearance=newest))
    return tuple(found.values())


def _refused_since(gate: Gate, digest: str) -> tuple[str, ...]:
    index, decision = gate.decisions[digest]
    if isinstance(decision, CheckpointCleared):
        return ()
    return (f"refused by entry {index} of the gate's log: {'; '.join(decision.reasons)}",)


def _promotion(
    index: int,
    entry: Promoted,
    decisions: Mapping[str, tuple[int, CheckpointCleared | ClearanceRefused]],
    names: Mapping[str, Sequence[Promotion]],
) -> Promotion:
    decided = decisions.get(entry.digest)
    short = entry.digest[:12]
    if decided is None or not isinstance(decided[1], CheckpointCleared):
        raise _unfounded(index, f"{short} is promoted, and it {'was refused' if decided else 'was never cleared'}")
    _check(index, decided[0] == entry.cleared, f"{short} was cleared by entry {decided[0]}, not {entry.cleared}")
    before = names.get(entry.name)
    was = before[-1].digest if before else ""
    _check(index, entry.previous == was, f"{entry.name} was {was or 'nothing'}, not {entry.previous or 'nothing'}")
    return Promotion(name=entry.name, digest=entry.digest, index=index, clearance=decided[1], wall_ns=entry.wall_ns)


def _roll_back(index: int, entry: RolledBack, names: Mapping[str, list[Promotion]]) -> None:
    stack = names.get(entry.name, [])
    was = stack[-1].digest if stack else "nothing"
    _check(index, was == entry.left, f"{entry.name} was {was}, not {entry.left}")
    target = next((i for i in range(len(stack) - 2, -1, -1) if stack[i].digest == entry.digest), None)
    if target is None:
        raise _unfounded(index, f"{entry.name} never was {entry.digest[:12]} before")
    del stack[target + 1 :]


def _check(index: int, holds: bool, otherwise: str) -> None:
    if not holds:
        raise _unfounded(index, otherwise)


def _unfounded(index: int, why: str) -> GateTampered:
    return GateTampered(
        f"entry {index} of the gate's log does not follow: {why}",
        hint="keep the store as evidence; nothing is served by what it says",
    )
