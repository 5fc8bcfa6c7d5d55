"""Takes slices of weights, gradients and optimizer state before and after each update, for the watcher to recompute.

Rules
-----
* Which tensors: by a keyed order that is new every time all have had their turn, so each comes up soon and none can
  be told beforehand without the key. Which elements: a keyed place in each.
* Read in place where memory allows it (a copy of a hundred bytes each); else one gather for each tensor.
* Gradients are those that the optimizer uses: unscaled ones with a gradient scaler, and where a closure makes them
  those that stand there when it has returned.
"""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from blake3 import blake3

from trainwarden import wire
from trainwarden.record import stages
from trainwarden.record.fingerprint import own_part
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

TENSORS = 8  # looked at in one update
ELEMENTS = 32  # of each
WHOLE_EVERY = {"Muon": 16, "Adafactor": 2}
"""By class name: updates between whole tensors, which their rules need; the watcher's products cost milliseconds."""
MOST_WHOLE = 16_384  # elements of the tensors that one update tells whole
SEVERAL_CALLS = ("LBFGS", "SAM")  # use the closure's gradients more than once in one update
_DOUBLE = struct.Struct("<d")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DTYPES = {
    torch.float64: ("float64", 8), torch.float32: ("float32", 4),
    torch.bfloat16: ("bfloat16", 2), torch.float16: ("float16", 2),
}  # fmt: skip


Read: TypeAlias = tuple[str, bytes, tuple[int, ...]]
"""Elements as they lie in memory: dtype, bytes, and the shape of a whole tensor."""


class Place(NamedTuple):
    """Some elements of one tensor."""

    name: str
    group: int
    start: int
    length: int
    whole: bool


_ONE, _WHOLE = Place("", 0, 0, 1, False), Place("", 0, 0, 1, True)


class Look(NamedTuple):
    """What was read at a place: tensor, gradient, what of its state has its size, and what of it is one number."""

    weight: Read
    gradient: Read | None
    state: dict[str, Read]
    numbers: dict[str, Read]


class _Found(NamedTuple):
    """What an update found."""

    step: int
    looks: list[tuple[Place, torch.Tensor, Look]]
    settings: tuple[dict[str, Any], ...]
    scale: float


