"""Entries for detectors, made short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blake3 import blake3

from trainwarden.detect.interface import Detector
from trainwarden.model import Detail, Entry, Finding, ProcessExited, Stage, StageDigest, StepRecord

Tensors = Mapping[str, str]


def detail(tensors: Tensors) -> Detail:
    return Detail(names=tuple(tensors), digests=tuple(blake3(v.encode()).digest(16) for v in tensors.values()))


def root(tensors: Tensors) -> str:
    return blake3(repr(sorted(tensors.items())).encode()).hexdigest()


def step(
    step: int,
    rank: int = 0,
    weights: Tensors | None = None,
    *,
    attempt: int = 0,
    world: int = 2,
    seq: int | None = None,
    optimizer: int = 0,
    before: Tensors | None = None,
) -> tuple[StepRecord, dict[Stage, Detail]]:
    tensors = {"a": f"{step}", "b": f"{step}"} if weights is None else weights
    record = StepRecord(
        attempt=attempt,
        rank=rank,
        world=world,
        step=step,
        optimizer=optimizer,
        seq=step if seq is None else seq,
        stages={Stage.WEIGHTS: StageDigest(root=root(tensors), tensors=len(tensors))},
        before="" if before is None else root(before),
    )
    return record, {Stage.WEIGHTS: detail(tensors)}


def exited(
    rank: int, code: int, *, attempt: int = 0, known: bool = True, goodbye: bool = False, stopping: int = 0
) -> ProcessExited:
    return ProcessExited(
        attempt=attempt, rank=rank, pid=100 + rank, code=code, known=known, goodbye=goodbye, stopping=stopping
    )


Fed = Entry | tuple[Entry, Mapping[Stage, Detail]]


def feed(detector: Detector, entries: Iterable[Fed], finish: bool = False) -> list[Finding]:
    """Every finding of one detector over these entries."""
    out: list[Finding] = []
    for index, fed in enumerate(entries):
        entry, details = fed if isinstance(fed, tuple) else (fed, None)
        out += detector.observe(index, entry, details)
    return out + (list(detector.finish()) if finish else [])
