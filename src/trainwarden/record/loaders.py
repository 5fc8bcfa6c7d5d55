"""Where every data loader of this process stands, so that a replay can put it there again.

A loader's position is the state it began its epoch with (generators, the sampler's epoch) and how many batches
it has handed out since: going there again draws the same permutation and skips the same indexes. Scripts whose
own checkpoints lack this still replay bit for bit.

Rules
-----
* A loader with workers, and a stateful one (torchdata), draws when its iterator is made, others at the first batch:
  the state kept is the one before that. The former is put in its place by making its iterator anew and taking as many
  batches again, the latter by skipping indexes.
* Workers that are kept over epochs keep their generators, which nobody sees: from the second epoch on such a loader
  cannot be put anywhere, and a replay goes through all that came before.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data._utils import signal_handling

from trainwarden.record import rng

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder


class LoaderTracker:
    """Numbers the epochs (iterators) of each loader in order of use; keeps their beginnings and positions."""

    def __init__(self) -> None:
        self._loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._loader_of: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.begins: list[dict[str, Any]] = []  # one per iterator: {"loader", "epoch", "rng", "generators"}
        self._generators: dict[int, list[torch.Generator]] = {}  # by loader: an iterator can outlive it
        self._taken: dict[int, int] = {}  # iterator ordinal → batches handed out
        self._ordinal: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._making: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()  # by loader
        self._born: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._thread = threading.local()

    def making(self, loader: Any) -> None:
        """An iterator of a loader is about to be made: note what decides its order, if it draws right then."""
        if _draws_early(loader):
            self._making[loader] = {
                "early": True,
                "rng": rng.states(),
                "generators": [g.get_state().clone() for g in generators(loader)],
                "given": getattr(loader, "next_iter_state", None),  # to a stateful loader, by the script
            }

    def made(self, loader: Any, iterator: Any) -> None:
        """`iter(loader)` was called; workers that are kept come with the same iterator again."""
        self._loaders.setdefault(loader, len(self._loaders))
        # Held while it is iterated: a script may make it where it iterates it. One with persistent workers holds its
        # iterator itself, and neither would ever go.
        persistent = getattr(loader, "persistent_workers", False)
        self._loader_of[iterator] = weakref.ref(loader) if persistent else lambda: loader
        again = self._ordinal.pop(iterator, None) is not None
        self._born[iterator] = {"kept": True} if again else self._making.pop(loader, {})

    def was_given(self, iterator: Any) -> bool:
        """Whether the script itself told a stateful loader where to begin."""
        return self._born.get(iterator, {}).get("given") is not None

    @property
    def aside(self) -> bool:
        """Whether batches that this thread takes now are nobody's: a loader goes forward by itself."""
        return getattr(self._thread, "aside", False)

    @contextmanager
    def taking_aside(self) -> Iterator[None]:
        """Batches that this thread takes within are not the script's."""
        before, self._thread.aside = self.aside, True
        try:
            yield
        finally:
            self._thread.aside = before

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
        born = self._born.get(iterator, {})
        early = born.get("early", False)
        number = self._loaders.get(loader, 0) if loader is not None else 0
        self._generators[number] = generators(loader)
        self.begins.append(
            {
                "loader": number,
                "epoch": _epoch(loader),
                "rng": born["rng"] if early else rng.states(),
                "generators": born["generators"] if early else [g.get_state().clone() for g in generators(loader)],
                "early": early,
                "kept": born.get("kept", False),
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
        for number, ordinal in self.positions().items():
            now = [g.get_state().clone() for g in self._generators[number]]
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

    def reposition(self, loader: Any, iterator: Any, state: dict[str, Any]) -> None:
        """Put a live iterator where `state` says: same beginning, same number of batches gone.

        Raises:
            RuntimeError: the loader kept its workers over epochs, and what they have drawn since is not known.
        """
        if state.get("kept"):
            raise RuntimeError("a loader whose workers are kept cannot be put into a later epoch")
        set_epoch(loader, state["epoch"])
        rng.restore(state["rng"])
        for generator, saved in zip(generators(loader), state["generators"], strict=True):
            generator.set_state(saved)
        if state.get("early"):
            self._make_anew(loader, iterator, state)
        elif iterator._dataset_kind == 1:  # torch.utils.data._DatasetKind.Iterable
            fresh = type(iterator)(loader)
            iterator.__dict__.update(fresh.__dict__)
            for _ in range(state["taken"]):
                iterator._next_data()
            iterator._num_yielded = state["taken"]
        else:
            iterator._sampler_iter = iter(iterator._index_sampler)
            for _ in range(state["taken"]):
                next(iterator._sampler_iter)
            iterator._num_yielded = state["taken"]
        for generator, saved in zip(generators(loader), state["now"], strict=True):
            generator.set_state(saved)

    def _make_anew(self, loader: Any, iterator: Any, state: dict[str, Any]) -> None:
        """Have an iterator go on as one that is made now, with workers of its own, and takes its batches again."""
        if self._ordinal.get(iterator) == state["ordinal"] and self.was_given(iterator):
            loader.next_iter_state = self._born[iterator]["given"]
        with self.taking_aside():
            fresh = loader._get_iterator()
            for _ in range(state["taken"]):
                next(fresh)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        iterator.__dict__.clear()
        iterator.__dict__.update(fresh.__dict__)
        if workers := getattr(fresh, "_workers", ()):
            signal_handling._remove_worker_pids(id(fresh))
            signal_handling._set_worker_pids(id(iterator), tuple(w.pid for w in workers))
        fresh.__dict__.clear()
        fresh._shutdown = True  # or its end would be that of the workers, which are the other's now

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


def hook_creation(kind: Any, recorder: Recorder) -> None:
    """Have a class of loaders tell when it makes an iterator and when it hands one out."""
    create, give = kind._get_iterator, kind.__iter__

    @functools.wraps(create)
    def get_iterator(self: Any) -> Any:
        if recorder.loaders.aside:
            return create(self)
        recorder.guarded("loader", lambda: recorder.loader_making(self))
        with recorder.loaders.taking_aside():
            return create(self)

    @functools.wraps(give)
    def iterate(self: Any) -> Any:
        iterator = give(self)
        recorder.guarded("loader", lambda: recorder.loaders.made(self, iterator))
        return iterator

    kind._get_iterator, kind.__iter__ = get_iterator, iterate


def _draws_early(loader: Any) -> bool:
    return bool(loader.num_workers) or hasattr(loader, "next_iter_state")


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
