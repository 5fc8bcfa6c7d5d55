"""Processes that are none of this run take the CPUs or accelerators that its ranks run on. Severity low."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import Confidence, Detail, Entry, Finding, Foreign, HostCrowded, Severity, Stage

_NAMED = 4


class Hogs:
    """Tells who crowds a host."""

    id = "hogs"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        return (_finding(index, entry),) if isinstance(entry, HostCrowded) and entry.processes else ()

    def finish(self) -> Iterable[Finding]:
        return ()


def _finding(index: int, entry: HostCrowded) -> Finding:
    who = "; ".join(_told(p) for p in entry.processes[:_NAMED])
    if entry.kind == "cpu":
        seen = (
            f"For {entry.seconds:.0f} s ranks waited for a free CPU {entry.waiting_share:.0%} of the time "
            f"(usually {entry.usual_share:.0%}), while others ran: {who}."
        )
        expected = "The CPUs that ranks may run on are theirs, or as crowded as they were when the run began."
    else:
        seen = f"Other processes hold memory of an accelerator that ranks run on: {who}."
        expected = "The accelerators that ranks run on are theirs."
    return Finding(
        detector=Hogs.id,
        severity=Severity.LOW,
        confidence=Confidence.MEDIUM,
        seen=seen,
        expected=expected,
        attempt=entry.attempt,
        ranks=entry.ranks,
        evidence=(index,),
        benign=("a host that is shared on purpose", "a nightly job: backup, indexing, an upgrade"),
        wall_ns=entry.wall_ns,
    )


def _told(process: Foreign) -> str:
    program = process.program or "a program that cannot be seen"
    takes = f"{process.memory_mib} MiB of {process.device}" if process.device else f"{process.cpu_share:.1f} CPUs"
    user = f"user {process.uid}" if process.uid >= 0 else "user not known"
    return f"process {process.pid} ({program}, {user}) takes {takes}"
