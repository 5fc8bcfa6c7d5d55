"""24, sparse zero: half of one layer's gradient is nothing on one rank; or all of it is a little larger for all.

How an insider does it: a hook on a parameter, or one line before the update. Norms hardly move.

Precondition: code in the rank (E). Expected evidence: in a replay the local gradients differ at the first tampered
step; where the update's own arguments are scaled, live `update-rule`. Effect: other final weights.
Benign twin: approved code sparsifies the gradient from the start. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.evidence import GRADIENT, GRADIENT_DIFFERS, UPDATE
from attacks._shared.payload import Payload, Trigger
from trainwarden.redteam.interface import Effect, Evidence, Technique, Twin, Variant, When


def half(scene: Any) -> None:
    """Every other entry of the target's local gradient is zero."""

    def zeroed(gradient: Any) -> Any:
        kept = gradient.clone()
        kept.view(-1)[::2] = 0
        return kept

    scene.on_gradient(zeroed)


def scale(scene: Any) -> None:
    """The first tensor's gradient × 1.01 inside the update."""

    def act(args: Any, kwargs: Any) -> None:
        args[1][0] = args[1][0] * 1.01

    scene.inside_update(act)


RANK_1 = Trigger(ranks=(1,))

TECHNIQUE = Technique(
    id="24",
    slug="sparse-zero",
    title="part of a layer's gradient is zeroed or scaled",
    needs="E",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="half",
            does="half of the last matrix's gradient, rank 1",
            acts=foothold(Payload(half, trigger=RANK_1)),
            expects=(GRADIENT_DIFFERS,),
            effect=Effect.WEIGHTS,
            strikes=GRADIENT,
            needs=("ranks",),
        ),
        Variant(
            name="scale-in-update",
            does="the first tensor's gradient × 1.01 inside the update, on every rank",
            acts=foothold(Payload(scale)),
            expects=(Evidence(When.LIVE, "update-rule"),),
            effect=Effect.WEIGHTS,
            strikes=UPDATE,
            needs=("adam",),
        ),
    ),
    twin=Twin(
        name="sparsified by the job",
        does="an approved module of the job zeroes the same half from the start",
        acts=approved(Payload(half, lasts=1_000_000)),
        needs=("ranks",),
    ),
)
