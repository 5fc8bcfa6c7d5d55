"""Where every data loader of this process stands, so that a replay can put it there again.

A loader's position is the state it began its epoch with (generators, the sampler's epoch) and how many batches
it has handed out since: going there again draws the same permutation and skips the same indexes. Scripts whose
own checkpoints lack this still replay bit for bit.

A framework may fetch a batch before it hands on the one before (accelerate does, to know the last one). What counts is
when the script is given it: in which step that is does not depend on where a run begins.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import torch

from trainwarden.record import rng

_MOST_PARTS = 8


class LoaderTracker:
    """Numbers the epochs (iterators) of each loader in order of use; keeps their beginnings and positions."""

    def __init__(self) -> None:
        self._loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._loader_of: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.begins: list[dict[str, Any]] = []  # one per iterator: {"loader", "epoch", "rng", "generators"}
        self._taken: dict[int, int] = {}  # iterator ordinal → batches handed out
        self._ordinal: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._newest: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # loader → its newest iterator
        self._wrapped: weakref.WeakSet[Any] = weakref.WeakSet()  # loaders that a framework fetches from
        self._held: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()

    def made(self, loader: Any, iterator: Any) -> None:
        """`iter(loader)` was called."""
        self._loaders.setdefault(loader, len(self._loaders))
        self._loader_of[iterator] = weakref.ref(loader)
        self._newest[loader] = weakref.ref(iterator)
        if loader in self._wrapped:
            self._held[iterator] = deque()

    def wrapped(self, loader: Any) -> None:
        """A framework fetches from this loader and hands its batches on later."""
        self._wrapped.add(loader)

    def hold(self, iterator: Any, batch: Any) -> bool:
        """Keep a batch that a framework has fetched until it is handed on; False where nothing stands between."""
        held = self._held.get(iterator)
        if held is None:
            return False
        held.append(batch)
        return True

    def handed_on(self, loader: Any, skipped: int) -> tuple[Any, Any]:
        """The iterator and the batch of it that a framework hands on now, after so many that it left out.

        Raises:
            LookupError: it hands on something that it did not fetch.
        """
        reference = self._newest.get(loader)
        iterator = None if reference is None else reference()
        held = self._held.get(iterator) if iterator is not None else None
        if held is None or len(held) <= skipped:
            raise LookupError("a framework hands on a batch that its loader did not give")
        for _ in range(skipped):
            held.popleft()
            self.took(iterator)
        return iterator, held.popleft()

    def ahead(self, iterator: Any) -> int:
        """Batches that were fetched from this iterator and not handed on yet."""
        return len(self._held.get(iterator, ()))

    def loader_of(self, iterator: Any) -> Any | None:
        """The loader behind an iterator, while it lives."""
        reference = self._loader_of.get(iterator)
        return None if reference is None else reference()

    def all(self) -> list[Any]:
        """Every loader that was iterated and still lives, in order of first use."""
        return sorted(self._loaders, key=self._loaders.__getitem__)

    def begin(self, iterator: Any) -> int | None:
        """Before the first batch of an iterator: note what decides its order. Its ordinal, None if already begun."""
        if iterator in self._ordinal:
            return None
        ordinal = len(self.begins)
        self._ordinal[iterator] = ordinal
        self._taken[ordinal] = 0
        loader = self.loader_of(iterator)
        self.begins.append(
            {
                "loader": self._loaders.get(loader, 0) if loader is not None else 0,
                "epoch": _epoch(loader),
                "rng": rng.states(),
                "generators": _states(loader),
            }
        )
        return ordinal

    def took(self, iterator: Any) -> None:
        """A batch was handed out."""
        self._taken[self._ordinal[iterator]] += 1

    def positions(self) -> dict[int, int]:
        """loader number → ordinal of its newest iterator, and batches taken from it."""
        newest: dict[int, int] = {}
        for ordinal, begin in enumerate(self.begins):
            newest[begin["loader"]] = ordinal
        return newest

    def state(self) -> list[dict[str, Any]]:
        """For each loader its newest iterator's beginning, batches taken, generator states now."""
        states = []
        live = {self._loaders[loader]: loader for loader in self._loaders}
        for number, ordinal in self.positions().items():
            now = {"now": _states(live.get(number))}
            states.append(self.begins[ordinal] | {"ordinal": ordinal, "taken": self._taken[ordinal]} | now)
        return states

    def live(self) -> list[tuple[int, Any, Any]]:
        """(loader number, loader, iterator) of every iterator that still lives."""
        found = []
        for iterator in list(self._ordinal):
            loader = self.loader_of(iterator)
            if loader is not None:
                found.append((self._loaders[loader], loader, iterator))
        return found

    def number(self, loader: Any) -> int:
        """A loader's number, in order of first use."""
        return self._loaders.setdefault(loader, len(self._loaders))


def reposition(loader: Any, iterator: Any, state: dict[str, Any], ahead: int = 0) -> None:
    """Put a live iterator where `state` says: same beginning, same number of batches gone, and `ahead` more.

    Raises:
        RuntimeError: the loader prefetches in worker processes, whose position cannot be set from here.
    """
    if getattr(iterator, "_num_workers", 0):
        raise RuntimeError("a loader with worker processes cannot be repositioned")
    gone = state["taken"] + ahead
    set_epoch(loader, state["epoch"])
    rng.restore(state["rng"])
    _set_states(loader, state["generators"])
    if iterator._dataset_kind == 1:  # torch.utils.data._DatasetKind.Iterable
        fresh = type(iterator)(loader)
        iterator.__dict__.update(fresh.__dict__)
        for _ in range(gone):
            iterator._next_data()
    else:
        iterator._sampler_iter = iter(iterator._index_sampler)
        for _ in range(gone):
            next(iterator._sampler_iter, None)
    iterator._num_yielded = gone
    _set_states(loader, state["now"])


def set_epoch(loader: Any, epoch: int | None) -> None:
    """Give the samplers their epoch, where they have one."""
    if epoch is None:
        return
    for thing in _parts(loader):
        if hasattr(thing, "set_epoch"):
            thing.set_epoch(epoch)


def _epoch(loader: Any | None) -> int | None:
    for thing in _parts(loader):
        epoch = getattr(thing, "epoch", None)
        if isinstance(epoch, int):
            return epoch
    return None


def _generators(loader: Any | None) -> list[torch.Generator | None]:
    """The generator of each part of a loader that has none or one of its own; some make it when they are iterated."""
    found: list[torch.Generator | None] = []
    for thing in _parts(loader):
        generator = getattr(thing, "generator", None)
        known = not isinstance(generator, torch.Generator) or any(generator is g for g in found)
        found.append(None if known else generator)
    return found


def _states(loader: Any | None) -> list[torch.Tensor | None]:
    return [None if g is None else g.get_state().clone() for g in _generators(loader)]


def _set_states(loader: Any, states: list[torch.Tensor | None]) -> None:
    for generator, saved in zip(_generators(loader), states, strict=True):
        if generator is not None and saved is not None:
            generator.set_state(saved)


def _parts(loader: Any | None) -> list[Any]:
    """A loader and the samplers that it is made of, outermost first."""
    found: list[Any] = []
    waiting = [loader]
    while waiting and len(found) < _MOST_PARTS:
        thing = waiting.pop(0)
        if thing is not None and all(thing is not p for p in found):
            found.append(thing)
            waiting += [getattr(thing, "sampler", None), getattr(thing, "batch_sampler", None)]
    return found
