"""Precision, determinism, threads or communication changed in mid-run, differ between ranks, or began unsealed.

Rules
-----
* A rank's first word of an attempt is compared with that of the first rank, every later one with its own before.
* A flag and its new value are told once, however many ranks have it. A flag that was not read is no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from trainwarden.model import Confidence, Detail, Entry, Finding, PrecisionSeen, Severity, Stage

UNREAD = "?"
_MOST_RANKS = 1 << 17
_MOST_TOLD = 256
_HOST = ("threads", "interop threads", "timeout")  # hosts of one job may honestly differ in them
_SLIGHT = (*_HOST, "attention", "gradient scalers")
_LAUNCHERS = ("OMP_NUM_THREADS", "NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING")  # torchrun's own
_SWITCHES = "the script switches it itself on purpose (warm-up, another phase of training, a profiler)"


class Precision:
    """Compares what ranks say of their flags."""

    id = "precision"

    def __init__(self) -> None:
        self._attempts: dict[int, _Attempt] = {}

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if not isinstance(entry, PrecisionSeen):
            return ()
        return list(self._attempts.setdefault(entry.attempt, _Attempt()).take_in(index, entry))

    def finish(self) -> Iterable[Finding]:
        return ()


class _Attempt:
    """What the ranks of one attempt said: of equal ones one copy is kept."""

    def __init__(self) -> None:
        self._first: tuple[int, PrecisionSeen] | None = None
        self._ranks: dict[int, tuple[int, dict[str, str]]] = {}
        self._told: set[tuple[str, str, str]] = set()

    def take_in(self, index: int, entry: PrecisionSeen) -> Iterator[Finding]:
        before = self._ranks.get(entry.rank)
        flags = entry.flags | {f"variable {n}": v for n, v in entry.variables.items()}
        if before is not None:
            yield from self._changed(index, entry, before, flags)
        elif self._first is None:
            self._first = index, entry
            yield from self._unsealed(index, entry)
        else:
            yield from self._differs(index, entry, self._first, flags)
        if self._first is not None and entry.rank != self._first[1].rank:
            first = self._ranks.get(self._first[1].rank)
            flags = first[1] if first and first[1] == flags else flags
        if len(self._ranks) < _MOST_RANKS or entry.rank in self._ranks:
            self._ranks[entry.rank] = index, flags

    def _changed(
        self, index: int, entry: PrecisionSeen, before: tuple[int, dict[str, str]], flags: dict[str, str]
    ) -> Iterator[Finding]:
        known = before[1]
        new = [n for n in flags if n in known and _unequal(known[n], flags[n]) and self._is_new("changed", n, flags[n])]
        if new:
            what = "; ".join(f"{name} from {known[name]} to {flags[name]}" for name in new)
            seen = f"On rank {entry.rank} changed, seen after step {entry.step}: {what}."
            expected = "Precision, determinism and communication stay as they were in the first steps."
            yield _finding(index, entry, seen, expected, _severity(new, _SLIGHT), _SWITCHES, (before[0], index))

    def _differs(
        self, index: int, entry: PrecisionSeen, first: tuple[int, PrecisionSeen], flags: dict[str, str]
    ) -> Iterator[Finding]:
        said = first[1].flags | {f"variable {n}": v for n, v in first[1].variables.items()}
        pairs = {n: (said.get(n, "not set"), flags.get(n, "not set")) for n in sorted(flags.keys() | said.keys())}
        new = [n for n, (a, b) in pairs.items() if _unequal(a, b) and self._is_new("differs", n, b)]
        if new:
            what = "; ".join(f"{name} {pairs[name][0]} and {pairs[name][1]}" for name in new)
            seen = f"Ranks {first[1].rank} and {entry.rank} differ: {what}."
            expected = "All ranks of a job compute with the same precision and communicate alike."
            benign = "hosts of different kinds; ranks with different tasks"
            yield _finding(index, entry, seen, expected, _severity(new, _HOST), benign, (first[0], index))

    def _unsealed(self, index: int, entry: PrecisionSeen) -> Iterator[Finding]:
        for name, sealed in entry.unsealed.items():
            if name not in _LAUNCHERS and self._is_new("unsealed", name, sealed):
                now = entry.began.get(name, "")
                seen = f"Rank {entry.rank} began with {name}={now!r}, sealed: {sealed!r}."
                expected = "Variables that decide precision and communication are those of the sealed command."
                benign = "the launcher or a parent process sets this variable for its ranks"
                yield _finding(index, entry, seen, expected, Severity.INFO, benign, (index,))

    def _is_new(self, kind: str, name: str, value: str) -> bool:
        key = kind, name, value
        new = key not in self._told and len(self._told) < _MOST_TOLD
        if new:
            self._told.add(key)
        return new


def _unequal(one: str, other: str) -> bool:
    return one != other and UNREAD not in (one, other)


def _severity(names: Iterable[str], slight: tuple[str, ...]) -> Severity:
    heavy = [n for n in names if n not in slight and not n.startswith("variable ")]
    return Severity.MEDIUM if heavy else Severity.LOW


def _finding(
    index: int,
    entry: PrecisionSeen,
    seen: str,
    expected: str,
    severity: Severity,
    benign: str,
    evidence: tuple[int, ...],
) -> Finding:
    return Finding(
        detector=Precision.id,
        severity=severity,
        confidence=Confidence.MEDIUM if severity is Severity.MEDIUM else Confidence.LOW,
        seen=seen,
        expected=expected,
        step=entry.step,
        attempt=entry.attempt,
        ranks=(entry.rank,),
        evidence=evidence,
        benign=(benign,),
    )
