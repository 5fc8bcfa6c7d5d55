"""05, innocent commit: a refactoring of the training script leaves something out.

How an insider does it: a commit that reads as tidying makes one update in ten a dry run. Nobody's environment changes;
the script in the repository does, after it was approved.

Precondition: write access to the repository (R). Expected evidence: an approved job is not started, since its code is
not what was approved; a script that changes while the job runs is told by `environment`. What two people approve is
not covered (threat model): the log then says who did. Effect: other final weights.
Benign twin: a comment is committed before the seal. Clean-up: the job is a copy.
"""

from __future__ import annotations

from attacks._shared.deliver import restart
from attacks._shared.evidence import CHANGED, REFUSED
from attacks._shared.source import COMMENTED, STEP, script_with
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range

DRY = rb"""\1dry = getattr(optimizer, "_tidy", 0) % 10 == 9
\1optimizer._tidy = getattr(optimizer, "_tidy", 0) + 1
\1if not dry:
\1    optimizer.step()
"""


def commit(place: Range) -> None:
    """One update in ten is not made."""
    place.edit(script_with(place, STEP), lambda source: STEP.sub(DRY, source, count=1))
    place.note("the training script leaves out one update in ten")


TECHNIQUE = Technique(
    id="05",
    slug="innocent-commit",
    title="a refactoring leaves something out",
    needs="R",
    atlas="T0010.001",
    variants=(
        Variant(
            name="before-start",
            does="one update in ten is left out, in a commit after the approval",
            acts=(Act(Moment.START, commit),),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
        ),
        Variant(
            name="while-it-runs",
            does="the same in the checkout that a running job restarts from (policy: alert)",
            acts=(Act(Moment.STEP, commit), Act(Moment.STEP, restart)),
            expects=(CHANGED, Evidence(When.AUDIT, "replay", needed=False)),
            effect=Effect.WEIGHTS,
            needs=("restarts",),
        ),
    ),
    twin=COMMENTED,
)
