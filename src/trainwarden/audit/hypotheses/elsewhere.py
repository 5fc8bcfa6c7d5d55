"""Digests that the log already knows from another step or rank: data used twice, state put back.

Rules
-----
* Only digests are compared. Equal keyed digests mean equal bytes, so that nothing has to be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainwarden.audit.hypotheses.base import Answer, Budget, Idea, Question, Target, not_tried
from trainwarden.audit.perturb import Perturbation
from trainwarden.model import Detail, Stage

Known = Mapping[tuple[int, int], Detail]


def elsewhere(q: Question, known: Known, what: str, change: Callable[[int, int], tuple[Perturbation, ...]]) -> Answer:
    """Look for the recorded digests of the located rank's differing tensors in details of other steps or ranks.

    The nearest earlier step wins; `change(step, rank)` is the perturbation that would bring it about.
    """
    stage, rank = q.at.stage, q.at.rank
    claimed = q.claimed(rank, stage)
    names = {t.name for t in q.targets if t.rank == rank} or ({q.at.tensor} & set(claimed))
    if not names:
        return not_tried(f"no recorded digest of stage {stage} to look for")
    places = sorted(known, key=lambda p: (p[0] > q.at.step, abs(q.at.step - p[0]), p[1] != rank, p[1]))
    places = [p for p in places if p != (q.at.step, rank)]
    best: tuple[int, tuple[int, int], set[str]] = (0, (-1, -1), set())
    for place in places:
        detail = known[place]
        there = dict(zip(detail.names, detail.digests, strict=True))
        same = {n for n in names if there.get(n) == claimed[n]}
        if len(same) > best[0]:
            best = (len(same), place, same)
    count, (step, other), same = best
    located = q.at.tensor in same or q.at.tensor not in names
    if not count or not located:
        return Answer(tried=len(places), limits=f"steps and ranks beyond the {len(places)} known")
    whole = count == len(names)
    name = q.place.name if q.place.name in same else sorted(same)[0]
    return Answer(
        tried=len(places),
        sentence=f"{what} that of step {step}, rank {other}",
        parameters={"step": step, "rank": other},
        perturbations=change(step, other) if whole else (),
        covered=frozenset(Target(rank, n) for n in same),
        digest=claimed[name].hex(),
    )


def _put_back(q: Question, budget: Budget) -> Answer:
    known = q.history.weights if q.at.stage is Stage.WEIGHTS else q.history.optimizer_state
    if not known:
        return not_tried("no digests of other steps were given")
    return elsewhere(q, known, "the values were", lambda step, rank: ())


IDEAS = (
    Idea(
        "state of another step",
        "the values of another step or checkpoint were put in place",
        frozenset({Stage.WEIGHTS, Stage.OPTIMIZER_STATE}),
        _put_back,
    ),
)
