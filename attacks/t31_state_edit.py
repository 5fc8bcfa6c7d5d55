"""31, state or metadata edit: moments, learning rate or step are altered, the weights are not.

How an insider does it: write access to shared checkpoints (a byte of the optimizer's file), or one line in memory.
Scanners and safe loaders pass it; the job goes on from a bad state.

Precondition: write access to the checkpoints (K), or code in the rank. Expected evidence: `checkpoints` before the
file is loaded; in memory `continuity`. Effect: other final weights.
Benign twin: a checkpoint is copied away and put back with the same bytes. Clean-up: checkpoints lie in the copied job.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.checkpoints import PUT_BACK, flip_last_bit
from attacks._shared.deliver import foothold, restart
from attacks._shared.payload import Payload
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range


def scale_moment(scene: Any) -> None:
    """The second moments of the target × 4 between two steps, alike on every rank."""
    name, parameter = scene.target()
    scene.between_steps(lambda: scene.optimizer.state[parameter]["exp_avg_sq"].mul_(4.0), name)


def edit_optimizer(place: Range) -> None:
    """One bit of the newest checkpoint's optimizer state."""
    flip_last_bit(place, place.newest / "optimizer.safetensors")


TECHNIQUE = Technique(
    id="31",
    slug="state-edit",
    title="optimizer state is edited in a checkpoint or in memory",
    needs="K",
    atlas="T0018.000",
    variants=(
        Variant(
            name="checkpoint",
            does="one bit of the newest checkpoint's optimizer state, then a kill so that it is loaded",
            acts=(Act(Moment.STEP, edit_optimizer), Act(Moment.STEP, restart)),
            expects=(Evidence(When.LIVE, "checkpoints"),),
            effect=Effect.WEIGHTS,
            needs=("restarts", "optimizer-file"),
        ),
        Variant(
            name="memory",
            does="the second moments of one matrix × 4 between two steps, alike on every rank",
            acts=foothold(Payload(scale_moment, lasts=1)),
            expects=(Evidence(When.LIVE, "continuity"), Evidence(When.LIVE, "update-rule", needed=False)),
            effect=Effect.WEIGHTS,
            needs=("adam",),
            level=2,
        ),
    ),
    twin=PUT_BACK,
)
