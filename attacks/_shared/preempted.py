"""The honest twin of kills and resets: the scheduler ends the job, which is started again later."""

from __future__ import annotations

import signal

from trainwarden.redteam.interface import Act, Moment, Twin
from trainwarden.redteam.place import Range


def preempt(place: Range) -> None:
    """The whole job is asked to end, as a scheduler does."""
    place.signal(place.roots[0].pid, signal.SIGTERM)


PREEMPTED = Twin(
    name="preempted by the scheduler",
    does="SIGTERM for the whole job, which is started again and goes on from its newest checkpoint",
    acts=(Act(Moment.STEP, preempt, step=8),),
    again=True,
    needs=("resumes",),
)
