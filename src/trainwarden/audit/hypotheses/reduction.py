"""The reduction over ranks and what follows it: clipping, the divisor, a rank left out, the order of addition.

Rules
-----
* The clean reduction is rebuilt from every rank's captured local gradients; a rank without a capture means that
  these hypotheses are not tried.
* Ranks are added tensor by tensor, in rank order or its reverse. With three ranks or more a ring that starts
  elsewhere for each chunk does not rebuild bit for bit, and gradients under a loss scaler never do.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    not_tried,
    number,
    search_tensors,
    settings_of,
)
from trainwarden.audit.hypotheses.tensors import local_changes
from trainwarden.audit.perturb import Clip, Division, TensorPerturbation
from trainwarden.audit.perturbing import clip_by_norm, mean_of_ranks, transform
from trainwarden.model import Location, Stage

if TYPE_CHECKING:
    from torch import Tensor

NORMS = (1.0, 0.5, 0.1, 0.25, 2.0, 5.0, 10.0, 0.01, 0.2, 0.3, 0.4, 0.6, 0.7, 0.75, 0.8, 0.9, 1.1, 1.5, 3.0, 4.0,
         0.05, 0.001, 20.0, 50.0, 100.0, 1000.0)  # fmt: skip
ORDERS = 24
DIVISIONS: tuple[Division, ...] = ("scale", "after", "before")


class _Form(NamedTuple):
    """One way to reduce: the ranks in the order of addition, what the sum is divided by and when."""

    ranks: tuple[int, ...]
    divisor: float
    division: Division


class _Reduction:
    """Reductions of a question's local gradients, computed once each."""

    def __init__(self, q: Question) -> None:
        self.q = q
        self.ranks = tuple(sorted(q.captures))
        self.reduced = functools.lru_cache(maxsize=4)(self._reduced)
        self.clipped = functools.lru_cache(maxsize=4)(self._clipped)

    def missing(self) -> str:
        """Why the reduction cannot be rebuilt, or ""."""
        if not self.q.targets:
            return "the replay captured no reduced gradient that differs from the record"
        world = max(c.meta.world for c in self.q.captures.values())
        without = [r for r in range(world) if not self.q.clean(r, Stage.LOCAL_GRADIENTS)]
        if without:
            return f"the local gradients of rank {without[0]} were not captured"
        rank, name = self.q.place
        own, mean = (self.q.clean(rank, s).get(name) for s in (Stage.LOCAL_GRADIENTS, Stage.REDUCED_GRADIENTS))
        if own is not None and mean is not None and own.shape != mean.shape:
            return "gradients are sharded: a rank has a part of their mean only, and no norm of the whole"
        return ""

    def one(self, name: str, form: _Form) -> Tensor:
        parts = [self.q.clean(r, Stage.LOCAL_GRADIENTS)[name] for r in form.ranks]
        return mean_of_ranks(parts, form.divisor, form.division)

    def _reduced(self, form: _Form) -> dict[str, Tensor]:
        place = self.q.place.rank
        names = self.q.clean(place, Stage.REDUCED_GRADIENTS)
        return {n: self.one(n, form) for n in names if n in self.q.clean(place, Stage.LOCAL_GRADIENTS)}

    def _clipped(self, form: _Form, norm: float) -> dict[str, Tensor]:
        return clip_by_norm(self.reduced(form), norm)

    def honest(self) -> Iterator[_Form]:
        """The forms that an honest mean may have."""
        n = len(self.ranks)
        orders = (self.ranks, self.ranks[::-1]) if n > 2 else (self.ranks,)
        for ranks, division in itertools.product(orders, DIVISIONS):
            yield _Form(ranks, n, division)

    def norm(self) -> tuple[_Form | None, float | None]:
        """The honest form and the clipping norm (None: no clipping) that rebuild the clean reduced gradients."""
        rank, name = self.q.place
        clean = self.q.clean_digests(rank, Stage.REDUCED_GRADIENTS)[name]
        for form in self.honest():
            if self._digest(self.one(name, form)) == clean:
                return form, None
        for form, norm in itertools.product(self.honest(), NORMS):
            if self._digest(self.clipped(form, norm)[name]) == clean:
                return form, norm
        return None, None

    def _digest(self, tensor: Tensor) -> bytes:
        return self.q.digest(Stage.REDUCED_GRADIENTS, tensor)


