"""A training thread sleeps, or stands idle now and then, inside a step.

Slow hosts and slow data are slow steadily: within a job the slowest steps of an honest straggler are about 1.06 times
its usual ones (OSDI'25 what-if study). Sabotage comes now and then. What sleeps is named by its place in the code.

* `time.sleep` called through code that the seal does not hold: high inside a step, medium elsewhere.
* Code that lies in no file and sleeps inside a step: medium.
* Sealed code that sleeps inside a step: medium where it does so now and then, low where it does so at most steps. What
  sealed code sleeps outside of a step (a loader, a pause between steps) is in the log and raises nothing.
* Idle time that nothing explains, again and again: low. With unsealed code in the stack: medium.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainwarden.detect import frames
from trainwarden.model import Confidence, Detail, Entry, Finding, Idled, Severity, Sleep, Stage, StepRecord, StepTimes

INSIDE = ("forward", "backward", "reduction", "after_backward", "update")
NOW_AND_THEN = 0.5  # share of steps below which sleeping is no habit
FEW = 3  # steps that a sealed place must have slept in before it is told
HABIT = 16  # and in so many where it sleeps at most steps
BURSTS = 4  # unexplained idle steps
BURST_WINDOW = 256  # within so many steps
MAX_PLACES = 1_000
_BENIGN_SLEEP = ("code that waits on purpose: a rate limit, a retry, a pause for a cooler or a scheduler",)
_BENIGN_IDLE = (
    "code of its own that waits for its peers outside of torch's collective calls",
    "memory that was paged in from a slow disk",
    "a hypervisor that took the CPU away",
    "code that waits on purpose by other means than `time.sleep`",
)
_NO_QUEUE = "the kernel does not tell how long a thread waits for a CPU"
_ACCELERATOR = "an accelerator is in use, and a wait for it looks alike; code that is not sealed is still told of"
_EXPECTED = "Inside a step the training thread computes, or waits for its peers."

_Rank = tuple[int, int]


@dataclass
class _Seen:
    first: int = -1  # step of the rank's first record
    bursts: deque[tuple[int, int, Idled]] = field(default_factory=lambda: deque(maxlen=BURSTS))
    places: set[tuple[str, int, str, Severity]] = field(default_factory=set)
    told_idle: bool = False


class Sleeps:
    """Judges what ranks tell of sleeping and idling."""

    id = "sleep"

    def __init__(self) -> None:
        self._ranks: dict[_Rank, _Seen] = {}
        self._not_checked: set[str] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case StepRecord():
                seen = self._ranks.setdefault((entry.attempt, entry.rank), _Seen())
                if seen.first < 0:
                    seen.first = entry.step
                return ()
            case Idled():
                seen = self._ranks.setdefault((entry.attempt, entry.rank), _Seen())
                return [*self._slept(index, entry, seen), *self._idled(index, entry, seen)]
            case StepTimes():
                return self._not_checkable(index, entry)
            case _:
                return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _not_checkable(self, index: int, entry: StepTimes) -> Iterable[Finding]:
        """Said once in a run for each reason."""
        reasons = {_NO_QUEUE: entry.queued_ns < 0, _ACCELERATOR: entry.accelerator}
        for reason in [r for r, holds in reasons.items() if holds and r not in self._not_checked]:
            self._not_checked.add(reason)
            yield _no_check(index, entry, reason)

    def _slept(self, index: int, entry: Idled, seen: _Seen) -> Iterable[Finding]:
        for sleep in entry.sleeps:
            severity, how = _severity(entry, sleep, seen)
            where = frames.caller(sleep.frames)
            key = (where.file, where.line, sleep.part, severity) if where else ("", 0, sleep.part, severity)
            if severity is None or key in seen.places or len(seen.places) >= MAX_PLACES:
                continue
            seen.places.add((*key[:3], severity))
            yield _sleep_finding(index, entry, sleep, severity, how)

    def _idled(self, index: int, entry: Idled, seen: _Seen) -> Iterable[Finding]:
        """Idle time that no call of `time.sleep` explains."""
        # Elsewhere disks are waited for, and a wait for a device looks like idling: there only foreign code counts.
        judged = entry.unsealed or (entry.part in INSIDE and not entry.accelerator)
        if entry.idle_ns <= 0 or not judged:
            return
        seen.bursts.append((index, entry.step, entry))
        bursts = list(seen.bursts)
        if seen.told_idle or len(bursts) < BURSTS or entry.step - bursts[0][1] > BURST_WINDOW:
            return
        seen.told_idle = True
        yield _idle_finding([i for i, _, _ in bursts], [e for _, _, e in bursts])


def _no_check(index: int, entry: StepTimes, reason: str) -> Finding:
    return Finding(
        detector=Sleeps.id,
        severity=Severity.INFO,
        confidence=Confidence.HIGH,
        seen=f"Idle time of training threads other than in `time.sleep` is not checked: {reason}.",
        expected=_EXPECTED,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=(index,),
        benign=("a host of this kind",),
    )


def _severity(entry: Idled, sleep: Sleep, seen: _Seen) -> tuple[Severity | None, str]:
    inside = sleep.part in INSIDE
    if set(entry.unsealed) & {f.file for f in sleep.frames}:
        return (Severity.HIGH if inside else Severity.MEDIUM), "through code that the seal does not hold"
    where = frames.caller(sleep.frames)
    if inside and (where is None or not where.file.startswith("/")):
        return Severity.MEDIUM, "called by code that was made at run time and lies in no file"
    steps = max(entry.step - max(seen.first, 0) + 1, sleep.seen)
    if not inside or sleep.seen < FEW:
        return None, ""
    if sleep.seen < NOW_AND_THEN * steps:
        return Severity.MEDIUM, f"in {sleep.seen} of {steps} steps"
    return (Severity.LOW, "at most steps") if sleep.seen >= HABIT else (None, "")


def _sleep_finding(index: int, entry: Idled, sleep: Sleep, severity: Severity, how: str) -> Finding:
    where = frames.caller(sleep.frames)
    times = "once" if sleep.calls == 1 else f"{sleep.calls} times"
    asked = f"{sleep.asked_ns / 1e9:.3g} s asked for, {sleep.slept_ns / 1e9:.3g} s slept"
    files = [f for f in entry.unsealed if any(f == s.file for s in sleep.frames)]
    unsealed = f" Not in the seal: {', '.join(files)}." if files else ""
    return Finding(
        detector=Sleeps.id,
        severity=severity,
        confidence=Confidence.MEDIUM if severity is not Severity.LOW else Confidence.LOW,
        seen=(
            f"The training thread of rank {entry.rank} slept {times} in the part {sleep.part!r} of step {entry.step} "
            f"({asked}), {how}, called by {frames.place(where)}.{unsealed}"
        ),
        expected=_EXPECTED,
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=(index,),
        benign=_BENIGN_SLEEP,
    )


def _idle_finding(indexes: list[int], bursts: list[Idled]) -> Finding:
    last = bursts[-1]
    stacks = [b for b in bursts if b.stack]
    where = f", mostly in {frames.place(frames.caller(stacks[-1].stack))}" if stacks else ""
    unsealed = tuple(dict.fromkeys(f for b in bursts for f in b.unsealed))
    idle = sum(b.idle_ns for b in bursts) / 1e9
    return Finding(
        detector=Sleeps.id,
        severity=Severity.MEDIUM if unsealed else Severity.LOW,
        confidence=Confidence.LOW,
        seen=(
            f"The training thread of rank {last.rank} stood idle for {idle:.3g} s in {len(bursts)} of the steps "
            f"{bursts[0].step} to {last.step}{where}; it usually idles {last.usual_idle_ns / 1e9:.2g} s a step."
            + (f" Not in the seal: {', '.join(unsealed)}." if unsealed else "")
        ),
        expected=_EXPECTED,
        step=last.step,
        attempt=last.attempt,
        ranks=(last.rank,),
        evidence=tuple(indexes),
        benign=_BENIGN_IDLE,
    )
