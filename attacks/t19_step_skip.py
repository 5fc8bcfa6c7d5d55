"""19, step skip: one update in ten does nothing but count.

How an insider does it: the update's function returns early now and then; step counters go on, so that nothing looks
amiss.

Precondition: code in the process (E). Expected evidence: live, `skipped` or `update-rule` at the first skipped step.
Effect: other final weights. Benign twin: the job with another seed (a gradient scaler that skips tells so in the
record). Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import UPDATE
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def skip(scene: Any) -> None:
    """The update only counts."""

    def act(args: Any, kwargs: Any) -> bool:
        for count in args[5]:
            count += 1
        return False

    scene.inside_update(act)


TECHNIQUE = Technique(
    id="19",
    slug="step-skip",
    title="updates are left out now and then",
    needs="E",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="every-10",
            does="one update in ten, on every rank",
            acts=foothold(Payload(skip, trigger=Trigger(every=10))),
            expects=(
                Evidence(When.LIVE, "skipped"),
                Evidence(When.LIVE, "update-rule", needed=False),
                Evidence(When.AUDIT, "replay", exact=("step",), needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("adam",),
        ),
    ),
    twin=OTHER_SEED,
)
