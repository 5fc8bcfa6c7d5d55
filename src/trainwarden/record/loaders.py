"""Where every data loader of this process stands, so that a replay can put it there again.

A loader's position is the state it began its epoch with (generators, the sampler's epoch) and how many batches
it has handed out since: going there again draws the same permutation and skips the same indexes. Scripts whose
own checkpoints lack this still replay bit for bit.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from trainwarden.record import rng


class LoaderTracker:
    """Numbers the epochs (iterators) of each loader in order of use; keeps their beginnings and positions."""

    def __init__(self) -> None:
        self._loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._loader_of: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.begins: list[dict[str, Any]] = []  # one per iterator: {"loader", "epoch", "rng", "generators"}
        self._taken: dict[int, int] = {}  # iterator ordinal → batches handed out
        self._ordinal: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def made(self, loader: Any, iterator: Any) -> None:
        """`iter(loader)` was called."""
        self._loaders.setdefault(loader, len(self._loaders))
        # Held while it is iterated: a script may make it where it iterates it. One with persistent workers holds its
        # iterator itself, and neither would ever go.
        persistent = getattr(loader, "persistent_workers", False)
        self._loader_of[iterator] = weakref.ref(loader) if persistent else lambda: loader

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
                "generators": [g.get_state().clone() for g in generators(loader)],
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
            now = [g.get_state().clone() for g in generators(live.get(number))]
            states.append(self.begins[ordinal] | {"ordinal": ordinal, "taken": self._taken[ordinal], "now": now})
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


def generators(loader: Any | None) -> list[torch.Generator]:
    """The generators of a loader's own, its sampler's and its batch sampler's, each once."""
    found: list[torch.Generator] = []
    for thing in _parts(loader):
        generator = getattr(thing, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not g for g in found):
            found.append(generator)
    return found


def reposition(loader: Any, iterator: Any, state: dict[str, Any]) -> None:
    """Put a live iterator where `state` says: same beginning, same number of batches gone.

    Raises:
        RuntimeError: the loader prefetches in worker processes, whose position cannot be set from here.
    """
    if getattr(iterator, "_num_workers", 0):
        raise RuntimeError("a loader with worker processes cannot be repositioned")
    set_epoch(loader, state["epoch"])
    rng.restore(state["rng"])
    for generator, saved in zip(generators(loader), state["generators"], strict=True):
        generator.set_state(saved)
    if iterator._dataset_kind == 1:  # torch.utils.data._DatasetKind.Iterable
        fresh = type(iterator)(loader)
        iterator.__dict__.update(fresh.__dict__)
        for _ in range(state["taken"]):
            iterator._next_data()
    else:
        iterator._sampler_iter = iter(iterator._index_sampler)
        for _ in range(state["taken"]):
            next(iterator._sampler_iter)
    iterator._num_yielded = state["taken"]
    for generator, saved in zip(generators(loader), state["now"], strict=True):
        generator.set_state(saved)


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


def _parts(loader: Any | None) -> list[Any]:
    if loader is None:
        return []
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return [p for p in parts if p is not None]
