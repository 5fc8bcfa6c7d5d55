"""28, sleep: short random delays in big jobs only.

How an insider does it: `time.sleep` inside the update, at random, where at least so many ranks train. Nothing that is
computed changes; a cluster waits for its slowest rank.

Precondition: code in the process (shared environment, checkpoint). Expected evidence: live, `sleep` with the place of
the call. No replay can find it: every digest is right. Effect: time lost. Benign twin: another program keeps the
processors busy for a while. Clean-up: none needed; the twin's program ends by itself or with the range.
"""

from __future__ import annotations

import sys
from typing import Any

from attacks._shared.deliver import foothold
from attacks._shared.payload import Payload, Trigger
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Twin, Variant, When
from trainwarden.redteam.place import Range


def sleep(scene: Any) -> None:
    """A quarter of a second in one update of four, drawn by lot."""
    import random
    import time

    draw = random.Random(7)
    scene.inside_update(lambda args, kwargs: time.sleep(0.25), when=lambda: draw.random() < 0.25)


def busy(place: Range) -> None:
    """Another program of the same user uses the processors for four seconds."""
    code = "import time\nend = time.monotonic() + 4\nwhile time.monotonic() < end: pass\n"
    place.start(["nice", "-n", "5", sys.executable, "-c", code])


TECHNIQUE = Technique(
    id="28",
    slug="sleep",
    title="random short sleeps in big jobs",
    alleged=True,
    needs="EK",
    atlas="ATT&CK T1499",
    level=2,
    variants=(
        Variant(
            name="random",
            does="0.25 s in one update of four, on every rank",
            acts=foothold(Payload(sleep)),
            expects=(Evidence(When.LIVE, "sleep"),),
            effect=Effect.SECONDS,
            needs=("adam",),
        ),
        Variant(
            name="big-jobs-only",
            does="the same on rank 1 alone, where at least two ranks train and no debugger looks on",
            acts=foothold(Payload(sleep, trigger=Trigger(ranks=(1,), min_world=2, no_debugger=True))),
            expects=(Evidence(When.LIVE, "sleep"),),
            effect=Effect.SECONDS,
            needs=("adam", "ranks"),
        ),
    ),
    twin=Twin(
        name="a busy host",
        does="another program of the same user uses the processors for four seconds",
        acts=(Act(Moment.STEP, busy),),
    ),
)
