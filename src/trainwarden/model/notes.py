"""What a rank tells beside its step records: each is an entry of the log, and a claim like a record.

`attempt` and `rank` are set by the watcher, whatever the rank says; `step` counts from the start of the rank's process
when it is told and over the whole job once it is logged.
"""

from __future__ import annotations

from typing import TypeAlias

from trainwarden.model.base import Noun


class ModelSeen(Noun, tag="model_seen"):
    """What of a model is trained: told at a rank's first step, and again when it has changed."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    parameters: int = 0  # tensors that some optimizer moves
    elements: int = 0  # numbers in them
    idle: tuple[str, ...] = ()  # trainable tensors that no optimizer moves, the first of them
    idle_count: int = 0
    frozen: int = 0  # tensors that need no gradient


class ReductionKey(Noun, tag="reduction_key"):
    """The public key with which a rank signs its parts of an ordered reduction, told when it joins; and again with the
    root over the keys that it was given as those of `ranks` (empty: all of `world`)."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    key: str = ""  # Ed25519, hex
    world: int = 0
    ranks: tuple[int, ...] = ()
    table: str = ""  # BLAKE3 over the ranks' public keys, in order


class PartDiffers(Noun, tag="part_differs"):
    """What this rank received in an ordered reduction is not what its sender signed for it.

    `kind`: "part" (the digest differs), "signature" (the sender's signature does not hold).
    """

    attempt: int = -1
    rank: int = -1
    step: int = -1
    sender: int = -1
    kind: str = "part"
    tensors: tuple[str, ...] = ()
    signed: str = ""
    arrived: str = ""


class PrecisionSeen(Noun, tag="precision"):
    """What decides a rank's last bits beside code and inputs: told after its first step, and when it has changed."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    flags: dict[str, str] = {}  # "?" where one could not be read
    variables: dict[str, str] = {}  # of the environment, as they are now
    began: dict[str, str] = {}  # the same, as they were when the process began
    unsealed: dict[str, str] = {}  # set by the watcher: of those that began otherwise than sealed, the sealed value


Note: TypeAlias = ModelSeen | ReductionKey | PartDiffers | PrecisionSeen
"""Every entry that a rank may tell."""
