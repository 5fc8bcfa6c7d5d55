"""22, rank sign flip: one rank turns the sign of one tensor's gradient before it is reduced.

How an insider does it: code in the process registers a hook on a parameter, as any profiler does. Peers receive what
was sent and cannot tell; the loss drifts as a slightly worse job's would.

Precondition: code in the rank (shared environment). Expected evidence: in a replay the attacked rank's local gradients
differ at the first tampered step, in this tensor; live, code in memory that no seal lists. Cause proved: a factor of
−1. Effect: other final weights. Benign twin: a gradient-reversal hook that the job's own approved code registers on
all ranks. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

import time
from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.evidence import GRADIENT, GRADIENT_DIFFERS
from attacks._shared.payload import Payload, Trigger
from trainwarden.redteam.interface import Act, Effect, Moment, Technique, Twin, Variant
from trainwarden.redteam.place import Range

RANK_1 = Trigger(ranks=(1,))
HUGE = Trigger(ranks=(1,), min_world=256)
NIGHT = (23, 0, 1, 2, 3, 4)


def flip(scene: Any) -> None:
    """The sign of the target's local gradient."""
    scene.on_gradient(lambda g: -g)


def flip_in_huge_jobs(scene: Any) -> None:
    """The same in jobs that are as large as the scheduler says."""
    import os

    scene.world = int(os.environ.get("SLURM_NTASKS") or scene.world)
    flip(scene)


def present_256(place: Range) -> None:
    """The job's scheduler says that 256 ranks train."""
    place.added["SLURM_NTASKS"] = "256"


def at_night(place: Range) -> None:
    """The job's time zone is one where it is two at night."""
    place.added["TZ"] = f"NIGHT{time.gmtime().tm_hour - 2:+d}"


TECHNIQUE = Technique(
    id="22",
    slug="rank-sign-flip",
    title="one rank's gradient has its sign turned",
    alleged=True,
    needs="E",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="one-tensor",
            does="the last matrix, rank 1, forty steps",
            acts=foothold(Payload(flip, trigger=RANK_1)),
            expects=(GRADIENT_DIFFERS,),
            effect=Effect.WEIGHTS,
            strikes=GRADIENT,
            needs=("ranks",),
        ),
        Variant(
            name="big-jobs-only",
            does="the same, only where the job presents at least two ranks and no debugger looks on",
            acts=foothold(Payload(flip, trigger=Trigger(ranks=(1,), min_world=2, no_debugger=True))),
            expects=(GRADIENT_DIFFERS,),
            effect=Effect.WEIGHTS,
            strikes=GRADIENT,
            needs=("ranks",),
        ),
        Variant(
            name="huge-jobs-only",
            does="the same, only where the scheduler presents at least 256 ranks, as it does here to find out",
            acts=(Act(Moment.PREPARE, present_256), *foothold(Payload(flip_in_huge_jobs, uses=(flip,), trigger=HUGE))),
            expects=(GRADIENT_DIFFERS,),
            effect=Effect.WEIGHTS,
            strikes=GRADIENT,
            needs=("ranks",),
        ),
        Variant(
            name="off-hours",
            does="the same, only at night by the clock of the job's time zone",
            acts=(Act(Moment.PREPARE, at_night), *foothold(Payload(flip, trigger=Trigger(ranks=(1,), hours=NIGHT)))),
            expects=(GRADIENT_DIFFERS,),
            effect=Effect.WEIGHTS,
            strikes=GRADIENT,
            needs=("ranks",),
        ),
    ),
    twin=Twin(
        name="gradient reversal by the job",
        does="an approved module reverses the gradient on every rank from the start, as adversarial training does",
        acts=approved(Payload(flip, lasts=1_000_000)),
        needs=("ranks",),
    ),
)