def _no_clipping(q: Question, budget: Budget) -> Answer:
    reduction = _Reduction(q)
    if missing := reduction.missing():
        return not_tried(missing)

    def candidates(target: Target) -> Iterator[Recipe]:
        for form in reduction.honest():
            yield Recipe("gradients were not clipped", {}, _maker(reduction, form, None))

    return _with_clip(q, search_tensors(q, budget, candidates), None)


def _other_norm(q: Question, budget: Budget) -> Answer:
    reduction = _Reduction(q)
    if missing := reduction.missing():
        return not_tried(missing)

    def candidates(target: Target) -> Iterator[Recipe]:
        for form, norm in itertools.product(reduction.honest(), NORMS):
            sentence = f"gradients were clipped to norm {number(norm)}"
            yield Recipe(sentence, {"max_norm": norm}, _maker(reduction, form, norm))

    answer = search_tensors(q, budget, candidates, "norms outside the list")
    return _with_clip(q, answer, answer.parameters.get("max_norm"))


def _with_clip(q: Question, answer: Answer, norm: float | None) -> Answer:
    if not answer.found:
        return answer
    ranks = tuple(sorted({t.rank for t in answer.covered}))
    every = () if ranks == tuple(sorted(q.captures)) else ranks
    return replace(answer, perturbations=(Clip(max_norm=norm, ranks=every),))


def _maker(reduction: _Reduction, form: _Form, norm: float | None) -> Callable[[Target], Tensor]:
    if norm is None:
        return lambda target: reduction.one(target.name, form)
    return lambda target: reduction.clipped(form, norm)[target.name]


def _reduced_otherwise(
    q: Question, budget: Budget, forms: Callable[[Sequence[int]], Iterator[tuple[str, _Form]]]
) -> Answer:
    reduction = _Reduction(q)
    if missing := reduction.missing():
        return not_tried(missing)
    honest, norm = reduction.norm()

    def candidates(target: Target) -> Iterator[Recipe]:
        for sentence, form in forms(reduction.ranks):
            parameters = {"ranks": list(form.ranks), "divisor": form.divisor}
            yield Recipe(sentence, parameters, _maker(reduction, form, None))
            if norm is not None:
                parameters = {**parameters, "max_norm": norm}
                yield Recipe(sentence + " and then clipped", parameters, _maker(reduction, form, norm))

    unknown = "clipping after it, whose norm was not found" if honest is None else ""
    return search_tensors(q, budget, candidates, unknown)


def _divisor(q: Question, budget: Budget) -> Answer:
    def forms(ranks: Sequence[int]) -> Iterator[tuple[str, _Form]]:
        n = len(ranks)
        for divisor in dict.fromkeys((1, n * n, n - 1, n + 1, 2 * n, n / 2)):
            for division in DIVISIONS:
                if divisor not in (0, n):
                    text = "summed over ranks, not averaged" if divisor == 1 else f"divided by {number(divisor)}"
                    yield f"gradients were {text}", _Form(tuple(ranks), divisor, division)

    return _reduced_otherwise(q, budget, forms)


def _left_out(q: Question, budget: Budget) -> Answer:
    def forms(ranks: Sequence[int]) -> Iterator[tuple[str, _Form]]:
        n = len(ranks)
        for out in ranks if n > 1 else ():
            rest = tuple(r for r in ranks if r != out)
            for divisor, division in itertools.product(dict.fromkeys((n, n - 1)), DIVISIONS):
                text = f"rank {out} was left out of the mean (divisor {divisor})"
                yield text, _Form(rest, divisor, division)

    answer = _reduced_otherwise(q, budget, forms)
    if (here := answer.solved.get(q.place)) is None:
        return answer
    (out,) = set(q.captures) - set(here.parameters["ranks"])
    return replace(answer, place=_whose(q, out, q.place.name))


