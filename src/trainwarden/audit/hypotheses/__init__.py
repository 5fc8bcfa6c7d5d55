"""The catalogue: every hypothesis that `explain` tries, in the order in which it is tried.

To add one: a search in its family's file (or a new file), an `Idea` in that file's `IDEAS`, the family in the list
below, and in tests/audit/test_explain.py a sabotage that it must prove. Where two would reproduce the same
digest the earlier one is named, so what says more comes first.
"""

from trainwarden.audit.hypotheses import (
    batch,
    before,
    elsewhere,
    forward,
    reduction,
    rng,
    rows,
    settings,
    shifts,
    state,
    tensors,
    update,
)

HYPOTHESES = (
    *before.IDEAS,
    *settings.IDEAS,
    *batch.IDEAS,
    *rows.IDEAS,
    *rng.IDEAS,
    *reduction.IDEAS,
    *state.IDEAS,
    *update.IDEAS,
    *elsewhere.IDEAS,
    *tensors.IDEAS,
    *shifts.IDEAS,
)
BEFORE_THE_STEP = frozenset(idea.name for idea in (*before.IDEAS, *elsewhere.IDEAS, *tensors.IDEAS, *shifts.IDEAS))
"""Those that are asked where a step began with other weights; the rest speaks of what a step computes."""
RERUNS = forward.RERUNS

__all__ = ["BEFORE_THE_STEP", "HYPOTHESES", "RERUNS"]
