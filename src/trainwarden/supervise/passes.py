"""What is known of the passes that ranks make over their data, and of the data sets that they draw from."""

from __future__ import annotations

import time
from array import array
from collections import deque
from dataclasses import dataclass, field

from trainwarden import wire
from trainwarden.model import DataDiffers, PassSeen
from trainwarden.supervise.order import At
from trainwarden.supervise.samples import Table

ENOUGH = 64  # samples that must have been compared before a difference means something
FRESH_COPIES = 6  # among the newest `ENOUGH` samples, where no copy came before them, that are told
MOST_CONTENTS = 1 << 18  # samples of a data set among which copies are looked for
MOST_TOLD = 8  # samples that differ, told one by one for each rank and kind
_TEXT = 300


@dataclass
class DrawnPass:
    """A pass of a rank: what it told, what was derived, how far it has come."""

    told: wire.Pass
    attempt: int
    rank: int
    step: int
    at: At | None = None
    length: int = -1  # samples that the derived order has for this rank
    place: int = -1  # samples handed out, counted from the order's beginning; −1 = not located yet
    unordered: str = ""
    uncompared: str = ""
    batches: int = 0
    ordered: int = 0
    compared: int = 0
    listed: int = 0
    ended: bool = False
    count: int = 0  # which pass with these settings it is
    short: bool = False  # a batch that is not full has come

    def entry(self) -> PassSeen:
        told = self.told
        return PassSeen(
            attempt=self.attempt, rank=self.rank, step=self.step, number=told.number, loader=told.loader,
            dataset=told.dataset[:_TEXT], samples=told.samples, sampler=told.sampler[:_TEXT], order=told.order[:_TEXT],
            seed=told.seed, epoch=told.epoch, shuffle=told.shuffle, replicas=told.replicas, part=told.part,
            even=told.even, batch=told.batch, drop_last=told.drop_last, batches=self.batches, ordered=self.ordered,
            unordered=self.unordered[:_TEXT], compared=self.compared, listed=self.listed,
            uncompared=self.uncompared[:_TEXT], ended=self.ended, wall_ns=time.time_ns(),
        )  # fmt: skip


@dataclass
class TensorPart:
    """How one tensor of the samples of a data set compares with earlier passes."""

    compared: int = 0
    differed: int = 0
    steady: bool = False  # enough were compared, and none differed, before the first that did
    held: list[DataDiffers] = field(default_factory=list)  # until enough are compared


@dataclass
class DataSeen:
    """A data set: what each index gave, and how its tensors compare."""

    table: Table
    parts: dict[str, TensorPart]
    newest: DrawnPass
    contents: set[bytes] = field(default_factory=set)
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=ENOUGH))  # of the newest: is it a copy
    older: int = 0  # samples before these
    copied: bool = False  # some of them were copies, or it was told

    def copies(self, digest: bytes) -> int:
        """Take in a sample that was not seen before: how many of the newest are copies, where none was before them."""
        if self.copied or self.older > MOST_CONTENTS:
            return 0
        if len(self.recent) == ENOUGH:
            self.older += 1
            self.copied = self.recent[0]
        self.recent.append(digest in self.contents)
        self.contents.add(digest)
        found = sum(self.recent)
        if self.copied or self.older < 2 * ENOUGH or found < FRESH_COPIES:
            return 0
        self.copied = True
        return found


def varying(table: Table) -> str:
    names = ", ".join(sorted(table.varying))
    return f"{names} of the samples differs from pass to pass, as random augmentation makes it"


def hold(data: DataSeen, changed: DataDiffers) -> None:
    """Keep a difference with the first of its tensors that may mean something."""
    part = next((data.parts[name] for name in changed.parts if name not in data.table.varying), None)
    if part is not None and len(part.held) < MOST_TOLD:
        part.held.append(changed)


def settings_of(told: wire.Pass) -> object:
    """What of a pass is the same in every pass of an unchanged loader, and of one that is made anew each time."""
    seed = None if told.state else told.seed
    facts = (told.dataset, told.sampler, told.order, told.exact, told.unordered, told.samples, told.length, seed)
    return (*facts, told.shuffle, told.replicas, told.part, told.even, told.batch, told.drop_last)


def located(indexes: array[int], at: At, length: int) -> int:
    """Where in the order a batch stands, −1 where it does not."""
    first = indexes[0]
    for place in range(length - len(indexes) + 1):
        if at(place) == first and all(at(place + i) == index for i, index in enumerate(indexes)):
            return place
    return -1
