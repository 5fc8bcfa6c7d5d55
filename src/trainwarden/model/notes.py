"""What a rank tells beside its step records: each is an entry of the log, and a claim like a record.

`attempt` and `rank` are set by the watcher, whatever the rank says; `step` counts from the start of the rank's process
when it is told and over the whole job once it is logged.
"""

from __future__ import annotations

from typing import TypeAlias

from trainwarden.model.base import Noun
from trainwarden.model.hosts import Idled, StepTimes


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


class Reported(Noun, tag="reported"):
    """A training loss that the script handed to its tracker; `own_step` is the step it gave with it, −1 for none."""

    tracker: str
    name: str
    value: float
    attempt: int = -1
    rank: int = -1
    step: int = -1
    own_step: int = -1


class TrackerSeen(Noun, tag="tracker_seen"):
    """The name of a metric that the script reports and that is not compared with anything."""

    tracker: str
    unchecked: str
    attempt: int = -1
    rank: int = -1
    step: int = -1


Note: TypeAlias = ModelSeen | Idled | StepTimes | Reported | TrackerSeen
"""Every entry that a rank may tell."""
