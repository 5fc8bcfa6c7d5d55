"""A rank was killed: its process ended by a signal, or vanished, without saying goodbye. Or the launch command was.

A rank that ends in order says goodbye, also when its script fails with an exception. A rank that dies of a signal
cannot. Benign and not raised: the run was being stopped from outside (Ctrl-C, a signal to the supervisor), and the
end that a launcher makes of the other ranks after one of them has failed, whose own end is told: SIGTERM, or an end
whose status nobody saw. A launch command that is a rank itself is told as that. The finding names the process that sent
the signal where the system told, or says why not; the kernel's OOM killer is told as such, with severity low.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping

from trainwarden.model import Confidence, Detail, Entry, Finding, ProcessExited, ProcessStarted, Severity, Stage

_ENDS_PEERS = -signal.SIGTERM
_CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL, -signal.SIGABRT}
_MEMORY = "OOM killer"
_RAN_OUT = "the kernel ended it because memory ran out (see `dmesg`)"
_BENIGN = {
    -signal.SIGKILL: (_RAN_OUT, "the cluster's scheduler ended it"),
    -signal.SIGTERM: ("the cluster's scheduler ended it", "its launcher ended it after another rank failed unseen"),
}
_CRASHED = ("a defect in native code",)
_UNKNOWN = ("it crashed in native code", _RAN_OUT)


class Kills:
    """Judges the exits of ranks."""

    id = "kills"

    def __init__(self) -> None:
        self._failed: set[int] = set()  # attempts of which a rank has ended, and not in order
        self._started: dict[tuple[int, int], int] = {}
        self._last_pid: dict[int, int] = {}  # of each rank

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case ProcessStarted():
                self._started[entry.attempt, entry.rank] = index
                self._last_pid[entry.rank] = entry.pid
                return ()
            case ProcessExited(rank=-1):
                return (_launcher(index, entry),) if self._is_killed_launcher(entry) else ()
            case ProcessExited(rank=rank) if rank >= 0:
                first = entry.attempt not in self._failed
                if not (entry.goodbye and entry.known and entry.code == 0):
                    self._failed.add(entry.attempt)
                return (self._killed(index, entry),) if _suspicious(entry, first) else ()
            case _:
                return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _is_killed_launcher(self, entry: ProcessExited) -> bool:
        ended = entry.known and entry.code < 0 and entry.code not in _CRASHES and not entry.stopping
        return ended and entry.pid not in self._last_pid.values()

    def _killed(self, index: int, entry: ProcessExited) -> Finding:
        started = self._started.get((entry.attempt, entry.rank))
        crash = entry.known and entry.code in _CRASHES
        memory = _MEMORY in entry.told_by
        how = f"was ended by {_signal(entry.code)}" if entry.known else "vanished"
        return Finding(
            detector=self.id,
            severity=Severity.LOW if crash or memory else Severity.MEDIUM,
            confidence=Confidence.HIGH if entry.known else Confidence.MEDIUM,
            seen=f"{_who(entry)} {how} without a goodbye{_by(entry)}.",
            expected="A rank says goodbye before it ends, also when its script fails.",
            attempt=entry.attempt,
            ranks=(entry.rank,),
            evidence=(index,) if started is None else (started, index),
            benign=_benign(entry, crash),
            wall_ns=entry.wall_ns,
        )


def _launcher(index: int, entry: ProcessExited) -> Finding:
    return Finding(
        detector=Kills.id,
        severity=Severity.MEDIUM,
        confidence=Confidence.HIGH,
        seen=f"The launch command (process {entry.pid}) was ended by {_signal(entry.code)}, not through its watcher.",
        expected="A launch command ends by itself, or is ended through its watcher.",
        evidence=(index,),
        benign=_BENIGN.get(entry.code, ("somebody ended it on purpose",)),
        wall_ns=entry.wall_ns,
    )


def _who(entry: ProcessExited) -> str:
    return f"Rank {entry.rank} of attempt {entry.attempt} (process {entry.pid})"


def _by(entry: ProcessExited) -> str:
    """Who sent the signal, as an end of the sentence."""
    sender = entry.sender
    if sender is not None:
        user = f"user {sender.uid}" if sender.uid >= 0 else "user not known"
        return f", sent by process {sender.pid} ({sender.program or 'gone'}, {user}) as {entry.told_by} told"
    if _MEMORY in entry.told_by:
        return f", told by {entry.told_by}"
    if entry.told_by:
        return f", by the kernel itself as {entry.told_by} told"
    return f" ({entry.untold})" if entry.untold else ""


def _benign(entry: ProcessExited, crash: bool) -> tuple[str, ...]:
    if crash:
        return _CRASHED
    if _MEMORY in entry.told_by:
        return ("memory ran out",)
    told = _BENIGN.get(entry.code, ()) if entry.known else _UNKNOWN
    return tuple(b for b in told if entry.sender is None or b is not _RAN_OUT)


def _suspicious(entry: ProcessExited, first: bool) -> bool:
    if entry.goodbye or entry.stopping or (entry.known and entry.code >= 0):
        return False
    return first or (entry.known and entry.code != _ENDS_PEERS)


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
