"""Random number generators: seeded anew, not advanced, restored, or another rank's.

Rules
-----
* A seed is found by seeding a generator of our own and comparing the digest of its state. A generator that was
  seeded and then drawn from before the forward pass has another state and is not found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    not_tried,
    search_tensors,
)
from trainwarden.audit.hypotheses.elsewhere import elsewhere
from trainwarden.audit.perturb import Reseed
from trainwarden.audit.perturbing import torch_rng_state
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor

TORCH_SEEDS = 100_000
OTHER_SEEDS = 2_000
SPECIAL = (123456, 1234567, 12345678, 123456789, 20240101, 20241018, 0xDEADBEEF, 0xC0FFEE, 2**31 - 1, 2**32 - 1)
_STAGE = frozenset({Stage.RNG})


def _seeds(q: Question, count: int) -> Iterator[int]:
    yield from dict.fromkeys((0, 1, 42, 1234, 1337, 2024, 3407, q.at.step, q.at.rank, *SPECIAL))
    yield from range(count)


def _seeded(make: Callable[[int], Tensor], seed: int, target: Target) -> Tensor:
    return make(seed)


def _reseeded(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        generator = target.name.rpartition("/")[2]
        make = _GENERATORS.get(generator)
        if make is None:
            return
        for seed in _seeds(q, TORCH_SEEDS if generator == "torch" else OTHER_SEEDS):
            text = f"the {generator} generator was seeded with {seed}"
            parameters = {"seed": seed, "generator": generator}
            yield Recipe(text, parameters, functools.partial(_seeded, make, seed))

    limits = f"seeds from {TORCH_SEEDS:,} (torch) and {OTHER_SEEDS:,} (python, numpy) up, generators drawn from since"
    answer = search_tensors(q, budget, candidates, limits)
    if not answer.found:
        return answer
    ranks: dict[tuple[int, str], set[int]] = {}
    for target, r in answer.solved.items():
        ranks.setdefault((r.parameters["seed"], r.parameters["generator"]), set()).add(target.rank)
    return replace(
        answer,
        perturbations=tuple(
            Reseed(seed=seed, generators=(name,), ranks=() if found == set(q.captures) else tuple(sorted(found)))  # type: ignore[arg-type]
            for (seed, name), found in ranks.items()
        ),
    )


def _python_state(seed: int) -> Tensor:
    import random

    return _as_tensor({"python": random.Random(seed).getstate()})


def _numpy_state(seed: int) -> Tensor:
    import numpy

    return _as_tensor({"numpy": numpy.random.RandomState(seed % 2**32).get_state()})


def _as_tensor(state: dict[str, object]) -> Tensor:
    import torch

    from trainwarden.record.rng import as_bytes

    (data,) = as_bytes(state).values()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


_GENERATORS: dict[str, Callable[[int], Tensor]] = {
    "torch": torch_rng_state,
    "python": _python_state,
    "numpy": _numpy_state,
}


def _not_advanced(q: Question, budget: Budget) -> Answer:
    if not q.history.rng:
        return not_tried("no generator states of other steps were given")
    return elsewhere(q, q.history.rng, "the generator's state was", lambda step, rank: ())


IDEAS = (
    Idea("generator seeded", "a random number generator was seeded anew", _STAGE, _reseeded),
    Idea("generator not advanced", "a generator's state was that of another step or rank", _STAGE, _not_advanced),
)
