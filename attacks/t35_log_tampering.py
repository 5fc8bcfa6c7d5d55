"""35, log tampering: evidence is deleted or rewritten, or clocks are shifted so that times contradict.

How an insider does it: one rank's clock goes an hour wrong, so that its records do not fit those of others; or, with
the supervisor's account, the local store is edited after the end.

Precondition: access to the logs (L) or the node (N). Expected evidence: live, `clock`; afterwards `verify` (a log that
contradicts its own signed head). Effect: evidence is altered. Benign twin: the job with another seed (a clock that time
synchronisation slews is what every host has). Clean-up: the range puts its store back.
"""

from __future__ import annotations

from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.payload import Payload, Trigger
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Effect, Evidence, Technique, Variant, When


def shift(scene: Any) -> None:
    """This rank's clock goes an hour wrong from the step on."""
    import time

    real_ns, real = time.time_ns, time.time

    def act(args: Any, kwargs: Any) -> None:
        time.time_ns = lambda: real_ns() - 3_600 * 10**9
        time.time = lambda: real() - 3_600

    scene.inside_update(act)


TECHNIQUE = Technique(
    id="35",
    slug="log-tampering",
    title="evidence is altered, clocks are shifted",
    needs="LN",
    atlas="ATT&CK T1685.006",
    level=2,
    variants=(
        Variant(
            name="clock",
            does="rank 1's clock is an hour behind",
            acts=foothold(Payload(shift, trigger=Trigger(ranks=(1,)), lasts=1)),
            expects=(Evidence(When.LIVE, "clock"),),
            effect=Effect.EVIDENCE,
            needs=("ranks", "adam"),
        ),
    ),
    twin=OTHER_SEED,
)
