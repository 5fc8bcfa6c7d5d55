"""What data loaders hand out: the facts of their samplers, the indexes of each batch, digests of samples.

Map-style loaders only: an iterable data set has no indexes. Nothing is drawn and nothing consumed: the indexes are
those that the loader draws itself, and a sample is looked at as its row of the batch that the loader hands out, so
worker processes are seen as well.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, Sampler, SequentialSampler
from torch.utils.data import dataloader as loading

from trainwarden import wire
from trainwarden.record import stages
from trainwarden.record.fingerprint import row_content, row_tag
from trainwarden.record.observers.interface import Observer

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

MOST_ROWS = 48  # rows digested a batch, over all of its tensors
MOST_BYTES = 256 * 1024  # and their bytes
MOST_TENSORS = 8
_WAITING = 256  # messages kept until this process has joined
_PRIME = 65_521
_ITERABLE = 1  # torch.utils.data._DatasetKind.Iterable


class _Drawn:
    """A pass: the iterator over its sampler, and the indexes drawn and not yet handed out."""

    def __init__(self, sampler_iter: Any, number: int, loader: int) -> None:
        self.sampler_iter, self.number, self.loader = sampler_iter, number, loader
        self.waiting: deque[array[int]] = deque()
        self.given = 0
        self.ended = self.blind = False


class DataObserver(Observer):
    """Tells of every pass and every batch."""

    name = "data"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._passes: weakref.WeakKeyDictionary[Any, _Drawn] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count()
        self._loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._loader_numbers = itertools.count()
        self._data: dict[int, tuple[Any, int]] = {}
        self._data_numbers = itertools.count()
        self._shares: dict[int, int] = {}  # loader → of `_PRIME` indexes so many are looked at
        self._tags: dict[tuple[Any, Any], bytes] = {}
        self._early: list[wire.Message] = []
        self._mix = (1, 0)
        self._every = False
        self._watch_indexes()

    def joined(self) -> None:
        joined = self.recorder.joined
        mixed = blake3(b"samples", key=self.recorder.key).digest(8)
        self._mix = int.from_bytes(mixed[:4], "big") | 1, int.from_bytes(mixed[4:], "big")
        self._every = joined is not None and joined.every_sample
        for message in self._early:
            self.recorder.tell(message)
        self._early.clear()

    def _tell(self, message: wire.Message) -> None:
        if self.recorder.joined is not None:
            self.recorder.tell(message)
        elif len(self._early) < _WAITING:
            self._early.append(message)

    # -- indexes

    def _watch_indexes(self) -> None:
        original = loading._BaseDataLoaderIter._next_index
        aside = self.aside

        @functools.wraps(original)
        def next_index(iterator: Any) -> Any:
            drawn = self._passes.get(iterator)
            if drawn is None or drawn.sampler_iter is not iterator._sampler_iter:
                aside(lambda: self._begins(iterator))
            try:
                index = original(iterator)
            except StopIteration:
                aside(lambda: self._ends(iterator))
                raise
            aside(lambda: self._drew(iterator, index))
            return index

        loading._BaseDataLoaderIter._next_index = next_index

    def _begins(self, iterator: Any) -> None:
        sampler = iterator._index_sampler  # each loader has its own; the loader is not known while workers are started
        if sampler not in self._loaders:
            self._loaders[sampler] = next(self._loader_numbers)
        number = self._loaders[sampler]
        drawn = self._passes[iterator] = _Drawn(iterator._sampler_iter, next(self._numbers), number)
        facts = facts_of(iterator)
        drawn.blind = iterator._dataset_kind == _ITERABLE
        dataset = iterator._dataset
        told: dict[str, Any] = {"number": drawn.number, "loader": number, "data": self._data_number(dataset)}
        self._tell(wire.Pass(step=self.recorder.done, dataset=_class(dataset), **told, **facts))

    def _data_number(self, dataset: Any) -> int:
        """A number for the data set behind a pass; one that is gone may leave its place in memory to another."""
        known = self._data.get(id(dataset))
        if known is not None and known[0]() is dataset:
            return known[1]
        number = next(self._data_numbers)
        try:
            reference: Any = weakref.ref(dataset)
        except TypeError:
            return number  # a list: its number is not found again
        if len(self._data) < _WAITING:
            self._data[id(dataset)] = (reference, number)
        return number

    def _drew(self, iterator: Any, index: Any) -> None:
        drawn = self._passes[iterator]
        if drawn.blind:
            return
        try:
            drawn.waiting.append(array("q", index if isinstance(index, list | tuple) else [index]))
        except (TypeError, OverflowError):
            drawn.blind = True  # keys that are no numbers
            self._tell(
                wire.Given(step=self.recorder.done, number=drawn.number, batch=0, unseen="indexes are not numbers")
            )

    def _ends(self, iterator: Any) -> None:
        drawn = self._passes[iterator]
        if not drawn.ended and not drawn.blind:
            drawn.ended = True
            self._close(drawn)

    def _close(self, drawn: _Drawn) -> None:
        if drawn.ended and not drawn.waiting:
            self._tell(wire.Given(step=self.recorder.done, number=drawn.number, batch=drawn.given, ended=True))

    # -- batches

    def loader_gave(self, iterator: Any, batch: Any) -> None:
        drawn = self._passes.get(iterator)
        if drawn is None or drawn.blind or not drawn.waiting:
            return
        indexes = drawn.waiting.popleft()
        in_order = getattr(iterator, "_in_order", True)
        names, rows, digests = self._samples(drawn.loader, indexes, batch) if in_order else ((), b"", b"")
        self._tell(
            wire.Given(
                step=self.recorder.done,
                number=drawn.number,
                batch=drawn.given,
                indexes=indexes.tobytes(),
                names=names,
                rows=rows,
                digests=digests,
                unseen="" if names else "a batch holds no tensor with a row for each sample, or comes out of order",
            )
        )
        drawn.given += 1
        self._close(drawn)

    def _samples(self, loader: int, indexes: array[int], batch: Any) -> tuple[tuple[str, ...], bytes, bytes]:
        """The names of a batch's tensors, the rows chosen, and their digests row by row."""
        n = len(indexes)
        parts = [
            (name, t)
            for name, t in itertools.islice(stages.tensors_in(batch), MOST_TENSORS)
            if t.is_cpu and t.dim() and t.shape[0] == n and t.layout is torch.strided and t.numel()
        ]
        if not parts:
            return (), b"", b""
        chosen = self._chosen(loader, indexes, parts)
        views = [self._rows_of(t) for _, t in parts]
        digests = [
            tag + row_content(memory[row * size : (row + 1) * size]) for row in chosen for tag, memory, size, _ in views
        ]
        return tuple(name for name, _ in parts), array("I", chosen).tobytes(), b"".join(digests)

    def _chosen(self, loader: int, indexes: array[int], parts: list[tuple[str, torch.Tensor]]) -> list[int]:
        """Rows to look at: all of a small batch, else those of a keyed choice of indexes, the same in every pass."""
        share = self._shares.get(loader)
        if share is None:
            rows, size = len(indexes) * len(parts), sum(t.nbytes for _, t in parts)
            share = min(_PRIME, max(1, int(_PRIME * min(MOST_ROWS / rows, MOST_BYTES / max(1, size)))))
            self._shares[loader] = share = _PRIME if self._every else share
        if share == _PRIME:
            return list(range(len(indexes)))
        a, b = self._mix
        return [row for row, i in enumerate(indexes) if (i * a + b) % _PRIME < share]

    def _rows_of(self, tensor: torch.Tensor) -> tuple[bytes, memoryview, int, torch.Tensor]:
        """The tag of a row's type and shape, the tensor's memory, the bytes of a row, and what owns the memory."""
        t = tensor.detach()
        if t.is_conj() or t.is_neg():
            t = t.resolve_conj().resolve_neg()
        t = t.contiguous()
        key = (t.dtype, t.shape[1:])
        tag = self._tags.get(key)
        if tag is None:
            if len(self._tags) > _WAITING:
                self._tags.clear()
            tag = self._tags[key] = row_tag(str(t.dtype), tuple(t.shape[1:]))
        memory = memoryview((ctypes.c_char * t.nbytes).from_address(t.data_ptr())).cast("B")
        return tag, memory, t.nbytes // t.shape[0], t


