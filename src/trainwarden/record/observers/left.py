"""Reads again, right before an update, what the update before left of optimizer state and weights.

Rules
-----
* The state of every tensor, every time: moments that are scaled, emptied or swapped between two updates are seen at
  once. Which few bytes of each is drawn with the key, so a single edited element is seen by luck.
* Weights and counters of `IN_TURN` tensors at a time, whose turn the key decides, and more of these: whole roots of
  weights are in the records, and counters that stand still or begin again are seen from the digests of the state.
* Outside of the host's memory each read waits for a device: there the state comes up in turn as well.
* What is compared are bytes as they lie there. An optimizer that uses its closure's gradients several times is left
  out: its weights move between two calls.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from blake3 import blake3

from trainwarden.model import StateChanged
from trainwarden.record import stages
from trainwarden.record.fingerprint import own_part
from trainwarden.record.observers.interface import Observer
from trainwarden.record.observers.slices import SEVERAL_CALLS

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

BYTES = 16  # looked at of each tensor
IN_TURN = 8  # tensors of which state, counters and weights are looked at
BYTES_IN_TURN = 128  # looked at of each of these
MOST_TENSORS = 4_096  # of one optimizer
NAMED = 4  # tensors named in a note
_MOST_SPOTS = 8 * MOST_TENSORS
_WEIGHT = ""  # the key of the tensor itself among its marks
_COUNTER = "step"
_PLAIN = (torch.Tensor, torch.nn.Parameter)

Marks: TypeAlias = dict[str, "bytes | float"]
"""Some bytes of a tensor and of each tensor of its state, and its state's plain numbers, by key."""


class _Left(NamedTuple):
    """What an update left, and which bytes of each tensor were looked at."""

    draw: int
    tensors: list[tuple[weakref.ref[torch.Tensor], bool, Marks]]  # and whether it was its turn


class _Spot(NamedTuple):
    """Where a plain tensor lies: asking it for all of this again would take longer than reading it."""

    tensor: weakref.ref[torch.Tensor]
    address: int
    elements: int
    each: int  # bytes of an element
    starts: int  # elements at which a look of `BYTES` may begin
    length: int  # bytes of such a look


