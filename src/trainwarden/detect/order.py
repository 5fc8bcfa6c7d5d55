"""Batch order: a loader handed out other samples than its sampler's seed and epoch say, or has another sampler.

The watcher derives the order of PyTorch's own samplers from what a rank says of them, without the rank's PyTorch,
and compares every batch (`DataDiffers`). What the rank says of its sampler is judged here: its seed against those of
the seal, its settings against those of its earlier passes and of the other ranks.

Not checked, and said once for each sampler: other samplers, iterable data sets, orders drawn with replacement.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

from trainwarden.detect.about import about
from trainwarden.model import (
    Confidence,
    DataDiffers,
    Detail,
    Entry,
    Finding,
    PassSeen,
    ProcessStarted,
    Severity,
    Stage,
)

MAX_KEPT = 4_096
_NEAR = 1_024  # ranks: scripts add the rank to the seed

_Place = tuple[int, int, int]


class Order:
    """Judges `PassSeen` and the differences in order."""

    id = "order"

    def __init__(self, seeds: Mapping[str, int] = MappingProxyType({})) -> None:
        self._seeds = frozenset(seeds.values())
        self._last: OrderedDict[_Place, tuple[int, PassSeen]] = OrderedDict()
        self._first: OrderedDict[tuple[int, int, int], tuple[int, PassSeen]] = OrderedDict()
        self._worlds: OrderedDict[int, int] = OrderedDict()
        self._said: set[str] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case ProcessStarted():
                self._worlds[entry.attempt] = entry.world
                _bound(self._worlds)
            case DataDiffers(kind="order"):
                return (_other(index, entry),)
            case DataDiffers(kind="lost"):
                return (_lost(index, entry),)
            case PassSeen():
                return list(self._passes(index, entry))
        return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _passes(self, index: int, seen: PassSeen) -> Iterator[Finding]:
        place = (seen.attempt, seen.rank, seen.loader)
        before = self._last.get(place)
        self._last[place] = (index, seen)
        _bound(self._last)
        if before is not None:
            changed = _changes(before[1], seen)
            if changed:
                yield _changed(before[0], before[1], index, seen, changed)
        if before is None and seen.order == "distributed":
            yield from self._beside(index, seen)
        if seen.unordered and self._is_new(f"{seen.sampler} {seen.unordered}"):
            yield _unchecked(index, seen)
        unknown = self._seeds and seen.order and not seen.unordered and seen.shuffle and not self._accounts_for(seen)
        if unknown and self._is_new(f"seed of {seen.sampler} over {seen.dataset}"):
            yield self._unaccounted(index, seen)

    def _beside(self, index: int, seen: PassSeen) -> Iterator[Finding]:
        """The first pass of a loader against the same one of another rank: parts of one order, and not one part."""
        key = (seen.attempt, seen.loader, seen.part)
        other = self._first.setdefault(key, (index, seen))
        _bound(self._first)
        world = self._worlds.get(seen.attempt, 0)
        if other[1].rank != seen.rank and seen.replicas > 1 and seen.replicas == world:
            yield _clone(*other, index, seen)
        first = next((v for k, v in self._first.items() if k[:2] == key[:2]), other)
        if first[1].rank != seen.rank and first[1].replicas == seen.replicas and _apart(first[1], seen):
            yield _divided(*first, index, seen)

    def _is_new(self, what: str) -> bool:
        if what in self._said or len(self._said) >= MAX_KEPT:
            return False
        self._said.add(what)
        return True

    def _accounts_for(self, seen: PassSeen) -> bool:
        seed = seen.seed
        return seed is None or any(0 <= seed - known <= _NEAR for known in (0, *self._seeds))

    def _unaccounted(self, index: int, seen: PassSeen) -> Finding:
        known = ", ".join(str(s) for s in sorted(self._seeds))
        return _finding(
            (index,),
            seen,
            Severity.LOW,
            Confidence.LOW,
            f"The order of the data comes from seed {seen.seed}, and the command names {known}.",
            "The seed of the order is one that the sealed command line names, or 0.",
            ("the sealed script has the seed in its code or in its configuration",),
        )


def _bound(kept: OrderedDict[_Place, tuple[int, PassSeen]] | OrderedDict[int, int]) -> None:
    while len(kept) > MAX_KEPT:
        kept.popitem(last=False)


def _changes(one: PassSeen, other: PassSeen) -> list[str]:
    """Settings of one loader that differ between two of its passes."""
    names = ["sampler", "shuffle", "replicas", "part", "even", "batch", "drop_last", "samples"]
    if one.order == other.order == "distributed":
        names.append("seed")
    pairs = [(n.replace("_", " "), getattr(one, n), getattr(other, n)) for n in names]
    return [f"{name} from {a} to {b}" for name, a, b in pairs if a != b]


def _apart(one: PassSeen, other: PassSeen) -> bool:
    """Whether two ranks' samplers of the same data divide it differently."""
    facts = [(p.seed, p.shuffle, p.samples, p.even) for p in (one, other)]
    return facts[0] != facts[1] and one.dataset == other.dataset


