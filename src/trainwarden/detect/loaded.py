"""State was loaded that nobody sealed and that this run, and those that it goes on from, never saved.

A loaded file counts as accounted for when its bytes were recorded as a checkpoint (`known_step`), or when it is a
sealed file. Any other may hold anything: weights of another run, edited weights. How bad that is depends on where it
lies: named like the checkpoints of this run, but for numbers, it stands where a recorded one should (high); elsewhere
after the first step it came from somewhere else in the middle of training (medium). Before the first step it is what
base models, caches of data and runs that go on from an earlier one look like: then the start is not vouched for, which
is said once (info).

A path that this run saved is left to `checkpoints`. The finding waits for two steps of the rank: the file may have been
saved by another rank a moment ago, which is then still being hashed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    Confidence,
    Detail,
    Entry,
    Finding,
    Severity,
    Stage,
    StepRecord,
)

MAX_PATHS = 100_000
MAX_WAITING = 1_000
_PATIENCE = 2  # steps that a finding waits
_NUMBER = re.compile(r"\d+")

_BENIGN = (
    "pretrained weights or a cache of data that the seal does not list",
    "the job goes on from a checkpoint of a run that was not guarded, or that this one does not name as its parent",
)


@dataclass
class _Waiting:
    index: int
    loaded: CheckpointLoaded
    step: int  # reached by the run when it was loaded
    left: int = _PATIENCE


class Loaded:
    """Remembers where checkpoints lie, and which loaded files nobody accounts for yet."""

    id = "loaded"

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._names: set[str] = set()  # of saved paths, with # for every number
        self._told: set[tuple[str, str]] = set()
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._step = -1
        self._start_told = False

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case StepRecord():
                self._step = max(self._step, entry.step)
                return list(self._due(entry)) if self._waiting else ()
            case CheckpointSaved():
                self._saved(entry)
            case CheckpointLoaded():
                self._loaded(index, entry)
            case _:
                pass
        return ()

    def finish(self) -> Iterable[Finding]:
        return [f for w in self._waiting.values() for f in self._findings(w)]

    def _saved(self, entry: CheckpointSaved) -> None:
        for key in [k for k in self._waiting if k[1] == entry.digest]:
            del self._waiting[key]
        if len(self._paths) < MAX_PATHS:
            self._paths.add(entry.path)
            self._names.add(_NUMBER.sub("#", entry.path))

    def _loaded(self, index: int, entry: CheckpointLoaded) -> None:
        key = entry.path, entry.digest
        if entry.known_step >= 0 or entry.sealed or entry.path in self._paths or key in self._told:
            return
        if len(self._told) < MAX_PATHS and len(self._waiting) < MAX_WAITING:
            self._told.add(key)
            self._waiting[key] = _Waiting(index, entry, self._step)

    def _due(self, record: StepRecord) -> Iterator[Finding]:
        for key, waiting in list(self._waiting.items()):
            loaded = waiting.loaded
            if loaded.rank >= 0 and (loaded.attempt, loaded.rank) != (record.attempt, record.rank):
                continue
            waiting.left -= 1
            if not waiting.left:
                del self._waiting[key]
                yield from self._findings(waiting)

    def _findings(self, waiting: _Waiting) -> Iterator[Finding]:
        entry = waiting.loaded
        alike = _NUMBER.sub("#", entry.path) in self._names
        who = f"Rank {entry.rank}" if entry.rank >= 0 else "A process of the job"
        if waiting.step < 0 and not alike:
            if not self._start_told:
                self._start_told = True
                seen = (
                    f"{who} began with {entry.path} and perhaps more that no seal lists: not checked, and what comes "
                    "of it is not cleared. What the command names, or [seal] data, is in the seal."
                )
                yield _finding(waiting, Severity.INFO, seen)
            return
        place = ", which is named like the checkpoints of this run" if alike else ""
        seen = f"{who} loaded {entry.path}{place}: no seal lists these bytes and no run recorded them."
        yield _finding(waiting, Severity.HIGH if alike else Severity.MEDIUM, seen)


def _finding(waiting: _Waiting, severity: Severity, seen: str) -> Finding:
    entry = waiting.loaded
    return Finding(
        detector=Loaded.id,
        severity=severity,
        confidence=Confidence.HIGH if severity is Severity.HIGH else Confidence.MEDIUM,
        seen=seen,
        expected="State that is loaded is sealed, or was recorded when it was saved.",
        step=waiting.step,
        attempt=entry.attempt,
        ranks=(entry.rank,) if entry.rank >= 0 else (),
        stage=Stage.CHECKPOINT,
        evidence=(waiting.index,),
        benign=_BENIGN,
    )
