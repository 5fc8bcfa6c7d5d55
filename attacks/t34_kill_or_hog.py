"""34, kill or hog: ranks are killed at random, or the processors are taken from them.

How an insider does it: an account on the host, or the victim's own account through a foothold. A killed rank looks
like a lack of memory, and the work since the last checkpoint is lost.

Precondition: an account on the node (N). Expected evidence: live, `kills` (a rank gone without a goodbye, with the
sender where the system tells) and `hogs` (foreign processes that crowd ranks out). Effect: steps made twice, time lost.
Benign twin: the job is preempted: it gets a SIGTERM from outside and is started again later, as schedulers do.
Clean-up: the hogs end by themselves after thirty seconds, or with the range.
"""

from __future__ import annotations

import os
import sys

from attacks._shared.deliver import restart
from attacks._shared.preempted import PREEMPTED
from trainwarden.redteam.interface import Act, Effect, Evidence, Moment, Technique, Variant, When
from trainwarden.redteam.place import Range


def hog(place: Range) -> None:
    """As many processes as there are processors, which do nothing but use them, for thirty seconds."""
    code = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass\n"
    for _ in range(os.cpu_count() or 1):
        place.start([sys.executable, "-c", code])


TECHNIQUE = Technique(
    id="34",
    slug="kill-or-hog",
    title="ranks are killed or crowded out",
    alleged=True,
    needs="N",
    atlas="ATT&CK T1489",
    variants=(
        Variant(
            name="kill",
            does="SIGKILL for the last rank; its launcher starts all of them again",
            acts=(Act(Moment.STEP, restart, step=8),),
            expects=(Evidence(When.LIVE, "kills"),),
            effect=Effect.STEPS_TWICE,
            needs=("restarts",),
        ),
        Variant(
            name="hog",
            does="a busy process for each processor, for thirty seconds",
            acts=(Act(Moment.STEP, hog),),
            expects=(Evidence(When.LIVE, "hogs"),),
            effect=Effect.SECONDS,
            needs=("long",),
        ),
    ),
    twin=PREEMPTED,
)
