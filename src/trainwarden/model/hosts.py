"""Time and hosts: where a step's time goes, who sleeps, what stands still, clocks, and what else runs beside a run."""

from __future__ import annotations

from trainwarden.model.base import Noun
from trainwarden.model.happenings import Writer


class StackFrame(Noun):
    """A place in a Python stack."""

    file: str
    line: int
    function: str


class Sleep(Noun):
    """Calls of `time.sleep` by the training thread from one place during one step."""

    part: str  # of the step, as in `PartTimes`
    calls: int
    asked_ns: int  # what was asked for in all
    slept_ns: int  # what it took
    frames: tuple[StackFrame, ...] = ()  # innermost first; the first called `sleep`
    seen: int = 1  # steps of this process so far at which this place slept


class Idled(Noun, tag="idled"):
    """A step in which the training thread slept, or stood idle for longer than it usually does."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    wall_ns: int = 0  # of the step
    usual_ns: int = 0  # median wall time of recent steps, 0 = not known yet
    idle_ns: int = 0  # neither computing nor waiting for a CPU, a peer, the loader or a known sleep
    usual_idle_ns: int = 0
    part: str = ""  # where most of it was
    sleeps: tuple[Sleep, ...] = ()
    stack: tuple[StackFrame, ...] = ()  # where the thread most often stood while it idled, innermost first
    samples: int = 0  # looks at it that found it idle there
    accelerator: bool = False  # one is in use: its waits cannot be told from idling
    unsealed: tuple[str, ...] = ()  # files among the frames that the seal does not hold; filled in by the watcher


class PartTimes(Noun):
    """One part of a rank's steps, summed up: wall time, CPU time of the training thread, the longest single one.

    `part`: "loading", "forward", "backward" (until the last gradient is ready), "reduction" (waiting for peers),
    "after_backward", "update", "between" (evaluation, saving, logging and whatever else).
    """

    part: str
    wall_ns: int
    cpu_ns: int
    longest_ns: int = 0


class StepTimes(Noun, tag="step_times"):
    """Where the time of a rank's last `steps` steps went."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    steps: int = 0
    parts: tuple[PartTimes, ...] = ()
    process_cpu_ns: int = 0  # of all threads
    queued_ns: int = -1  # the training thread was ready and no CPU was free, −1 = not told by the system
    slept_ns: int = 0  # in `time.sleep`
    accelerator: bool = False  # one is in use


class RankSeen(Noun):
    """A rank at a standstill, as /proc and the rank itself show it."""

    rank: int
    pid: int
    reached: int = 0  # steps of the job that it has completed
    answered: bool = False  # the rank told of its stacks
    state: str = ""  # of the training thread: "R" runs, "S" or "D" waits, "T" is stopped, "Z" and "X" have ended
    waits_in: str = ""  # what the kernel says it waits in, "" = not told
    cpu_share: float = 0.0  # of one CPU, over the look
    part: str = ""
    collective: bool = False  # its training thread waits for its peers
    frames: tuple[StackFrame, ...] = ()  # of its training thread, innermost first
    unsealed: tuple[str, ...] = ()
    stopped_by: Writer | None = None  # who sent the signal that stopped it, where the system tells


class Stalled(Noun, tag="stalled"):
    """No rank has completed a step for long ("stall"), or one says nothing while its peers go on ("silent")."""

    kind: str
    attempt: int
    step: int
    seconds: float
    usual_seconds: float  # between steps, 0 = no step yet
    ranks: tuple[RankSeen, ...] = ()
    wall_ns: int = 0


class ClockShifted(Noun, tag="clock_shifted"):
    """A clock was set or runs wrongly: the host's ("host"), or the one that a rank's records show ("rank").

    `by_ns` is positive when it went forward. "slept": the host stood still and its wall clock went on.
    """

    kind: str
    by_ns: int
    attempt: int = -1
    rank: int = -1
    step: int = -1
    over_ns: int = 0  # time over which it happened
    wall_ns: int = 0


class Foreign(Noun):
    """A process that is not of this run, and what it takes."""

    pid: int
    uid: int = -1
    program: str = ""
    cpu_share: float = 0.0  # of one CPU
    device: str = ""  # UUID of the accelerator
    memory_mib: int = 0  # of it


class HostCrowded(Noun, tag="host_crowded"):
    """Ranks wait for CPUs that other processes take, or share an accelerator with them."""

    attempt: int
    ranks: tuple[int, ...]
    kind: str  # "cpu" | "accelerator"
    waiting_share: float = 0.0  # of the time that the ranks were ready and no CPU was free
    usual_share: float = 0.0
    seconds: float = 0.0
    processes: tuple[Foreign, ...] = ()
    wall_ns: int = 0
