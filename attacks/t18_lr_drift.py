"""18, learning rate, weight decay or schedule drift: the update uses other numbers than the optimizer shows.

How an insider does it: the learning rate is multiplied by 0.7 inside the update; the optimizer's settings stay as they
are.

Precondition: code in the process (E, R). Expected evidence: live, `update-rule` recomputes slices of each update from
what the optimizer shows. Effect: other final weights. Benign twin: approved code lowers the setting itself, as a
schedule does. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.evidence import UPDATE
from attacks._shared.payload import Payload
from trainwarden.redteam.interface import Effect, Evidence, Technique, Twin, Variant, When


def lower_lr(scene: Any) -> None:
    """The learning rate × 0.7, inside the update."""

    def act(args: Any, kwargs: Any) -> None:
        kwargs["lr"] = kwargs["lr"] * 0.7

    scene.inside_update(act)


def no_decay(scene: Any) -> None:
    """No weight decay, inside the update."""

    def act(args: Any, kwargs: Any) -> None:
        kwargs["weight_decay"] = 0.0

    scene.inside_update(act)


def schedule(scene: Any) -> None:
    """The setting itself is a little lower before every update, where everybody can see it."""
    for group in scene.optimizer.param_groups:
        group["betas"] = (0.9, 0.94)


EXPECTS = (
    Evidence(When.LIVE, "update-rule"),
    Evidence(When.AUDIT, "replay", exact=("step",), needed=False),
)

TECHNIQUE = Technique(
    id="18",
    slug="lr-drift",
    title="the update uses other numbers than the optimizer shows",
    alleged=True,
    needs="ER",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="lr",
            does="learning rate × 0.7 inside the update",
            acts=foothold(Payload(lower_lr)),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("adam",),
        ),
        Variant(
            name="weight-decay",
            does="no weight decay inside the update",
            acts=foothold(Payload(no_decay)),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("adam",),
        ),
    ),
    twin=Twin(
        name="another setting by the job",
        does="approved code sets the optimizer's betas before the second update, for all to see",
        acts=approved(Payload(schedule)),
    ),
)
