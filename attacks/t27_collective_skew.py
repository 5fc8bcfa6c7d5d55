"""27, collective skew: what is reduced is not the mean of what the ranks computed.

How an insider does it: one rank sends zeros after its honest gradients were looked at, or every rank divides by three
instead of two. All replicas agree, so no comparison of peers finds it.

Precondition: code in the rank (E). Expected evidence: live, `reduction` compares the reduced gradient with the local
ones by random projection. Effect: other final weights. Benign twin: the job with another seed. Clean-up: none needed.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import REDUCTION
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def before_reduction(scene: Any, change: Any) -> None:
    """Have `change` see every bucket of gradients before it is reduced, at steps to tamper with."""

    def make(original: Any) -> Any:
        def all_reduce(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if scene.on and tensor.numel() > 1000:
                scene.mark()
                change(tensor)
            return original(tensor, *args, **kwargs)

        return all_reduce

    scene.replace(scene.torch.distributed, "all_reduce", make)


def send_nothing(scene: Any) -> None:
    """This rank sends nothing but zeros."""
    before_reduction(scene, lambda bucket: bucket.zero_())


def wrong_divisor(scene: Any) -> None:
    """The sum is divided by three instead of two."""
    before_reduction(scene, lambda bucket: bucket.mul_(2 / 3))


USES = (before_reduction,)
EXPECTS = (Evidence(When.LIVE, "reduction"), Evidence(When.AUDIT, "replay", "reduced_gradients", needed=False))

TECHNIQUE = Technique(
    id="27",
    slug="collective-skew",
    title="what is reduced is not the mean of the ranks",
    needs="E",
    atlas="T0018.000",
    level=2,
    variants=(
        Variant(
            name="zeroed-rank",
            does="rank 1 sends zeros",
            acts=foothold(Payload(send_nothing, uses=USES, trigger=Trigger(ranks=(1,)))),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            strikes=REDUCTION,
            needs=("ranks",),
        ),
        Variant(
            name="wrong-divisor",
            does="every rank divides by three instead of two",
            acts=foothold(Payload(wrong_divisor, uses=USES)),
            expects=EXPECTS,
            effect=Effect.WEIGHTS,
            strikes=REDUCTION,
            needs=("ranks",),
        ),
    ),
    twin=OTHER_SEED,
)
