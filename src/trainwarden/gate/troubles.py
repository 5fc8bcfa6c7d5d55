"""What became known against a cleared checkpoint since, and so what a name leads to now.

Rules
-----
* A clearance holds for the logs of its runs as they were. Each is looked at again: a log that is gone, was put back, or
  is signed by another key is a trouble, and so is a freeze, a divergence or a finding that came after. So is an open
  incident that one of the runs is part of.
* What could not be looked at is a trouble: nothing is served because nobody knew.
* A trouble is over when it is taken back (`contain --undo`, `incident close`), or when the checkpoint is cleared anew.

Trust: the logs of the runs by the keys that the clearance names.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trainwarden import descent
from trainwarden.errors import LogError, SignatureInvalid, StoreError, UsageError
from trainwarden.gate.findings import divergences, open_findings
from trainwarden.gate.incidents import open_on
from trainwarden.gate.ledger import read_gate
from trainwarden.gate.registry import Promotion, served
from trainwarden.log.reader import LogReader
from trainwarden.model import CheckpointCleared, Entry, RunSeen, Severity, decode_entry
from trainwarden.store import Store


def look_up(store: Store, name: str, keeper: str = "") -> tuple[Promotion, ...]:
    """What may be served under a name now, the newest first, and what is open on each; () for a name that nobody
    promoted. Whoever serves takes the first with nothing open.

    Raises:
        GateTampered: the gate's log does not verify (against `keeper`, if given).
    """
    entries = read_gate(store, keeper)
    troubles = {p.digest: against(store, p.clearance) for p in served(entries, name)} if entries else {}
    return served(entries, name, troubles)


def against(store: Store, clearance: CheckpointCleared) -> tuple[str, ...]:
    """What became known against a checkpoint since it was cleared; () for nothing."""
    return tuple(dict.fromkeys(t for run in clearance.runs for t in _of_run(store, run, clearance.findings)))


def _of_run(store: Store, seen: RunSeen, least: Severity) -> Iterator[str]:
    yield from open_on(store, seen.run)
    try:
        for frozen in descent.frozen_by(store, seen.run):
            yield f"run {frozen.run} is frozen (entry {frozen.index}: {frozen.reason or 'no reason given'})"
        with LogReader.open(store.run(seen.run).log, seen.key) as log:
            yield from _since(log, seen, least)
    except (LogError, StoreError, UsageError, SignatureInvalid, msgspec.DecodeError) as e:
        yield f"run {seen.run} cannot be looked at: {e}"


def _since(log: LogReader, seen: RunSeen, least: Severity) -> Iterator[str]:
    size = log.head.size
    if size < seen.size:
        yield f"the log of run {seen.run} has {size} entries, {seen.size} were there when it was cleared"
        return
    root = log.head.root if size == seen.size else log.root_at(seen.size).hex()
    if root != seen.root:
        yield f"the log of run {seen.run} is another one than when it was cleared"
        return
    if size == seen.size:
        return
    new: list[tuple[int, Entry]] = [(i, decode_entry(data)) for i, data in log.entries() if i >= seen.size]
    for index, diverged in divergences(new, seen.until):
        yield f"run {seen.run} diverged at step {diverged.at.step} (entry {index}: {diverged.at.words})"
    for index, finding in open_findings(new, seen.until, least):
        yield f"run {seen.run}, entry {index}, {finding.severity} finding {finding.detector}: {finding.seen}"
