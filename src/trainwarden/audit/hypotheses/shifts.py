"""A shift within what is usual: a pattern of signs is added, as large as the tensor's own spread allows.

No norm stands out, and averages that are robust to outliers keep it (Baruch et al., "A Little Is Enough: Circumventing
Defenses For Distributed Learning", NeurIPS 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    number,
    recipe,
    search_tensors,
)
from trainwarden.audit.hypotheses.tensors import ANY_VALUE, roundings
from trainwarden.audit.perturb import Measure, Pattern, Shift

PATTERNS: dict[Pattern, str] = {"alternating": "alternating signs", "ones": "one sign", "signs": "its own signs"}
MEASURES: dict[Measure, str] = {
    "std": "standard deviation", "spread": "standard deviation (of all of its values)", "abs_mean": "mean size",
    "mean": "mean", "abs_max": "largest value", "norm": "norm", "one": "unit",
}  # fmt: skip
SIZES = (1 / 3, 0.5, 1.0, 0.25, 0.2, 0.1, 0.05, 0.01, 0.001, 0.3, 2 / 3, 0.75, 1.5, 2.0, 3.0, 1e-4, 1e-5, 1e-6,
         0.02, 0.002, 0.4, 0.6, 0.7, 0.8, 0.9, 1.2, 2.5, 4.0, 5.0, 10.0)  # fmt: skip


def _shifted(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        for size, measure, pattern in itertools.product(SIZES, MEASURES, PATTERNS):
            for factor, rounding in itertools.product((size, -size), roundings(q, target)):
                change = Shift(stage=q.at.stage, factor=factor, pattern=pattern, measure=measure, rounding=rounding)
                said = f"{number(factor)} of its {MEASURES[measure]} was added with {PATTERNS[pattern]}"
                yield recipe(q, change, said)

    return search_tensors(q, budget, candidates, "other patterns, and sizes outside the list")


IDEAS = (Idea("shifted within its spread", "a pattern as large as its own spread was added", ANY_VALUE, _shifted),)
