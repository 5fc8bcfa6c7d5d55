"""The reduction of gradients over ranks did not give their mean, or gradients changed on the way from it to the update.

The supervisor compares keyed sums of all ranks (`supervise.reducing`); each of its faults becomes a finding. Where the
job adds gradients in rank order, receivers tell what is not what its sender signed, and ranks tell which keys they were
given: those must be the keys that the ranks told when they joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from blake3 import blake3

from trainwarden.model import (
    Confidence,
    Detail,
    Entry,
    Finding,
    PartDiffers,
    ReductionFault,
    ReductionKey,
    ReductionSeen,
    Severity,
    Stage,
)

_MOST_RANKS = 1 << 17
_MOST_GROUPS = 1024
_HARDWARE = "faulty memory, processor or network on one of the hosts"
_OWN = "the script changes single gradients between backward and update on purpose (clipping by value or by group)"


class Reduction:
    """Tells of every fault in a `ReductionSeen`, and once what was not compared."""

    id = "reduction"

    def __init__(self) -> None:
        self._keys: dict[int, _Keys] = {}

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if isinstance(entry, PartDiffers):
            return (_differs(index, entry),)
        if isinstance(entry, ReductionKey):
            return list(self._keys.setdefault(entry.attempt, _Keys()).take_in(index, entry))
        if not isinstance(entry, ReductionSeen):
            return ()
        findings = [_finding(index, entry, fault) for fault in entry.faults]
        if entry.unchecked:
            findings.append(_unchecked(index, entry))
        return findings

    def finish(self) -> Iterable[Finding]:
        return ()


class _Keys:
    """The public keys of one attempt's ranks as they told them, and what they were given as the others'."""

    def __init__(self) -> None:
        self._own: dict[int, tuple[int, str]] = {}  # rank → log index, key
        self._given: list[tuple[int, ReductionKey]] = []  # until every key is known
        self._roots: dict[tuple[tuple[int, ...], int], str] = {}

    def take_in(self, index: int, entry: ReductionKey) -> Iterator[Finding]:
        before = self._own.setdefault(entry.rank, (index, entry.key))
        if before[1] != entry.key:
            yield _key_finding(entry, (before[0], index), "signs with another key than it told when it joined")
        if entry.table and len(self._given) < _MOST_RANKS:
            self._given.append((index, entry))
        waiting, self._given = self._given, []
        for at, given in waiting:
            root = self._root(given)
            if not root:
                self._given.append((at, given))
            elif root != given.table:
                yield _key_finding(given, (at,), "was given other public keys than the ranks told when they joined")

    def _root(self, given: ReductionKey) -> str:
        """The root over the keys that the ranks told themselves, "" while one is missing."""
        place = given.ranks, given.world
        if place not in self._roots and len(self._own) >= given.world:
            ranks = given.ranks or range(min(given.world, _MOST_RANKS))
            if any(rank not in self._own for rank in ranks):
                return ""
            if len(self._roots) >= _MOST_GROUPS:
                self._roots.clear()
            keys = "".join(self._own[rank][1] for rank in ranks)
            self._roots[place] = blake3(bytes.fromhex(keys) if _is_hex(keys) else b"").hexdigest()
        return self._roots.get(place, "")


def _is_hex(text: str) -> bool:
    return len(text) % 2 == 0 and all(c in "0123456789abcdef" for c in text)


def _key_finding(entry: ReductionKey, evidence: tuple[int, ...], what: str) -> Finding:
    return Finding(
        detector=Reduction.id,
        severity=Severity.HIGH,
        confidence=Confidence.HIGH,
        seen=f"Rank {entry.rank} {what}.",
        expected="The keys that check the parts of a reduction are those that the ranks themselves told.",
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        stage=Stage.LOCAL_GRADIENTS,
        evidence=evidence,
        benign=("a process that was forked from a rank trains too",),
    )


def _differs(index: int, entry: PartDiffers) -> Finding:
    what = "differs from what it signed" if entry.kind == "part" else "comes without a signature that holds"
    return Finding(
        detector=Reduction.id,
        severity=Severity.HIGH,
        confidence=Confidence.HIGH,
        seen=f"At step {entry.step} what rank {entry.rank} received from rank {entry.sender} {what}"
        f"{_where(entry.tensors)}.",
        expected="Every part of a reduction arrives as its sender signed it.",
        step=entry.step,
        attempt=entry.attempt,
        ranks=tuple(sorted({entry.rank, entry.sender})),
        stage=Stage.LOCAL_GRADIENTS,
        tensor=entry.tensors[0] if entry.tensors else "",
        evidence=(index,),
        benign=(_HARDWARE, "the receiver tells a lie: its word stands against the sender's until the replay"),
    )


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
