"""12, duplicate data: some samples are replaced by copies of others.

How an insider does it: the data set's `__getitem__` gives another index's sample now and then.

Precondition: code in the process, or write access to the data (D). Expected evidence: live, `samples` (a sample is not
what it was in an earlier pass, or not what the sealed manifest says). Effect: other final weights.
Benign twin: the job with another seed. Clean-up: none needed, the process ends.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.evidence import BATCH, BATCH_DIFFERS
from attacks._shared.payload import Payload
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def duplicate(scene: Any) -> None:
    """One sample in four is another that was seen already."""
    scene.samples(lambda original, data, index: original(data, index // 2), lambda index: index % 4 == 3)


TECHNIQUE = Technique(
    id="12",
    slug="duplicate-data",
    title="samples are overwritten by copies of others",
    needs="D",
    atlas="T0059",
    level=2,
    variants=(
        Variant(
            name="memory",
            does="one sample in four is another, as the data set gives them",
            acts=foothold(Payload(duplicate)),
            expects=(Evidence(When.LIVE, "samples"), BATCH_DIFFERS),
            effect=Effect.WEIGHTS,
            strikes=BATCH,
            needs=("loader", "samples"),
        ),
    ),
    twin=OTHER_SEED,
)
