"""Random numbers: a generator is seeded in mid-attempt, stands where it stood before, or is another rank's.

Read from the stage `rng` of the step records, from `Reseeded`, and from the seeds at the first step (`RandomSeen`).
Only the state at a step's first training forward pass counts: what is put back before it (`fork_rng`, an evaluation
with its own seed, the recomputation of activations) leaves no trace. States from before a checkpoint was loaded are
forgotten, since it may bring its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from trainwarden.detect.about import about
from trainwarden.model import (
    CheckpointLoaded,
    Confidence,
    Detail,
    Entry,
    Finding,
    RandomSeen,
    Reseeded,
    Severity,
    Stage,
    StepRecord,
)

MAX_RANKS = 4_096
MAX_OPEN = 64
KEPT = 256  # states of each rank: the first ones, and as many of the newest
UNSEEDED = 67_280_421_310_721  # at::default_rng_seed_val (c10/core/GeneratorImpl.h)
_NEAR = 1_024
_SEEDERS = ("transformers", "accelerate", "lightning", "pytorch_lightning", "lightning_fabric")  # on a script's behalf
_FORWARD, _UPDATE = "forward0/torch", "update/torch"


@dataclass
class _Rank:
    """The states that a rank's torch generator was seen in."""

    early: dict[bytes, int] = field(default_factory=dict)
    late: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    last: bytes = b""

    def before(self, state: bytes) -> int:
        """The step at which it stood there before and has moved on since, −1 for none; remembers it."""
        if state == self.last:
            return -1
        self.last = state
        return self.early.get(state, self.late.get(state, -1))

    def keep(self, state: bytes, step: int) -> None:
        if state in self.early or state in self.late:
            return
        if len(self.early) < KEPT:
            self.early[state] = step
            return
        self.late[state] = step
        if len(self.late) > KEPT:
            self.late.popitem(last=False)


@dataclass
class _Step:
    states: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # state → rank, index
    ranks: int = 0


class Rng:
    """Follows the states of the torch generators, and tells of seeds."""

    id = "rng"

    def __init__(self, seeds: Mapping[str, int] = MappingProxyType({})) -> None:
        self._seeds = frozenset(seeds.values())
        self._ranks: OrderedDict[tuple[int, int], _Rank] = OrderedDict()
        self._open: OrderedDict[tuple[int, int], _Step] = OrderedDict()
        self._apart: dict[tuple[int, int, int], int] = {}  # attempt, ranks → steps seen apart
        self._said: set[int] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case CheckpointLoaded():
                self._ranks.pop((entry.attempt, entry.rank), None)
            case RandomSeen():
                return list(self._first(index, entry))
            case Reseeded():
                return (_reseeded(index, entry),)
            case StepRecord() if detail and entry.optimizer == 0:
                return list(self._state(index, entry, detail))
        return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _first(self, index: int, seen: RandomSeen) -> Iterator[Finding]:
        near = _NEAR + max(0, seen.world)
        if not self._seeds or any(0 <= seen.torch - known <= near for known in self._seeds):
            return
        if any(abs(seen.torch - said) <= near for said in self._said):
            return
        if len(self._said) < MAX_RANKS:
            self._said.add(seen.torch)
            yield _unaccounted(index, seen, self._seeds)

    def _state(self, index: int, record: StepRecord, detail: Mapping[Stage, Detail]) -> Iterator[Finding]:
        states = detail.get(Stage.RNG)
        state = _torch(states) if states else None
        if state is None:
            return
        rank = self._ranks.setdefault((record.attempt, record.rank), _Rank())
        if len(self._ranks) > MAX_RANKS:
            self._ranks.popitem(last=False)
        earlier = rank.before(state)
        rank.keep(state, record.step)
        if earlier >= 0:
            yield _again(index, record, earlier)
        if record.world > 1:
            yield from self._shared(index, record, state)

    def _shared(self, index: int, record: StepRecord, state: bytes) -> Iterator[Finding]:
        """Two ranks that stood apart stand on one state now."""
        step = self._open.setdefault((record.attempt, record.step), _Step())
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        other = step.states.get(state)
        if other is None:
            for rank, _ in step.states.values():
                pair = (record.attempt, min(rank, record.rank), max(rank, record.rank))
                if len(self._apart) < MAX_RANKS or pair in self._apart:
                    self._apart[pair] = self._apart.get(pair, 0) + 1
            if len(step.states) < KEPT:
                step.states[state] = (record.rank, index)
            return
        pair = (record.attempt, min(other[0], record.rank), max(other[0], record.rank))
        if self._apart.pop(pair, 0):
            yield _one_state(other[1], index, record, pair[1:])


def _torch(detail: Detail) -> bytes | None:
    for name, digest in zip(detail.names, detail.digests, strict=False):
        if name in (_FORWARD, _UPDATE):
            return digest
    return None


_finding = partial(about, Rng.id, Stage.RNG)


def _again(index: int, record: StepRecord, earlier: int) -> Finding:
    return _finding(
        (index,),
        record,
        Severity.LOW,
        Confidence.MEDIUM,
        f"The torch generator of rank {record.rank} stands at step {record.step} where it stood at step {earlier}.",
        "A generator that has moved on does not come back.",
        (
            "the script seeds its generator again on purpose (each epoch, each step)",
            "the script restored a state of its own without loading a file",
        ),
    )


def _one_state(before: int, index: int, record: StepRecord, ranks: tuple[int, ...]) -> Finding:
    return _finding(
        (before, index),
        record,
        Severity.MEDIUM,
        Confidence.MEDIUM,
        f"The torch generators of ranks {ranks[0]} and {ranks[1]} stand on one state at step {record.step}, "
        "and did not before.",
        "Ranks that began with different random numbers keep different ones.",
        ("the script seeds all ranks alike on purpose", "all ranks restored the state of one of them"),
        ranks=ranks,
    )


def _reseeded(index: int, entry: Reseeded) -> Finding:
    place = f"{entry.function} ({entry.file}:{entry.line})" if entry.file else "code that was not seen"
    installed = "/site-packages/" in entry.file or "/dist-packages/" in entry.file
    installed = installed and not any(f"/{name}/" in entry.file for name in _SEEDERS)
    return _finding(
        (index,),
        entry,
        Severity.MEDIUM if installed else Severity.LOW,
        Confidence.MEDIUM,
        f"Rank {entry.rank} trains step {entry.step} on a {entry.generator} generator that was seeded again"
        f"{f' with {entry.seed}' if entry.seed else ''} by {place}.",
        "Generators are seeded before the first step, and go on from there.",
        ("the script seeds its generators again on purpose (each epoch, before an evaluation)",),
    )


def _unaccounted(index: int, seen: RandomSeen, seeds: frozenset[int]) -> Finding:
    known = ", ".join(str(s) for s in sorted(seeds))
    if seen.torch == UNSEEDED:
        text = f"Rank {seen.rank} never seeded its torch generator, and the command names {known}."
    else:
        text = f"Rank {seen.rank} began with torch seed {seen.torch}, and the command names {known}."
    return _finding(
        (index,),
        seen,
        Severity.LOW,
        Confidence.LOW,
        text,
        "The first seed is one that the sealed command line names, or one of these and the rank.",
        ("the sealed script has the seed in its code or in its configuration", "it goes on from a checkpoint's state"),
    )