class WhatIsLeft(Observer):
    """Remembers, for each optimizer, a few bytes of all that its last update left."""

    name = "what updates leave"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._left: dict[int, _Left] = {}
        self._spots: dict[int, _Spot] = {}  # by the tensor's id

    def before_update(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        left = self._left.pop(index, None)
        if left is None:
            return
        note = self._compared(optimizer, index, left)
        if note.weights or note.state or note.emptied or note.lowered:
            self.recorder.note(note)

    def after_update(self, optimizer: torch.optim.Optimizer, index: int, skipped: bool) -> None:
        if type(optimizer).__name__ in SEVERAL_CALLS:
            return
        text = f"left {index} {self.recorder.step}"
        draw = int.from_bytes(blake3(text.encode(), key=self.recorder.key).digest(8), "little")
        tensors = list(itertools.islice(stages.parameters(optimizer), MOST_TENSORS))
        found: list[tuple[weakref.ref[torch.Tensor], bool, Marks]] = []
        for nth, p in enumerate(tensors):
            turn = (nth - draw) % len(tensors) < IN_TURN
            found.append((weakref.ref(p), turn, self._marks(optimizer, p, draw, turn)))
        self._left[index] = _Left(draw, found)

    def _compared(self, optimizer: torch.optim.Optimizer, index: int, left: _Left) -> StateChanged:
        """What is no longer as the update before left it; nothing is named where all is."""
        found: dict[str, list[str]] = {"weights": [], "state": [], "emptied": [], "lowered": []}
        for ref, turn, before in left.tensors:
            p = ref()
            if p is None or not before:
                continue
            now = self._marks(optimizer, p, left.draw, turn)
            if now != before:
                for key, what in _changes(optimizer.state.get(p) or {}, before, now):
                    if key != _WEIGHT or not self._shared(index, p):
                        name = self.recorder.names.get(id(p), "?")
                        found[what].append(f"{name}/{key}" if key != _WEIGHT else name)
        return StateChanged(
            step=self.recorder.step,
            optimizer=index,
            weights=tuple(found["weights"][:NAMED]),
            state=tuple(found["state"][:NAMED]),
            emptied=tuple(found["emptied"][:NAMED]),
            lowered=tuple(found["lowered"][:NAMED]),
            looked=len(left.tensors),
        )

    def _marks(self, optimizer: torch.optim.Optimizer, p: torch.Tensor, draw: int, turn: bool) -> Marks:
        """Bytes of a tensor's state at a drawn place; `turn`: of all of it, and of the tensor itself."""
        found: Marks = {}
        if turn and (read := self._read(p, draw, turn)) is not None:
            found[_WEIGHT] = read
        for key, value in (optimizer.state.get(p) or {}).items():
            if isinstance(value, torch.Tensor):
                if (turn or key != _COUNTER) and (read := self._read(value, draw, turn)) is not None:
                    found[key] = read
            elif turn and isinstance(value, int | float):
                found[key] = float(value)
        return found

    def _read(self, t: torch.Tensor, draw: int, turn: bool) -> bytes | None:
        """`BYTES` of a tensor, `BYTES_IN_TURN` in turn, all of a smaller one; None where they cannot be read now."""
        spot = self._spots.get(id(t))
        if spot is None or spot.address != t.data_ptr() or spot.tensor() is not t:
            found = _spot(t)
            if found is None:
                return _from_device(t, draw) if turn else None
            if len(self._spots) > _MOST_SPOTS:
                self._spots.clear()
            spot = self._spots[id(t)] = found
        starts, length = spot.starts, spot.length
        if turn:
            most, starts = _look(spot.elements, spot.each, BYTES_IN_TURN)
            length = most * spot.each
        return ctypes.string_at(spot.address + draw % starts * spot.each, length)

    def _shared(self, index: int, p: torch.Tensor) -> bool:
        """Whether another optimizer moves this tensor too."""
        others = (o for o, i in self.recorder.optimizers.items() if i != index)
        return any(q is p for other in others for q in stages.parameters(other))


def _look(elements: int, each: int, room: int) -> tuple[int, int]:
    """How many elements are looked at in `room` bytes, and at how many places a look may begin."""
    most = min(elements, max(1, room // each))
    return most, elements - most + 1


def _spot(t: torch.Tensor) -> _Spot | None:
    """Where a tensor's elements lie in the host's memory in order, None where they do not."""
    if type(t) not in _PLAIN or not t.is_cpu or t.layout is not torch.strided or not t.is_contiguous():
        return None
    address, each = t.data_ptr(), t.element_size()
    most, starts = _look(t.numel(), each, BYTES)
    # An address of 0: no elements, or their memory was given back.
    return _Spot(weakref.ref(t), address, t.numel(), each, starts, most * each) if address else None


def _from_device(t: torch.Tensor, draw: int) -> bytes | None:
    """What is looked at in turn of this rank's part of a tensor, wherever it lies."""
    part = own_part(t.detach())
    if part.layout is not torch.strided or not part.numel():
        return None
    most, starts = _look(part.numel(), part.element_size(), BYTES_IN_TURN)
    wanted = torch.arange(draw % starts, draw % starts + most, device=part.device)
    taken = torch.take(part, wanted).cpu().contiguous()
    return ctypes.string_at(taken.data_ptr(), taken.nbytes)


def _changes(state: dict[str, Any], before: Marks, now: Marks) -> Iterator[tuple[str, str]]:
    """The keys whose marks are others, each with what became of it."""
    for key, old in before.items():
        new = now.get(key)
        if new == old:
            continue
        if key == _WEIGHT:
            yield key, "weights"
        elif new is None or _emptied(old, new):
            yield key, "emptied"
        else:
            yield key, "lowered" if key == _COUNTER and _lowered(state[key], old, new) else "state"


def _emptied(old: bytes | float, new: bytes | float) -> bool:
    """Whether all is 0 where it was not."""
    return any(old) and not any(new) if isinstance(old, bytes) and isinstance(new, bytes) else bool(old) and not new


def _lowered(counter: Any, old: bytes | float, new: bytes | float) -> bool:
    """Whether a step counter went back."""
    if isinstance(old, bytes) and isinstance(new, bytes) and isinstance(counter, torch.Tensor):
        before, now = (torch.frombuffer(bytearray(b), dtype=counter.dtype)[0].item() for b in (old, new))
        return bool(now < before)
    return isinstance(old, float) and isinstance(new, float) and new < old
