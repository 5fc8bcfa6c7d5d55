"""30, weight edit: a few bytes of the weights, in a saved checkpoint or in memory between two steps.

How an insider does it: write access to shared checkpoints is enough; no scanner and no safe loader sees an edited
number. Then a rank is killed, so that the checkpoint is loaded. In memory all ranks are edited alike, so that none
disagrees.

Precondition: write access to the checkpoints (K), or code in the rank. Expected evidence: `checkpoints` (the file is
not what was saved) before it is loaded; in memory `continuity`, exact to the step. Effect: other final weights.
Benign twin: a checkpoint is copied away and put back with the same bytes. Clean-up: checkpoints lie in the copied job.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.checkpoints import PUT_BACK, flip_last_bit
from attacks._shared.deliver import foothold, restart
from attacks._shared.evidence import BETWEEN
from attacks._shared.payload import Payload
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range


def edit_newest(place: Range) -> None:
    """One bit of the newest checkpoint's weights."""
    flip_last_bit(place, place.weights(place.newest))


def scale_row(scene: Any) -> None:
    """One row of the target × 1.05 between two steps, alike on every rank."""
    name, parameter = scene.target()

    def act() -> None:
        with scene.torch.no_grad():
            parameter[0].mul_(1.05)

    scene.between_steps(act, name)


TECHNIQUE = Technique(
    id="30",
    slug="weight-edit",
    title="weights are edited in a checkpoint or in memory",
    alleged=True,
    needs="K",
    atlas="T0018.000",
    variants=(
        Variant(
            name="checkpoint",
            does="one number of the newest checkpoint, then a kill so that it is loaded; its times are put back",
            acts=(Act(Moment.STEP, edit_newest), Act(Moment.STEP, restart)),
            expects=(Evidence(When.LIVE, "checkpoints"),),
            effect=Effect.WEIGHTS,
            needs=("restarts", "safetensors"),
        ),
        Variant(
            name="memory",
            does="one row × 1.05 between two steps, alike on every rank",
            acts=foothold(Payload(scale_row, lasts=1)),
            expects=(
                Evidence(When.LIVE, "continuity"),
                Evidence(When.AUDIT, "replay", "weights before", exact=("tensor",), needed=False),
            ),
            effect=Effect.WEIGHTS,
            strikes=BETWEEN,
            level=2,
        ),
    ),
    twin=PUT_BACK,
)
