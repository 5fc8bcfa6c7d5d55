"""The forward pass: nothing here can be computed from captures, so the step is executed again under each change.

Rules
-----
* Every setting costs one re-execution of the step on all ranks in clean processes; the lists are short.
* Without a re-runner, and once the cause is proved otherwise, these are reported as not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trainwarden.audit.hypotheses.base import Question, number
from trainwarden.audit.perturb import Autocast, Dropout, EvalMode, Loss, Perturbation, Reseed
from trainwarden.audit.perturbing import other_loss
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor

DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.5)
SEEDS = (0, 42, 1234, 1337)


class Rerun(NamedTuple):
    """A hypothesis that is put to the test by re-executing the step under each of its settings."""

    name: str
    claim: str
    stages: frozenset[Stage]
    settings: Callable[[Question], Iterator[tuple[str, tuple[Perturbation, ...]]]]


MASKS = 64  # targets at either end, and one by one, that are left out
SMOOTHINGS = (0.1, 0.05, 0.2, 0.01, 0.02, 0.3, 0.5)


def _loss(q: Question) -> Iterator[tuple[str, tuple[Perturbation, ...]]]:
    """Only what gives the recorded loss from the captured outputs is worth an execution."""
    ranks, where = next(_everywhere_or_here(q))
    rank = ranks[0] if ranks else min(q.captures)
    given, wanted = q.captures[rank].losses, q.records[rank].loss if rank in q.records else None
    if "0.target" not in given or wanted is None:
        return
    for said, change in _losses(given["0.target"]):
        if _loss_of(q, rank, change) == wanted:
            yield said + where, (msgspec.structs.replace(change, ranks=ranks),)


def _losses(target: Tensor) -> Iterator[tuple[str, Loss]]:
    n = target.shape[0] if target.dim() else 0
    for k in range(1, min(n, MASKS + 1)):
        yield f"the loss left out the last {k} of {n} targets", Loss(start=n - k, stop=n)
        yield f"the loss left out the first {k} of {n} targets", Loss(stop=k)
    for i in range(1, min(n - 1, MASKS)):
        yield f"the loss left out target {i} of {n}", Loss(start=i, stop=i + 1)
    for every in (2, 3, 4, 5, 8, 10):
        for start in range(min(every, n)):
            yield f"the loss left out one target in {every}", Loss(start=start, stop=n, every=every)
    if not target.is_floating_point():
        for label in target.unique().tolist()[:MASKS]:
            yield f"the loss left out targets of class {label}", Loss(ignored=label)
    for share in SMOOTHINGS:
        yield f"labels were smoothed by {number(share)}", Loss(smoothing=share)
    yield "losses were added up and not averaged", Loss(total=True)


def _loss_of(q: Question, rank: int, change: Loss) -> float | None:
    """The sum of a rank's captured losses under a change; None where it cannot be computed."""
    import torch

    capture, total = q.captures[rank], 0.0
    for i, settings in enumerate(capture.meta.losses):
        try:
            given = capture.losses[f"{i}.input"], capture.losses[f"{i}.target"]
            total += float(other_loss(change, torch._C._nn.cross_entropy_loss)(*given, None, *settings))
        except (RuntimeError, IndexError, ValueError):
            return None
    return total


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
    Rerun("loss changed", "the loss left out targets, smoothed labels, or was not averaged", _FORWARD, _loss),
    Rerun("model in eval mode", "the forward pass ran in eval mode", _FORWARD, _eval),
    Rerun("dropout changed", "another dropout rate was used", _FORWARD, _dropout),
    Rerun("precision changed", "the forward pass ran in another precision", _FORWARD, _precision),
    Rerun("seeded in the forward pass", "generators were seeded where no record looks", _FORWARD, _seeded_inside),
)