def _order(q: Question, budget: Budget) -> Answer:
    if len(q.captures) < 3:
        return not_tried("with fewer than three ranks the order of addition changes no bit")

    def forms(ranks: Sequence[int]) -> Iterator[tuple[str, _Form]]:
        for order in itertools.islice(itertools.permutations(ranks), ORDERS):
            for division in DIVISIONS:
                yield f"ranks were added in the order {list(order)}", _Form(order, len(ranks), division)

    return _reduced_otherwise(q, budget, forms)


def _unrecorded(q: Question, budget: Budget) -> Answer:
    reduction = _Reduction(q)
    if missing := reduction.missing():
        return not_tried(missing)
    honest, norm = reduction.norm()
    if honest is None:
        return not_tried("the honest mean of the captured gradients does not rebuild the captured one")

    given = functools.lru_cache(maxsize=4)(functools.partial(_given, reduction, honest, norm))

    def candidates(target: Target) -> Iterator[Recipe]:
        # Clipping carries a change of one tensor over to all; without it, a tensor tells of itself alone.
        own = q.clean(target.rank, Stage.LOCAL_GRADIENTS)
        names = [target.name] if norm is None else sorted(own, key=lambda n: (own[n].numel(), n))
        for name in names:
            for text, change in local_changes(own[name], len(q.captures)):
                for rank in reduction.ranks:
                    said = f"rank {rank} gave another gradient of {name} to the reduction than it recorded: {text}"
                    make = functools.partial(_part, q, given, rank, name, change)
                    yield Recipe(said, {"rank": rank, "tensor": name, **settings_of(change)}, make)

    answer = search_tensors(q, budget, candidates, "other changes, and several ranks or tensors at once")
    if (here := answer.solved.get(q.place)) is None:
        return answer
    return replace(answer, place=_whose(q, here.parameters["rank"], here.parameters["tensor"]))


def _whose(q: Question, rank: int, name: str) -> Location:
    """The located step with the rank and tensor that it comes from: all ranks show it."""
    recorded, replayed = (
        d.get(name, b"").hex() for d in (q.claimed(rank, q.at.stage), q.clean_digests(rank, q.at.stage))
    )
    return msgspec.structs.replace(q.at, rank=rank, tensor=name, recorded=recorded, replayed=replayed)


def _given(
    reduction: _Reduction, form: _Form, norm: float | None, rank: int, name: str, change: TensorPerturbation
) -> dict[str, Tensor]:
    """The reduced gradients that follow where one rank's part of one tensor was changed."""
    own = {r: reduction.q.clean(r, Stage.LOCAL_GRADIENTS) for r in form.ranks}
    parts = {r: own[r][name] for r in form.ranks}
    parts[rank] = transform(change, parts[rank], own[rank], name)
    mean = {name: mean_of_ranks([parts[r] for r in form.ranks], form.divisor, form.division)}
    return mean if norm is None else clip_by_norm({**reduction.reduced(form), **mean}, norm)


def _part(
    q: Question,
    given: Callable[[int, str, TensorPerturbation], dict[str, Tensor]],
    rank: int,
    name: str,
    change: TensorPerturbation,
    target: Target,
) -> Tensor:
    """The target as it follows; that tensor itself must fit too, since of the others only the norm is seen.

    Raises:
        ValueError: it does not.
    """
    found = given(rank, name, change)
    if q.digest(q.at.stage, found[name]) != q.claimed(target.rank, q.at.stage).get(name):
        raise ValueError(f"{name} does not fit")
    return found[target.name]


_STAGE = frozenset({Stage.REDUCED_GRADIENTS})
IDEAS = (
    Idea("clipping off", "gradients were not clipped", _STAGE, _no_clipping),
    Idea("another clipping norm", "gradients were clipped to another norm", _STAGE, _other_norm),
    Idea("wrong divisor", "the reduction divided by another number than that of ranks", _STAGE, _divisor),
    Idea("rank left out", "one rank's gradients were left out of the reduction", _STAGE, _left_out),
    Idea("gradient not the recorded one", "a rank reduced another gradient than it recorded", _STAGE, _unrecorded),
    Idea("order of addition", "ranks were added in another order, which is no sabotage", _STAGE, _order),
)
