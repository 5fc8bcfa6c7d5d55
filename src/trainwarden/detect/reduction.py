"""The reduction of gradients over ranks did not give their mean, or gradients changed on the way from it to the update.

The supervisor compares keyed sums of all ranks (`supervise.reducing`); each of its faults becomes a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import Confidence, Detail, Entry, Finding, ReductionFault, ReductionSeen, Severity, Stage

_HARDWARE = "faulty memory, processor or network on one of the hosts"
_OWN = "the script changes single gradients between backward and update on purpose (clipping by value or by group)"


class Reduction:
    """Tells of every fault in a `ReductionSeen`, and once what was not compared."""

    id = "reduction"

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, ReductionSeen):
            return ()
        findings = [_finding(index, entry, fault) for fault in entry.faults]
        if entry.unchecked:
            findings.append(_unchecked(index, entry))
        return findings

    def finish(self) -> Iterable[Finding]:
        return ()


def _finding(index: int, entry: ReductionSeen, fault: ReductionFault) -> Finding:
    seen, expected, severity, confidence, benign = _words(fault)
    return Finding(
        detector=Reduction.id,
        severity=severity,
        confidence=confidence,
        seen=f"At step {entry.step} {seen}.",
        expected=expected,
        step=entry.step,
        attempt=entry.attempt,
        ranks=fault.ranks,
        stage=Stage.REDUCED_GRADIENTS,
        tensor=fault.tensors[0] if fault.tensors else "",
        evidence=(index,),
        benign=benign,
        wall_ns=entry.wall_ns,
    )


def _words(fault: ReductionFault) -> tuple[str, str, Severity, Confidence, tuple[str, ...]]:
    """What was seen and expected, how bad and how sure, and what else it may be."""
    ranks = ", ".join(map(str, fault.ranks))
    of = f"rank {ranks}" if len(fault.ranks) == 1 else f"ranks {ranks}"
    where = _where(fault.tensors)
    mean = "The reduction gives every rank the mean of all ranks' gradients, up to rounding."
    same = "The optimizer gets the reduced gradients, all scaled by one factor at most (clipping, a loss scale)."
    match fault.kind:
        case "rank":
            seen = f"the gradients of {of} entered the reduction {_times(fault.factor)}{where}"
            return seen, mean, Severity.HIGH, Confidence.HIGH, (_HARDWARE,)
        case "divisor":
            seen = f"the reduction gave {fault.factor:g} times the mean of the ranks{where}"
            benign = ("a library patches the reduction to sum or to weight ranks on purpose",)
            return seen, mean, Severity.HIGH, Confidence.HIGH, benign
        case "received":
            seen = f"{of} got another outcome of the reduction than the mean of all ranks{where}"
            return seen, mean, Severity.HIGH, Confidence.HIGH, (_HARDWARE,)
        case "turned":
            seen = f"{of} turned the sign of reduced gradients before the update{where}"
            return seen, same, Severity.HIGH, Confidence.MEDIUM, (_OWN,)
        case "all turned":
            benign = ("the script climbs the loss on purpose (unlearning)",)
            seen = f"{of} turned the sign of all reduced gradients before the update"
            return seen, same, Severity.MEDIUM, Confidence.LOW, benign
        case "changed":
            seen = f"{of} changed reduced gradients before the update by more than a common factor{where}"
            return seen, same, Severity.LOW, Confidence.LOW, (_OWN,)
        case _:
            seen = f"the reduction did not give the mean of the ranks{where}, and no single rank explains it"
            return seen, mean, Severity.HIGH, Confidence.HIGH, (_HARDWARE,)


def _times(factor: float) -> str:
    if abs(factor) < 1e-3:
        return "as zeros"
    return "with the sign turned" if abs(factor + 1) < 1e-3 else f"{factor:g} times"


def _where(tensors: tuple[str, ...]) -> str:
    if not tensors:
        return ""
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f" (seen in {tensors[0]!r}{more})"


def _unchecked(index: int, entry: ReductionSeen) -> Finding:
    return Finding(
        detector=Reduction.id,
        severity=Severity.INFO,
        confidence=Confidence.HIGH,
        seen=f"The reduction of gradients was not checked: {entry.unchecked}.",
        expected="DistributedDataParallel itself averages dense gradients of ranks on this host.",
        attempt=entry.attempt,
        evidence=(index,),
        benign=("the job reduces in a way that is not known here",),
        wall_ns=entry.wall_ns,
    )
