"""What the reduction over ranks did, as keyed sums: over this rank's own gradients, over what came of them, over what
the optimizer got.

Rules
-----
* A sum is linear, so the mean of the ranks' sums before a reduction is the sum after it, up to rounding. The watcher
  compares; a rank alone could not tell.
* Every step of the first `ALWAYS` is looked at, and then one in `EVERY` by a keyed draw: what costs is to begin (cold
  caches), not the numbers. Whoever does not hold the key does not know which.
* Of every bucket a few neighbouring tensors are summed, and of each a part, chosen anew at every step by a keyed draw
  that is the same on all ranks of a host. So the cost does not grow with a tensor, and every tensor has its turn.
* A part has `GROUPS` rows; each has a sum of its own, with keyed weights from −128 to 127.
* Method: random projections that keep a difference in sight (W. Johnson, J. Lindenstrauss, 1984).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from blake3 import blake3

from trainwarden import wire
from trainwarden.record import stages
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

GROUPS = 8  # sums of one tensor
TENSORS = 4  # of every bucket and step
ALWAYS = 16
EVERY = 4
_WIDTH = 2048  # elements that one sum covers at most


class Part(NamedTuple):
    """A part of a tensor: where it starts in it, and its shape as groups × width."""

    start: int
    groups: int
    width: int


def part_of(elements: int, draw: int) -> Part:
    """The part of a tensor of so many elements that a draw chooses."""
    groups = max(1, min(GROUPS, elements))
    width = min(_WIDTH, elements // groups)
    return Part(draw % (elements - groups * width + 1), groups, width)


class Weights:
    """The weights of one step."""

    def __init__(self, key: bytes, step: int) -> None:
        drawn = bytearray(blake3(f"reduction weights {step}".encode(), key=key).digest(_WIDTH))
        self._vector = torch.frombuffer(drawn, dtype=torch.int8).float()

    def sums(self, flat: torch.Tensor, at: int, part: Part) -> torch.Tensor:
        """The sums of a part of the tensor that begins at `at` in `flat`: one number a group."""
        if flat.device != self._vector.device:
            self._vector = self._vector.to(flat.device)
        start, groups, width = part
        cut = flat.narrow(0, at + start, groups * width)
        cut = cut if cut.dtype is torch.float32 else cut.float()
        return torch.mv(cut.view(groups, width), self._vector if width == _WIDTH else self._vector.narrow(0, 0, width))


class _Open(NamedTuple):
    """A part whose bucket is under way."""

    parameter: torch.Tensor
    ranks: tuple[int, ...]
    buffer: torch.Tensor
    at: int
    part: Part
    weights: Weights
    local: torch.Tensor


class _Row:
    """One tensor's sums since the last update; those of several reductions are added up."""

    __slots__ = ("last", "local", "opened", "reduced", "used")

    def __init__(self, opened: _Open, last: torch.Tensor) -> None:
        self.opened = opened
        self.local, self.reduced, self.last = opened.local, last, last
        self.used: torch.Tensor | None = None

    def again(self, opened: _Open, last: torch.Tensor) -> None:
        """One more reduction before the update."""
        self.opened, self.last = opened, last
        self.local, self.reduced = self.local + opened.local, self.reduced + last


