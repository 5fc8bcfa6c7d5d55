"""Step records and whole run folders for the tests of what leaves a host."""

from __future__ import annotations

import random
from pathlib import Path

from trainwarden.keys import SigningKey
from trainwarden.log.journal import LogWriter
from trainwarden.log.merkle import leaf_hash
from trainwarden.model import STAGES, Entry, Stage, StageDigest, StepRecord, canonical
from trainwarden.store import RunDir

KEY = SigningKey(bytes(range(32)))


def step_record(seq: int = 0, rank: int = 0, *, seed: int = 0, **changes: object) -> StepRecord:
    """A record with the numbers that real ones have."""
    rng = random.Random(f"{seed}/{seq}/{rank}")
    duration = int(6.34e9 * rng.gauss(1, 0.01))
    values: dict[str, object] = {
        "attempt": 0,
        "rank": rank,
        "world": 8,
        "step": 1000 + seq,
        "optimizer": 0,
        "seq": seq,
        "stages": {
            s: StageDigest(root=rng.randbytes(32).hex(), tensors=148) for s in STAGES if s is not Stage.CHECKPOINT
        },
        "loss": rng.gauss(3, 0.1),
        "hyper": ({"lr": 3e-4, "betas": [0.9, 0.95]},),
        "micro_batches": 1,
        "wall_ns": 1_790_000_000_000_000_000 + seq * 6_340_000_000 + rng.randrange(10**7),
        "duration_ns": duration,
        "cpu_ns": int(duration * rng.gauss(0.9, 0.01)),
        "recorder_ns": int(2e7 * rng.gauss(1, 0.1)),
    }
    return StepRecord(**(values | changes))  # type: ignore[arg-type]


def step_records(count: int, ranks: int = 8, *, seed: int = 0) -> list[StepRecord]:
    return [step_record(i // ranks, i % ranks, seed=seed) for i in range(count)]


def leaves_of(entries: list[StepRecord]) -> list[bytes]:
    return [leaf_hash(canonical(e)) for e in entries]


def make_run(store: Path, groups: list[list[Entry]], run: str = "20260101-000000-aaaa") -> RunDir:
    """A run's folder whose log has these entries, one append a group."""
    folder = RunDir(run, store / "runs" / run)
    folder.path.mkdir(parents=True)
    log = LogWriter.create(folder.log, f"trainwarden/{run}", KEY)
    for group in groups:
        log.append([canonical(e) for e in group])
    log.close()
    return folder