class UpdateSlices(Observer):
    """Remembers, for each optimizer, what the update under way found."""

    name = "slices of updates"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._orders: dict[int, tuple[int, int, list[int]]] = {}
        self._found: dict[int, list[_Found]] = {}  # innermost last: a class may call the step of the one below it

    def before_update(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        stack = self._found.setdefault(index, [])
        if stack and stack[-1].step != self.recorder.step:
            stack.clear()  # an update that raised
        if type(optimizer).__name__ in SEVERAL_CALLS:
            return
        places = self._places(optimizer, index)
        found = [(place, p, look) for place, p in places if (look := _look(optimizer, p, place)) is not None]
        scale = getattr(optimizer, "grad_scale", None)
        settings = tuple(stages.settings(optimizer))
        stack.append(_Found(self.recorder.step, found, settings, 1.0 if scale is None else float(scale)))

    def after_update(self, optimizer: torch.optim.Optimizer, index: int, skipped: bool) -> None:
        stack = self._found.get(index)
        if not stack:
            if not skipped and type(optimizer).__name__ in SEVERAL_CALLS:
                self._tell(optimizer, index, (), 1.0, [], "its closure is called more than once in one update")
            return
        _, found, settings, scale = stack.pop()
        closure = self.recorder.gathered.by_closure
        pairs: list[tuple[Place, Look, Look]] = []
        for place, p, before in found:
            after = _look(optimizer, p, place)
            if after is None:
                continue
            pairs.append((place, before._replace(gradient=after.gradient) if closure else before, after))
        if not skipped:
            self._tell(optimizer, index, settings, scale, pairs, "" if pairs else "no tensor could be read")

    def _tell(
        self,
        optimizer: torch.optim.Optimizer,
        index: int,
        settings: tuple[dict[str, Any], ...],
        scale: float,
        pairs: list[tuple[Place, Look, Look]],
        unseen: str,
    ) -> None:
        kind = type(optimizer)
        bases = [k.__name__ for k in kind.__mro__[1:] if issubclass(k, torch.optim.Optimizer)][:-1]
        self.recorder.tell(
            wire.Updated(
                step=self.recorder.step,
                optimizer=index,
                kind=f"{kind.__module__}.{kind.__qualname__}",
                bases=tuple(bases),
                settings=settings,
                scale=scale,
                unseen=unseen,
                batches=tuple(_batches(pairs)),
            )
        )

    # -- which elements

    def _places(self, optimizer: torch.optim.Optimizer, index: int) -> Iterator[tuple[Place, torch.Tensor]]:
        """The tensors whose turn it is, and which elements of them."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        turn = self.recorder.step
        digest = blake3(f"slices {index} {turn}".encode(), key=self.recorder.key)
        starts = memoryview(digest.digest(8 * TENSORS)).cast("Q")
        every = WHOLE_EVERY.get(type(optimizer).__name__)
        room = MOST_WHOLE if every and turn % every == 0 else 0
        for nth, draw in zip(self._turn(index, turn, sum(sizes)), starts, strict=False):
            group = 0
            while nth >= sizes[group]:
                nth -= sizes[group]
                group += 1
            p = groups[group]["params"][nth]
            size = own_part(p).numel()
            entire = 0 < size <= room and own_part(p) is p
            room -= size if entire else 0
            count = size if entire else min(ELEMENTS, size)
            start = 0 if entire else draw % (size - count + 1)
            if size:
                yield Place(self.recorder.names.get(id(p), "?"), group, start, count, entire), p

    def _turn(self, index: int, turn: int, tensors: int) -> list[int]:
        rounds = max(1, -(-tensors // TENSORS))
        epoch, part = divmod(turn, rounds)
        known = self._orders.get(index)
        if known is None or known[:2] != (epoch, tensors):
            seed = blake3(f"order {index} {epoch}".encode(), key=self.recorder.key).digest()
            order = list(range(tensors))
            random.Random(seed).shuffle(order)  # a generator of its own
            known = self._orders[index] = epoch, tensors, order
        return known[2][part * TENSORS : (part + 1) * TENSORS]


def _look(optimizer: torch.optim.Optimizer, p: torch.Tensor, place: Place, gradient: bool = True) -> Look | None:
    """What stands at a place now; None where it cannot be read."""
    weight = _read(p, place)
    if weight is None:
        return None
    found = None
    size = p.numel()
    grad = p.grad if gradient else None
    if grad is not None and (grad.numel() != size or (found := _read(grad, place)) is None):
        return None
    state: dict[str, Read] = {}
    numbers: dict[str, Read] = {}
    for key, value in (optimizer.state.get(p) or {}).items():
        if isinstance(value, torch.Tensor):
            alike = value.numel() == size and (size > 1 or (value.dim() == p.dim() and key != "step"))
            if alike and (read := _read(value, place)) is not None:
                state[key] = read
            elif not alike and value.numel() == 1 and not place.whole:
                numbers[key] = _read(value, _ONE) or _wide(value)
            elif not alike and value.numel() == 1:
                (numbers if key == "step" else state)[key] = _read(value, _WHOLE) or _wide(value)
            elif not alike and place.whole and value.numel() <= MOST_WHOLE:
                read = _read(value, Place("", 0, 0, value.numel(), True))
                if read is not None:
                    state[key] = read
        elif isinstance(value, int | float):
            numbers[key] = _wide(value)
    return Look(weight, found, state, numbers)


def _read(t: torch.Tensor, place: Place) -> Read | None:
    """Elements of a tensor as bytes; None for what is no plain array of floating-point numbers."""
    known = _DTYPES.get(t.dtype)
    if known is None:
        return None
    dtype, size = known
    shape = tuple(t.shape) if place.whole else ()
    if type(t) in _PLAIN and t.is_cpu and t.is_contiguous() and not t.is_neg():
        return dtype, ctypes.string_at(t.data_ptr() + place.start * size, place.length * size), shape
    part = own_part(t.detach())
    if part.layout is not torch.strided or place.start + place.length > part.numel():
        return None
    wanted = torch.arange(place.start, place.start + place.length, device=part.device)
    taken = torch.take(part, wanted).cpu().contiguous()
    return dtype, ctypes.string_at(taken.data_ptr(), taken.nbytes), shape


def _wide(value: Any) -> Read:
    return "float64", _DOUBLE.pack(float(value)), ()


def _batches(pairs: list[tuple[Place, Look, Look]]) -> Iterator[wire.Batch]:
    """Tensors that one rule moves alike, together: same group, same kinds of state, same counters."""
    alike: dict[object, list[tuple[Place, Look, Look]]] = {}
    for nth, (place, before, after) in enumerate(pairs):
        kinds = (_kinds(before), tuple(before.numbers.items()), _kinds(after), tuple(after.numbers))
        alike.setdefault(nth if place.whole else (place.group, kinds), []).append((place, before, after))
    for some in alike.values():
        yield _batch(some)


def _kinds(look: Look) -> tuple[object, ...]:
    return look.weight[0], look.gradient and look.gradient[0], *((k, r[0]) for k, r in look.state.items())


def _batch(some: list[tuple[Place, Look, Look]]) -> wire.Batch:
    places = [place for place, _, _ in some]
    befores, afters = [before for _, before, _ in some], [after for _, _, after in some]
    values = {"weight": _joined([b.weight for b in befores]), "left": _joined([a.weight for a in afters])}
    gradients = [b.gradient for b in befores if b.gradient is not None]
    if gradients:
        values["gradient"] = _joined(gradients)
        left = [a.gradient for a in afters if a.gradient is not None]
        if left != gradients and len(left) == len(gradients):
            values["gradient_left"] = _joined(left)
    numbers: dict[str, wire.Cut] = {}
    for when, looks in (("before", befores), ("after", afters)):
        for key in looks[0].state:
            values[f"{when}/{key}"] = _joined([look.state[key] for look in looks])
        for key in looks[0].numbers:
            numbers[f"{when}/{key}"] = _joined([look.numbers[key] for look in looks])
    return wire.Batch(
        group=places[0].group,
        names=tuple(p.name for p in places),
        starts=tuple(p.start for p in places),
        counts=tuple(p.length for p in places),
        values=values,
        numbers=numbers,
        whole=places[0].whole,
    )


def _joined(reads: list[Read]) -> wire.Cut:
    dtype, data, shape = reads[0]
    return wire.Cut(dtype, b"".join([r[1] for r in reads]) if len(reads) > 1 else data, shape)
