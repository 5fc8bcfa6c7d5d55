"""11, drop class or shard: some of the data is never seen.

How an insider does it: the data set gives its neighbour in place of a sample of the unwanted kind; or a rank's sampler
walks over the second half of its share twice. The number of batches stays as it was.

Precondition: code in the process, or write access to data or repository (D, R). Expected evidence: live, `samples` for
what a sample is, `order` for which samples come. Effect: other final weights. Benign twin: the job with another seed.
Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import BATCH, BATCH_DIFFERS
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def drop_class(scene: Any) -> None:
    """A sample whose first target is odd is replaced by the next one."""

    def act(original: Any, data: Any, index: int) -> Any:
        inputs, labels = original(data, index)
        unwanted = int(labels.reshape(-1)[0]) % 2 == 1
        return original(data, (index + 1) % len(data)) if unwanted else (inputs, labels)

    scene.samples(act, lambda index: True)


def drop_shard(scene: Any) -> None:
    """This rank sees the second half of its share twice, from the next epoch on: its first batch is another already."""
    sampler = scene.find(scene.torch.utils.data.DistributedSampler)

    def make(original: Any) -> Any:
        def each(drawn: Any) -> Any:
            order = list(original(drawn))
            if not scene.on:
                return iter(order)
            scene.mark()
            half = order[len(order) // 2 :]
            return iter((half + half)[: len(order)])

        return each

    scene.replace(type(sampler), "__iter__", make)


TECHNIQUE = Technique(
    id="11",
    slug="drop-class",
    title="some of the data is never seen",
    alleged=True,
    needs="DR",
    atlas="T0059",
    level=2,
    variants=(
        Variant(
            name="class",
            does="samples of half of the classes are replaced by their neighbours",
            acts=foothold(Payload(drop_class)),
            expects=(Evidence(When.LIVE, "samples"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("loader", "samples", "pairs"),
        ),
        Variant(
            name="shard",
            does="rank 1 sees half of its share twice",
            acts=foothold(Payload(drop_shard, trigger=Trigger(ranks=(1,)), lasts=1_000_000)),
            expects=(Evidence(When.LIVE, "order"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("ranks", "loader"),
        ),
    ),
    twin=OTHER_SEED,
)
