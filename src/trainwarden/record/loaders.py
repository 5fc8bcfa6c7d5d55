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
* A framework may fetch a batch before it hands on the one before (accelerate does, to know the last one). What counts
  is when the script is given it: in which step that is does not depend on where a run begins.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data._utils import signal_handling

from trainwarden.record import rng

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

_MOST_PARTS = 8


class LoaderTracker:
    """Numbers the epochs (iterators) of each loader in order of use; keeps their beginnings and positions."""

    def __init__(self) -> None:
        self._loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._loader_of: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.begins: list[dict[str, Any]] = []  # one per iterator: {"loader", "epoch", "rng", "generators"}
        self._generators: dict[int, list[torch.Generator | None]] = {}  # by loader: an iterator can outlive it
        self._taken: dict[int, int] = {}  # iterator ordinal → batches handed out
        self._ordinal: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._newest: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # loader → its newest iterator
        self._wrapped: weakref.WeakSet[Any] = weakref.WeakSet()  # loaders that a framework fetches from
        self._held: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()
        self._making: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()  # by loader
        self._born: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._thread = threading.local()

    def making(self, loader: Any) -> None:
        """An iterator of a loader is about to be made: note what decides its order, if it draws right then."""
        if _draws_early(loader):
            self._making[loader] = {
                "early": True,
                "rng": rng.states(),
                "generators": _states(_generators(loader)),
                "given": getattr(loader, "next_iter_state", None),  # to a stateful loader, by the script
            }

    def made(self, loader: Any, iterator: Any) -> None:
        """`iter(loader)` was called; workers that are kept come with the same iterator again."""
        self._loaders.setdefault(loader, len(self._loaders))
        # Held while it is iterated: a script may make it where it iterates it. One with persistent workers holds its
        # iterator itself, and neither would ever go.
        persistent = getattr(loader, "persistent_workers", False)
        self._loader_of[iterator] = weakref.ref(loader) if persistent else lambda: loader
        self._newest[loader] = weakref.ref(iterator)
        if loader in self._wrapped:
            self._held[iterator] = deque()
        again = self._ordinal.pop(iterator, None) is not None
        self._born[iterator] = {"kept": True} if again else self._making.pop(loader, {})

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
        self._generators[number] = _generators(loader)
        self.begins.append(
            {
                "loader": number,
                "epoch": _epoch(loader),
                "rng": born["rng"] if early else rng.states(),
                "generators": born["generators"] if early else _states(self._generators[number]),
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
            now = {"now": _states(self._generators[number])}
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

    def reposition(self, loader: Any, iterator: Any, state: dict[str, Any], ahead: int = 0) -> None:
        """Put a live iterator where `state` says: same beginning, same number of batches gone, and `ahead` more.

        Raises:
            RuntimeError: the loader kept its workers over epochs, and what they have drawn since is not known; or it is
                made otherwise than the recorded one.
        """
        if state.get("kept"):
            raise RuntimeError("a loader whose workers are kept cannot be put into a later epoch")
        gone = state["taken"] + ahead
        set_epoch(loader, state["epoch"])
        rng.restore(state["rng"])
        _set_states(loader, state["generators"])
        if state.get("early"):
            self._make_anew(loader, iterator, state["ordinal"], gone)
        elif iterator._dataset_kind == 1:  # torch.utils.data._DatasetKind.Iterable
            fresh = type(iterator)(loader)
            iterator.__dict__.update(fresh.__dict__)
            for _ in range(gone):
                iterator._next_data()
            iterator._num_yielded = gone
        else:
            iterator._sampler_iter = iter(iterator._index_sampler)
            for _ in range(gone):
                next(iterator._sampler_iter, None)
            iterator._num_yielded = gone
        _set_states(loader, state["now"])

    def _make_anew(self, loader: Any, iterator: Any, ordinal: int, gone: int) -> None:
        """Have an iterator go on as one that is made now, with workers of its own, and takes its batches again."""
        if self._ordinal.get(iterator) == ordinal and self.was_given(iterator):
            loader.next_iter_state = self._born[iterator]["given"]
        with self.taking_aside():
            fresh = loader._get_iterator()
            for _ in range(gone):
                next(fresh, None)
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


def _generators(loader: Any | None) -> list[torch.Generator | None]:
    """The generator of each part of a loader that has none or one of its own; some make it when they are iterated."""
    found: list[torch.Generator | None] = []
    for thing in _parts(loader):
        generator = getattr(thing, "generator", None)
        known = not isinstance(generator, torch.Generator) or any(generator is g for g in found)
        found.append(None if known else generator)
    return found


def _states(generators: list[torch.Generator | None]) -> list[torch.Tensor | None]:
    return [None if g is None else g.get_state().clone() for g in generators]


def _set_states(loader: Any, states: list[torch.Tensor | None]) -> None:
    if len(states) != len(_parts(loader)):
        raise RuntimeError("a loader is made of other samplers than the recorded one")
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
