"""20, state reset: the optimizer's momentum is cleared in mid-run.

How an insider does it: the first moments are set to zero inside the update, on every rank alike, so that no replica
disagrees and the next steps look like a restart.

Precondition: code in the process (shared environment). Expected evidence: live, `cleared` names the step, or
`update-rule` the slice that no longer follows from the state before. Effect: other final weights.
Benign twin: a preempted job, whose new optimizer takes its state from the newest checkpoint. Clean-up: none needed.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import UPDATE
from attacks._shared.payload import Payload
from attacks._shared.preempted import PREEMPTED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def clear(scene: Any) -> None:
    """Every first moment is nothing, once."""

    def act(args: Any, kwargs: Any) -> None:
        for moment in args[2]:
            moment.zero_()

    scene.inside_update(act)


TECHNIQUE = Technique(
    id="20",
    slug="state-reset",
    title="momentum is cleared in mid-run",
    needs="E",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="moments",
            does="the first moments of all tensors, inside one update",
            acts=foothold(Payload(clear, lasts=1)),
            expects=(
                Evidence(When.LIVE, "update-rule"),
                Evidence(When.LIVE, "cleared", needed=False),
                Evidence(When.AUDIT, "replay", "optimizer_state", exact=("step",), needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("adam",),
        ),
    ),
    twin=PREEMPTED,
)
