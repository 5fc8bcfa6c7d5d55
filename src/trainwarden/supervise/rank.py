"""The rank that a connection joined as, and what its next record must be."""

from __future__ import annotations

from dataclasses import dataclass

from trainwarden.model import Detail, Stage, StepRecord
from trainwarden.supervise import bounds


@dataclass
class Rank:
    """The rank that a connection joined as."""

    attempt: int
    rank: int
    world: int
    pid: int
    base: int = 0
    begun: bool = False
    seq: int = -1
    records: int = 0
    reached: int = 0  # steps of the job that its newest record completes
    goodbye: bool = False
    looked: int = -1  # the newest of its own steps at which it told of its code
    told_code: bool = False  # since its newest record: every recorder does so before its goodbye
    code_every: int = 0
    key: bytes = b""


def check_record(rank: Rank, record: StepRecord, details: dict[Stage, Detail]) -> None:
    """A record must be the joined rank's own, the next in order, and fit its details."""
    said, known = (record.attempt, record.rank, record.world), (rank.attempt, rank.rank, rank.world)
    if said != known:
        raise ValueError(f"record for (attempt, rank, world) {said} from {known}")
    if record.seq <= rank.seq:
        raise ValueError(f"record {record.seq} after record {rank.seq}")
    bounds.count(record.step, "step")
    for stage, detail in details.items():
        digest = record.stages.get(stage)
        if digest is None or digest.tensors != len(detail.names):
            raise ValueError(f"details of {stage} do not fit the record")
