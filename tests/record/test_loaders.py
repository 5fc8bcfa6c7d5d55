"""A loader is put where it stood: the same batches come, whatever its workers draw from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainwarden.record.loaders import LoaderTracker, hook_creation


class Tracking:
    """What the hooks on loaders use of a recorder."""

    def __init__(self) -> None:
        self.loaders = LoaderTracker()
        self.loader_making = self.loaders.making

    def guarded(self, what: str, act: Callable[[], Any]) -> Any:
        return act()

    def taken(self, loader: Any, count: int) -> tuple[Any, list[torch.Tensor]]:
        """A new iterator of a loader, and the first batches that it gives."""
        iterator = iter(loader)
        return iterator, self.more(iterator, count)

    def more(self, iterator: Any, count: int) -> list[torch.Tensor]:
        batches = []
        for _ in range(count):
            self.loaders.begin(iterator)
            batches.append(next(iterator))
            self.loaders.took(iterator)
        return batches


class Noisy(Dataset[torch.Tensor]):
    """Every generator that a worker has decides what it gives."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.cat([torch.tensor([i, random.random(), numpy.random.rand()]), torch.randn(2)])


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        for i in range(40):
            yield torch.cat([torch.tensor([float(i)]), torch.randn(2)])


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    numpy.random.seed(value)


def classes(tracking: Tracking, stateful: bool) -> Any:
    kind = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader if stateful else DataLoader
    own = type("Own", (kind,), {})
    hook_creation(own, tracking)  # type: ignore[arg-type]
    return own


@pytest.mark.parametrize("stateful", [False, True], ids=["torch", "torchdata"])
@pytest.mark.parametrize("data", [Noisy(), Stream()], ids=["map", "iterable"])
def test_a_loader_with_workers_gives_the_same_batches_again(data: Any, stateful: bool) -> None:
    tracking = Tracking()
    make = classes(tracking, stateful)
    seed(1)
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 2, "shuffle": True if isinstance(data, Noisy) else None}
    original, _ = tracking.taken(make(data, **options), 3)
    (state,) = tracking.loaders.state()
    expected = tracking.more(original, 5)

    other = Tracking()
    make = classes(other, stateful)
    seed(2)
    loader = make(data, **options)
    iterator, before = other.taken(loader, 1)
    other.loaders.reposition(loader, iterator, state)
    found = other.more(iterator, 5)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(before[0], expected[0])
    assert len(list(iterator)) == len(list(original)), "and the epoch ends where it ended"


def test_a_loader_whose_workers_are_kept_is_put_into_its_first_epoch_and_no_later_one() -> None:
    tracking = Tracking()
    make = classes(tracking, stateful=False)
    seed(1)
    loader = make(Noisy(), batch_size=4, num_workers=1, persistent_workers=True)
    iterator, _ = tracking.taken(loader, 2)
    (first,) = tracking.loaders.state()
    assert not first["kept"]
    list(iterator)
    again, _ = tracking.taken(loader, 1)
    assert again is iterator
    (second,) = tracking.loaders.state()
    assert (second["taken"], second["kept"]) == (1, True)
    with pytest.raises(RuntimeError, match="workers are kept cannot be put into a later epoch"):
        tracking.loaders.reposition(loader, iterator, second)


def test_what_a_stateful_loader_skips_when_it_goes_on_is_no_batch_of_the_script() -> None:
    tracking = Tracking()
    make = classes(tracking, stateful=True)
    loader = make(Stream(), batch_size=4, num_workers=0)
    iterator, _ = tracking.taken(loader, 3)
    kept = loader.state_dict()
    expected = list(islice(iterator, 2))

    tracking = Tracking()
    make = classes(tracking, stateful=True)
    loader = make(Stream(), batch_size=4, num_workers=0)
    loader.load_state_dict(kept)
    iterator, found = tracking.taken(loader, 2)
    assert tracking.loaders.was_given(iterator)
    assert [int(b[0, 0]) for b in found] == [int(b[0, 0]) for b in expected] == [12, 16]
