"""A checkpoint is not what the rank recorded, or is no longer what it was when it was saved.

* Saved: the supervisor compared the file's tensors with the digests of the weights recorded just before.
* Loaded: a file at a path that this log knows, with bytes that it never saw there.
* Gone: an older one was loaded, and the newest one that this run had saved was no longer there.
* Changed: a file that was saved in this run is told to have changed (`FileChanged` at its path).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from trainwarden.model import (
    CheckpointLoaded,
    CheckpointSaved,
    Confidence,
    Detail,
    Entry,
    FileChanged,
    Finding,
    Severity,
    Stage,
)

MAX_PATHS = 100_000


class Checkpoints:
    """Remembers what was saved where."""

    id = "checkpoints"

    def __init__(self) -> None:
        self._saved: dict[str, tuple[int, CheckpointSaved]] = {}
        self._gone: set[tuple[int, str]] = set()  # told, by attempt and path

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case CheckpointSaved():
                if len(self._saved) < MAX_PATHS or entry.path in self._saved:
                    self._saved[entry.path] = (index, entry)
                return (_differs(index, entry),) if entry.weights.startswith("differs") else ()
            case CheckpointLoaded():
                return tuple(self._loaded(index, entry))
            case FileChanged():
                known = self._saved.get(entry.path)
                return (_edited(*known, index, entry),) if known and known[1].digest != entry.found else ()
            case _:
                return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _loaded(self, index: int, entry: CheckpointLoaded) -> Iterator[Finding]:
        known, newer = self._saved.get(entry.path), self._saved.get(entry.newer_gone)
        if known and known[1].digest != entry.digest:
            yield _swapped(*known, index, entry)
        told = (entry.attempt, entry.newer_gone)
        if newer and told not in self._gone and len(self._gone) < MAX_PATHS:
            self._gone.add(told)
            yield _removed(*newer, index, entry)


def _differs(index: int, saved: CheckpointSaved) -> Finding:
    tensor = saved.weights.partition(": ")[2]
    return Finding(
        detector=Checkpoints.id,
        severity=Severity.HIGH,
        confidence=Confidence.MEDIUM,
        seen=f"The checkpoint file {saved.path} of step {saved.step} holds another {tensor!r} than the rank recorded.",
        expected="A checkpoint holds the weights that the rank had when it was written.",
        step=saved.step,
        attempt=saved.attempt,
        ranks=(saved.rank,),
        stage=Stage.CHECKPOINT,
        tensor=tensor,
        evidence=(index,),
        benign=(
            "the script saves other weights than it trains (an average of them, merged adapters)",
            "the script overwrote the file with later weights while it was being read",
        ),
    )


def _swapped(saved_at: int, saved: CheckpointSaved, index: int, loaded: CheckpointLoaded) -> Finding:
    known = f"the one of step {loaded.known_step}" if loaded.known_step >= 0 else "bytes that this log never saw"
    return Finding(
        detector=Checkpoints.id,
        severity=Severity.HIGH,
        confidence=Confidence.HIGH,
        seen=f"Rank {loaded.rank} loaded {loaded.path}: it holds {known}, not what was saved at step {saved.step}.",
        expected="A checkpoint that is loaded is the one that was saved at that path.",
        step=saved.step,
        attempt=loaded.attempt,
        ranks=(loaded.rank,),
        stage=Stage.CHECKPOINT,
        evidence=(saved_at, index),
        benign=("somebody replaced the checkpoint on purpose, or a process outside of this run wrote it",),
    )


def _removed(saved_at: int, newer: CheckpointSaved, index: int, loaded: CheckpointLoaded) -> Finding:
    return Finding(
        detector=Checkpoints.id,
        severity=Severity.MEDIUM,
        confidence=Confidence.MEDIUM,
        seen=f"Rank {loaded.rank} went back to step {loaded.known_step} ({loaded.path}): the newer checkpoint file "
        f"{newer.path} of step {newer.step} is gone.",
        expected="The newest checkpoint that a run saved is there when the run goes on.",
        step=newer.step,
        attempt=loaded.attempt,
        ranks=(loaded.rank,),
        stage=Stage.CHECKPOINT,
        evidence=(saved_at, index),
        benign=(
            "the job removed the newer one itself: half written when it was ended, or worse by its own measure",
            "a program that the job started gave it another name",
        ),
    )


def _edited(saved_at: int, saved: CheckpointSaved, index: int, changed: FileChanged) -> Finding:
    how = "is gone" if not changed.found else "has been changed"
    return Finding(
        detector=Checkpoints.id,
        severity=Severity.HIGH if changed.found else Severity.LOW,
        confidence=Confidence.HIGH,
        seen=f"The checkpoint file {saved.path} of step {saved.step} {how} since it was saved.",
        expected="Checkpoints are not edited after they were saved.",
        step=saved.step,
        attempt=saved.attempt,
        ranks=(saved.rank,),
        stage=Stage.CHECKPOINT,
        evidence=(saved_at, index),
        benign=("the job keeps only its newest checkpoints, or writes all of them to one path",),
        wall_ns=changed.wall_ns,
    )
