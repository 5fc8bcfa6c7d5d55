"""Those who look on in a rank, one a file. To add one: a file here, a line in `all_observers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainwarden.record.observers.data import DataObserver
from trainwarden.record.observers.interface import Observer
from trainwarden.record.observers.left import WhatIsLeft
from trainwarden.record.observers.losses import LossObserver
from trainwarden.record.observers.metrics import Metrics
from trainwarden.record.observers.precision import Precision
from trainwarden.record.observers.randomness import RandomObserver
from trainwarden.record.observers.reduction import Reduction
from trainwarden.record.observers.slices import UpdateSlices
from trainwarden.record.observers.timing import Timing
from trainwarden.record.observers.trained import WhatIsTrained

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

__all__ = ["Observer", "all_observers"]


def all_observers(recorder: Recorder) -> list[Observer]:
    """A fresh instance of every observer."""
    return [
        Timing(recorder),
        Metrics(recorder),
        DataObserver(recorder),
        RandomObserver(recorder),
        LossObserver(recorder),
        WhatIsLeft(recorder),
        UpdateSlices(recorder),
        WhatIsTrained(recorder),
        Reduction(recorder),
        Precision(recorder),
    ]