_finding = partial(about, Order.id, Stage.BATCH)


def _other(index: int, d: DataDiffers) -> Finding:
    belongs = f"where sample {d.expected} belongs" if d.expected >= 0 else "where the order has no more"
    return _finding(
        (index,),
        d,
        Severity.HIGH if d.exact else Severity.MEDIUM,
        Confidence.HIGH if d.exact else Confidence.LOW,
        f"Rank {d.rank} was given sample {d.found} at step {d.step} {belongs} (batch {d.batch} of pass {d.number} over "
        f"loader {d.loader}).",
        "A loader hands out the order that follows from its sampler's seed and epoch.",
        ("the script replaces the iteration of PyTorch's sampler on purpose",)
        if d.exact
        else ("the sampler's class changes the order of the class that it is made from",),
    )


def _lost(index: int, d: DataDiffers) -> Finding:
    return _finding(
        (index,),
        d,
        Severity.MEDIUM,
        Confidence.HIGH,
        f"A pass of rank {d.rank} over loader {d.loader} ended at step {d.step} after {d.found} of "
        f"{d.expected} samples.",
        "A pass hands out every sample of the rank's part, but for a last batch that is dropped.",
        ("the script replaces the iteration of PyTorch's sampler on purpose",),
    )


def _changed(before: int, one: PassSeen, index: int, other: PassSeen, changed: list[str]) -> Finding:
    return _finding(
        (before, index),
        other,
        Severity.MEDIUM if not all(c.startswith("samples ") for c in changed) else Severity.LOW,
        Confidence.MEDIUM,
        f"The sampler of loader {other.loader} of rank {other.rank} is not what it was in an earlier pass: "
        f"{', '.join(changed)}.",
        "A loader keeps its sampler and its settings, but for the epoch.",
        ("the script changes its sampler, its batch size or its data on purpose (a curriculum)",),
    )


def _clone(before: int, one: PassSeen, index: int, other: PassSeen) -> Finding:
    ranks = tuple(sorted((one.rank, other.rank)))
    return _finding(
        (before, index),
        other,
        Severity.MEDIUM,
        Confidence.MEDIUM,
        f"Ranks {ranks[0]} and {ranks[1]} both draw part {other.part} of {other.replicas} of the data.",
        "Each rank draws a part of its own.",
        ("these ranks hold one replica of the model together (tensor or pipeline parallel)",),
        ranks=ranks,
    )


def _divided(before: int, one: PassSeen, index: int, other: PassSeen) -> Finding:
    ranks = tuple(sorted((one.rank, other.rank)))
    return _finding(
        (before, index),
        other,
        Severity.MEDIUM if one.samples == other.samples else Severity.LOW,
        Confidence.LOW,
        f"Ranks {ranks[0]} and {ranks[1]} divide the data differently: seeds {one.seed} and {other.seed}, "
        f"{one.samples} and {other.samples} samples.",
        "Ranks draw their parts from one order of one data set.",
        ("the loaders of these ranks are not made in the same order",),
        ranks=ranks,
    )


def _unchecked(index: int, seen: PassSeen) -> Finding:
    what = f"of {seen.sampler} " if seen.sampler else ""
    return _finding(
        (index,),
        seen,
        Severity.INFO,
        Confidence.HIGH,
        f"The order {what}over {seen.dataset} was not checked: {seen.unordered}.",
        "The order of the data can be derived again from its seed.",
        ("the job uses a sampler or a data set of its own",),
    )