class Reduction(Observer):
    """Tells the keyed sums of every update, and once why there are none."""

    name = "reduction"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._rows: dict[int, _Row] = {}
        self._open: list[_Open] = []
        self._step = -1
        self._weights: Weights | None = None  # of this step, None: it is not looked at
        self._own: dict[int, tuple[int, frozenset[int]]] = {}
        self._told: set[str] = set()
        self._seen = False

    def bucket(self, bucket: Any) -> None:
        hook = self.recorder.reducing
        if hook is None:
            return
        self._seen = True
        if hook.user is not None:
            asked = ", though the configuration asks for the ordered one" if hook.ordered else ""
            self._unchecked(f"the script's own communication hook reduces the gradients{asked}")
            return
        step = self.recorder.done
        if step != self._step:
            self._step, self._weights = step, self._drawn(step)
        weights = self._weights
        if weights is None:
            return
        buffer = bucket.buffer()
        if buffer.layout is not torch.strided or not buffer.is_floating_point():
            self._unchecked("gradients that are sparse or no real numbers")
            return
        parameters = bucket.parameters()
        # DDP may put other tensors into a bucket of the same number and size: where each starts is asked anew.
        starts = [0, *itertools.accumulate(p.numel() for p in parameters)]
        if starts[-1] != buffer.numel():
            self._unchecked("buckets that hold more than their tensors' gradients")
            return
        draws = blake3(f"reduction {step} {bucket.index()}".encode(), key=self.recorder.key).digest(8 * (TENSORS + 1))
        first = int.from_bytes(draws[:8], "big")
        for i in range(min(TENSORS, len(parameters))):
            n = (first + i) % len(parameters)
            draw = int.from_bytes(draws[8 * (i + 1) : 8 * (i + 2)], "big")
            part = part_of(starts[n + 1] - starts[n], draw)
            if part.width:
                local = weights.sums(buffer, starts[n], part)
                self._open.append(_Open(parameters[n], hook.ranks, buffer, starts[n], part, weights, local))

    def _drawn(self, step: int) -> Weights | None:
        key = self.recorder.key
        draw = blake3(f"reduction step {step}".encode(), key=key).digest(1)[0] if step >= ALWAYS else 0
        return Weights(key, step) if draw % EVERY == 0 else None

    def reduced(self) -> None:
        open_, self._open = self._open, []
        for opened in open_:
            last = opened.weights.sums(opened.buffer, opened.at, opened.part)
            row = self._rows.get(id(opened.parameter))
            if row is None or row.opened.part != opened.part:
                self._rows[id(opened.parameter)] = _Row(opened, last)
            else:
                row.again(opened, last)

    def before_update(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        if not self._rows or isinstance(self.recorder.gathered.reduced, str):
            return  # a closure computes the gradients later
        own = self._parameters(optimizer, index)
        for number, row in self._rows.items():
            p = row.opened.parameter
            if number in own and (grad := p.grad) is not None and grad.is_contiguous() and p.is_contiguous():
                row.used = row.opened.weights.sums(grad.view(-1), 0, row.opened.part)

    def _parameters(self, optimizer: torch.optim.Optimizer, index: int) -> frozenset[int]:
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if index not in self._own or self._own[index][0] != count:
            self._own[index] = count, frozenset(map(id, stages.parameters(optimizer)))
        return self._own[index][1]

    def after_update(self, optimizer: torch.optim.Optimizer, index: int, skipped: bool) -> None:
        waiting = self._of_others(index)
        rows = [row for number, row in self._rows.items() if number not in waiting]
        self._rows = {number: row for number, row in self._rows.items() if number in waiting}
        self._open.clear()
        if self.recorder.world > 1 and not self._seen:
            self._seen = True
            self._unchecked("no reduction of DistributedDataParallel came before the first update")
        for ranks in dict.fromkeys(row.opened.ranks for row in rows):
            told = _told([row for row in rows if row.opened.ranks == ranks], self.recorder.names)
            self.recorder.tell(wire.Sums(step=self.recorder.step, optimizer=index, ranks=ranks, rows=told))

    def _of_others(self, index: int) -> set[int]:
        """Parameters that another optimizer will move in this step: their rows wait for it."""
        recorder = self.recorder
        others = [(o, i) for o, i in recorder.optimizers.items() if i != index and i not in recorder.stepped]
        return {n for o, i in others for n in self._parameters(o, i) if n in self._rows}

    def _unchecked(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            self.recorder.tell(wire.Sums(step=self.recorder.done, unchecked=reason))


def _told(rows: list[_Row], names: Mapping[int, str]) -> tuple[wire.SumsOf, ...]:
    """Rows as they travel; all numbers are fetched at once."""
    vectors = [
        v for row in rows for v in (row.local, row.reduced, None if row.last is row.reduced else row.last, row.used)
    ]
    numbers = iter(torch.cat([v for v in vectors if v is not None]).tolist())
    sums = iter([() if v is None else tuple(itertools.islice(numbers, v.numel())) for v in vectors])
    return tuple(
        wire.SumsOf(
            name=names.get(id(row.opened.parameter), "?"),
            dtype=str(row.opened.buffer.dtype).removeprefix("torch."),
            elements=row.opened.part.groups * row.opened.part.width,
            local=next(sums),
            reduced=next(sums),
            last=next(sums),
            used=next(sums),
        )
        for row in rows
    )
