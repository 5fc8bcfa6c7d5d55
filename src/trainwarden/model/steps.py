"""What one rank claims about one optimizer step, and the digests under it."""

from __future__ import annotations

import struct
from typing import Any

from trainwarden.model.base import Noun, Stage


class StageDigest(Noun, gc=False):  # like StepRecord: many, and in no cycle, so the collector need not walk them
    """Commitment to one stage. `root` is empty when the stage could not be seen; `unseen` then says why."""

    root: str = ""
    tensors: int = 0
    unseen: str = ""


BUFFERS = "buffer/"
"""How the names of buffers begin in the stage `weights`."""


class StepRecord(Noun, tag="step", gc=False):
    """One rank's claim about one optimizer step.

    `step` counts optimizer steps of the job from its very start, across restarts. `optimizer` tells several
    optimizers of one step apart. `hyper` holds the parameter groups' settings in the clear.
    """

    attempt: int
    rank: int
    world: int
    step: int
    optimizer: int
    seq: int
    stages: dict[Stage, StageDigest]
    loss: float | None = None
    hyper: tuple[dict[str, Any], ...] = ()
    skipped: bool = False  # the gradient scaler refused the step
    micro_batches: int = 0
    wall_ns: int = 0
    duration_ns: int = 0  # wall time since this rank's previous record
    cpu_ns: int = 0  # CPU time of this process over the same interval
    recorder_ns: int = 0  # wall time the recorder itself spent in it
    before: str = ""  # root over the weights as the step's first forward found them, "" = not looked at
    found: dict[str, str] = {}  # the first of those that no longer were as last recorded: name → digest
    left: str = ""  # root over the weights without buffers, "" = the stage `weights` holds none
    share: str = ""  # sharded weights: this rank's part of the fingerprint of all of them, masked; hex
    began: str = ""  # the same of the weights that the attempt's first step began with

    @property
    def parameters(self) -> str:
        """The root over the weights that the optimizer moves, buffers left out; "" when they were not seen."""
        weights = self.stages.get(Stage.WEIGHTS)
        return self.left or (weights.root if weights else "")


DIGEST_BYTES = 16  # of a tensor's digest


class Detail(Noun):
    """The per-tensor digests under a `StageDigest.root`, kept locally beside the log."""

    names: tuple[str, ...]
    digests: tuple[bytes, ...]


def cut_digests(data: bytes, count: int) -> tuple[bytes, ...]:
    """`count` tensor digests out of bytes that hold them end to end.

    Raises:
        ValueError: the bytes do not hold just as many.
    """
    if len(data) != count * DIGEST_BYTES:
        raise ValueError(f"{len(data)} bytes of digests for {count} names")
    return struct.unpack(f"{DIGEST_BYTES}s" * count, data)


class Gap(Noun, tag="gap"):
    """Something that should have been recorded was not. A gap is a finding, never a pass."""

    attempt: int
    rank: int
    step: int
    reason: str
