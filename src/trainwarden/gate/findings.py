"""Which entries of a run's log speak against a checkpoint that stands on it (pure).

Rules
-----
* A finding counts if it is of at least the policy's severity and concerns a step that the checkpoint stands on, or no
  step at all. It counts until an actor closes it; whoever closes it names it by its bytes.
* A `Diverged` at such a step counts always: it is evidence, and nobody closes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from blake3 import blake3

from trainwarden.model import Diverged, Entry, Finding, Severity, canonical

_ORDER = tuple(Severity)


def open_findings(
    entries: Iterable[tuple[int, Entry]],
    until: Mapping[str, int],
    least: Severity,
    closed: Collection[tuple[int, str]] = (),
) -> Iterator[tuple[int, Finding]]:
    """The findings that count and nobody closed, with their log indexes.

    `until` has the number of steps of each attempt that the checkpoint stands on; `closed` pairs of index and digest.
    """
    for index, entry in entries:
        if not isinstance(entry, Finding) or _ORDER.index(entry.severity) < _ORDER.index(least):
            continue
        if _concerns(entry.attempt, entry.step, until) and (index, finding_digest(entry)) not in closed:
            yield index, entry


def divergences(entries: Iterable[tuple[int, Entry]], until: Mapping[str, int]) -> Iterator[tuple[int, Diverged]]:
    """The divergences at steps that the checkpoint stands on, with their log indexes."""
    for index, entry in entries:
        if isinstance(entry, Diverged) and _concerns(entry.segment.attempt, entry.at.step, until):
            yield index, entry


def finding_digest(finding: Finding) -> str:
    """What names a finding whatever its log: the BLAKE3 of its canonical bytes."""
    return blake3(canonical(finding)).hexdigest()


def _concerns(attempt: int, step: int, until: Mapping[str, int]) -> bool:
    """Does it bear on the checkpoint? Without a step on the whole attempt, without an attempt on every one."""
    return step < until.get(str(attempt), -1) if attempt >= 0 else step < max(until.values(), default=0)
