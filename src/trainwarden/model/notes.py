"""What a rank tells beside its step records: each is an entry of the log, and a claim like a record.

`attempt` and `rank` are set by the watcher, whatever the rank says; `step` counts from the start of the rank's process
when it is told and over the whole job once it is logged.
"""

from __future__ import annotations

from typing import Any, TypeAlias

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


class RandomSeen(Noun, tag="random_seen"):
    """The seeds that a rank's generators stand on at its first step."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    world: int = 1
    torch: int = -1  # torch.initial_seed() of the CPU generator


class Reseeded(Noun, tag="reseeded"):
    """A generator was seeded after the first step, and stood on that seed when the next training forward pass began."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    generator: str = ""  # "torch" | "python" | "numpy"
    seed: str = ""  # as text; "" where it is no number
    file: str = ""  # of the code that called, "" = it did not go through the public function
    line: int = 0
    function: str = ""


class LossForm(Noun):
    """How a cross entropy or negative log-likelihood was computed, as the graph of the loss says."""

    ignore_index: int
    reduction: int  # as torch.nn._reduction numbers it: 0 none, 1 mean, 2 sum
    weighted: bool = False  # classes have weights
    smoothing: bool = False  # a second term over all classes is added


class LossSeen(Noun, tag="loss_seen"):
    """The forms of the losses of one step, told when a rank first has them; or a share of targets out of its band."""

    attempt: int = -1
    rank: int = -1
    step: int = -1
    forms: tuple[LossForm, ...] = ()  # distinct, sorted
    unseen: str = ""  # why a loss shows no form
    counted: float = -1.0  # share of the targets that the loss counts, −1 = not seen
    low: float = -1.0  # the band that the share was in before, when it left it
    high: float = -1.0
    seen: int = 0  # steps of this rank that were looked at before


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


Note: TypeAlias = (
    ModelSeen
    | Idled
    | StepTimes
    | Reported
    | TrackerSeen
    | RandomSeen
    | Reseeded
    | LossSeen
    | StateChanged
    | ScheduleSeen
)
"""Every entry that a rank may tell."""
