"""Those who look on in a rank, one a file. To add one: a file here, a line in `all_observers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainwarden.record.observers.interface import Observer
from trainwarden.record.observers.precision import Precision
from trainwarden.record.observers.reduction import Reduction

if TYPE_CHECKING:
    from trainwarden.record.recorder import Recorder

__all__ = ["Observer", "all_observers"]


def all_observers(recorder: Recorder) -> list[Observer]:
    """A fresh instance of every observer."""
    return [Reduction(recorder), Precision(recorder)]
