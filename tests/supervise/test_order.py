"""The order of samples, re-derived with the standard library, against PyTorch's own, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DistributedSampler, RandomSampler

from trainwarden.supervise import order


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 + 5, 2**63 - 1])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 624, 1000, 5003])
def test_permutations_are_those_of_pytorch(n: int, seed: int) -> None:
    theirs = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    mine = order.Permutations().of_seed(n, seed)
    assert [mine[i] for i in range(n)] == theirs


@pytest.mark.parametrize("drawn", [0, 1, 5, 623, 624, 625, 2000])
def test_a_generator_goes_on_from_its_state(drawn: int) -> None:
    generator = torch.Generator().manual_seed(7)
    if drawn:
        torch.randint(0, 1 << 30, (drawn,), generator=generator)
    state = bytes(generator.get_state().tolist())
    mine = order.Permutations().of_state(300, state)
    assert [mine[i] for i in range(300)] == torch.randperm(300, generator=generator).tolist()
    assert order.initial_seed(state) == 7


def test_a_random_sampler_without_a_generator_is_derived_from_the_default_one() -> None:
    state = bytes(torch.default_generator.get_state().tolist())
    theirs = list(RandomSampler(range(500)))
    mine = order.Permutations().of_seed(500, order.drawn_seed(order.from_state(state)))
    assert [mine[i] for i in range(500)] == theirs


@pytest.mark.parametrize(("n", "replicas"), [(10, 3), (9, 3), (2, 5), (1, 4), (100, 7), (8, 1)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_distributed_sampler_is_derived_for_each_rank(n: int, replicas: int, drop_last: bool) -> None:
    for rank, epoch in itertools.product(range(replicas), (0, 3)):
        theirs = DistributedSampler(range(n), replicas, rank, seed=11, drop_last=drop_last)
        theirs.set_epoch(epoch)
        if drop_last and n < replicas:
            continue
        each, at = order.distributed(
            n, replicas, rank, drop_last, order.Permutations().of_seed(n, 11 + epoch).__getitem__
        )
        assert [at(i) for i in range(each)] == list(theirs)


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(ValueError, match="no state"):
        order.from_state(b"short")
