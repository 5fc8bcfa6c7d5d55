"""Lets training go first: a lower priority that holds against processes of other sessions too.

Linux may weigh sessions before it weighs their processes (sched(7), "The autogroup feature"): a nice value then counts
only within its session, and a replay at 19 takes half a processor from a rank that was started in another one. So a
process that leads a session has that session's weight lowered with it. A session led by others, a person's shell, is
left as it is. Priorities are lowered and never raised: that would need a privilege.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

_TRIES = 20
_BETWEEN_TRIES = 0.02  # seconds: the kernel lets an unprivileged process change one of them each 100 ms


def give_way(pid: int, nice: int) -> None:
    """Lower a process, all its threads, and the session that it leads to this nice value; what is gone is let be.

    On Linux a priority is a thread's own; threads and processes that are started later inherit it.
    """
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), nice)
        if os.getsid(pid) == pid:
            _weigh_session(pid, nice)


def _weigh_session(leader: int, nice: int) -> None:
    for _ in range(_TRIES):
        try:
            with open(f"/proc/{leader}/autogroup", "w") as file:
                file.write(str(nice))
            return
        except BlockingIOError:  # EAGAIN: too many changes at once
            time.sleep(_BETWEEN_TRIES)
