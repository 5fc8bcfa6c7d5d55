"""What a rank tells beside its step records: each is an entry of the log, and a claim like a record.

`attempt` and `rank` are set by the watcher, whatever the rank says; `step` counts from the start of the rank's process
when it is told and over the whole job once it is logged.
"""

from __future__ import annotations

from typing import Any, TypeAlias

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


class StateChanged(Noun, tag="state_changed"):
    """Slices of weights or optimizer state that an update found otherwise than the update before had left them."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    optimizer: int = 0
    weights: tuple[str, ...] = ()  # tensors, the first of them
    state: tuple[str, ...] = ()  # TENSOR/KEY of state with other values, the first of them
    emptied: tuple[str, ...] = ()  # TENSOR/KEY of state that is gone or all 0, the first of them
    lowered: tuple[str, ...] = ()  # TENSOR/step of step counters that went back, the first of them
    looked: int = 0  # tensors compared


class ScheduleSeen(Noun, tag="schedule_seen"):
    """A learning-rate scheduler of torch that moves an optimizer's settings: told once for each that is found."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    optimizer: int = 0
    kind: str = ""  # module and name of its class
    state: dict[str, Any] = {}  # its numbers and lists of numbers, as its `state_dict` has them


Note: TypeAlias = ModelSeen | StateChanged | ScheduleSeen
"""Every entry that a rank may tell."""
