"""25, in-variance gradient: a gradient is moved by less than honest ranks differ from one another.

How an insider does it: a fixed direction, scaled to a third of the spread of the gradient itself, is added on one rank
at every step. No norm stands out, and robust averaging keeps it (Baruch et al., "A Little Is Enough", NeurIPS 2019).

Precondition: code in the rank (E). Expected evidence: in a replay the local gradients of the attacked rank and tensor
differ at the first tampered step. Effect: other final weights. Benign twin: approved code adds noise of that size to
the same gradient on every rank, as differentially private training does. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import approved, foothold
from attacks._shared.evidence import GRADIENT, GRADIENT_DIFFERS
from attacks._shared.payload import Payload, Trigger
from trainwarden.redteam.interface import Effect, Technique, Twin, Variant


def shift(scene: Any) -> None:
    """A third of the gradient's standard deviation, with a fixed pattern of signs."""

    def change(gradient: Any) -> Any:
        signs = scene.torch.ones_like(gradient)
        signs.view(-1)[::2] = -1
        return gradient + signs * gradient.std() / 3

    scene.on_gradient(change)


TECHNIQUE = Technique(
    id="25",
    slug="in-variance-gradient",
    title="a gradient is moved within the spread of honest ranks",
    needs="E",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="a-third",
            does="the last matrix, rank 1, a third of its standard deviation",
            acts=foothold(Payload(shift, trigger=Trigger(ranks=(1,)))),
            expects=(GRADIENT_DIFFERS,),
            effect=Effect.WEIGHTS,
            strikes=GRADIENT,
            needs=("ranks",),
        ),
    ),
    twin=Twin(
        name="noise by the job",
        does="an approved module of the job adds as much to the same gradient on every rank from the start",
        acts=approved(Payload(shift, lasts=1_000_000)),
        needs=("ranks",),
    ),
)
