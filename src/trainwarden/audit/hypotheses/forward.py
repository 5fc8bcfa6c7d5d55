"""The forward pass: nothing here can be computed from captures, so the step is executed again under each change.

Rules
-----
* Every setting costs one re-execution of the step on all ranks in clean processes; the lists are short.
* Without a re-runner, and once the cause is proved otherwise, these are reported as not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from trainwarden.audit.hypotheses.base import Question
from trainwarden.audit.perturb import Autocast, Dropout, EvalMode, Perturbation, Reseed
from trainwarden.model import Stage

DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.5)
SEEDS = (0, 42, 1234, 1337)


class Rerun(NamedTuple):
    """A hypothesis that is put to the test by re-executing the step under each of its settings."""

    name: str
    claim: str
    stages: frozenset[Stage]
    settings: Callable[[Question], Iterator[tuple[str, tuple[Perturbation, ...]]]]


def _dropout(q: Question) -> Iterator[tuple[str, tuple[Perturbation, ...]]]:
    for p in DROPOUTS:
        for ranks, where in _everywhere_or_here(q):
            yield f"dropout had p = {p}{where}", (Dropout(p=p, ranks=ranks),)


def _eval(q: Question) -> Iterator[tuple[str, tuple[Perturbation, ...]]]:
    for ranks, where in _everywhere_or_here(q):
        yield f"the model was in eval mode{where}", (EvalMode(ranks=ranks),)


def _precision(q: Question) -> Iterator[tuple[str, tuple[Perturbation, ...]]]:
    for dtype in ("", "bfloat16", "float16"):
        for ranks, where in _everywhere_or_here(q):
            what = f"the forward pass ran under {dtype} autocast" if dtype else "autocast was off"
            yield what + where, (Autocast(dtype=dtype, ranks=ranks),)


def _seeded_inside(q: Question) -> Iterator[tuple[str, tuple[Perturbation, ...]]]:
    for seed in SEEDS:
        for ranks, where in _everywhere_or_here(q):
            text = f"the generators were seeded with {seed} as the forward pass began{where}"
            yield text, (Reseed(seed=seed, generators=("torch", "python", "numpy"), ranks=ranks),)


def _everywhere_or_here(q: Question) -> Iterator[tuple[tuple[int, ...], str]]:
    """The ranks whose recorded loss is not the replay's; the located rank alone where losses do not tell."""
    ranks = {r for r in q.captures if r in q.records and q.records[r].loss != q.captures[r].meta.loss}
    ranks = ranks or {q.at.rank}
    if ranks == set(q.captures):
        yield (), ""
    else:
        yield tuple(sorted(ranks)), " on rank " + ", ".join(str(r) for r in sorted(ranks))


_FORWARD = frozenset({Stage.ACTIVATIONS})
RERUNS = (
    Rerun("model in eval mode", "the forward pass ran in eval mode", _FORWARD, _eval),
    Rerun("dropout changed", "another dropout rate was used", _FORWARD, _dropout),
    Rerun("precision changed", "the forward pass ran in another precision", _FORWARD, _precision),
    Rerun("seeded in the forward pass", "generators were seeded where no record looks", _FORWARD, _seeded_inside),
)