def _class(thing: Any) -> str:
    kind = type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"[:300]


def facts_of(iterator: Any) -> dict[str, Any]:
    """What decides the order of a pass, as fields of `wire.Pass`."""
    if iterator._dataset_kind == _ITERABLE:
        return {"sampler": "", "unordered": "an iterable data set has no indexes"}
    batches = iterator._index_sampler
    facts: dict[str, Any] = {"sampler": _class(batches), "samples": _length(iterator._dataset), "batch": 1}
    sampler = batches
    if type(batches) is BatchSampler:
        sampler = batches.sampler
        facts |= {"batch": batches.batch_size, "drop_last": bool(batches.drop_last), "sampler": _class(sampler)}
    kind, of_sampler = _of_sampler(sampler)
    if kind is None:
        return facts | {"unordered": f"{facts['sampler']} is no sampler whose order can be derived"}
    return facts | of_sampler | {"exact": type(sampler).__iter__ is kind.__iter__}


def _of_sampler(sampler: Any) -> tuple[type[Sampler[Any]] | None, dict[str, Any]]:
    if isinstance(sampler, DistributedSampler):
        return DistributedSampler, {
            "order": "distributed",
            "samples": _length(sampler.dataset),
            "seed": int(sampler.seed),
            "epoch": int(sampler.epoch),
            "shuffle": bool(sampler.shuffle),
            "replicas": int(sampler.num_replicas),
            "part": int(sampler.rank),
            "even": bool(sampler.drop_last),
        }
    if isinstance(sampler, SequentialSampler):
        return SequentialSampler, {
            "order": "sequential",
            "samples": _length(sampler.data_source),
            "shuffle": False,
        }
    if isinstance(sampler, RandomSampler):
        return RandomSampler, _of_random(sampler)
    return None, {}


def _of_random(sampler: RandomSampler) -> dict[str, Any]:
    samples = _length(sampler.data_source)
    facts: dict[str, Any] = {"order": "random", "samples": samples, "length": int(sampler.num_samples)}
    generator = sampler.generator
    initial, epoch = (getattr(sampler, name, None) for name in ("initial_seed", "epoch"))
    if isinstance(initial, int) and isinstance(epoch, int):  # accelerate's SeedableRandomSampler
        return facts | {"seed": initial, "epoch": epoch}
    if sampler.replacement or sampler.num_samples > samples:
        return facts | {"unordered": "samples are drawn with replacement"}
    if generator is not None and generator.device.type != "cpu":
        return facts | {"unordered": f"the sampler draws on {generator.device}"}
    source = torch.default_generator if generator is None else generator
    state = source.get_state()
    raw = ctypes.string_at(state.data_ptr(), state.nbytes)
    return facts | {"seed": int.from_bytes(raw[:8], "little"), "state": raw, "drawn": generator is None}


def _length(thing: Any) -> int:
    try:
        return len(thing)
    except (TypeError, NotImplementedError):
        return -1
