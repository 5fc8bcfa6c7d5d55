"""The fixtures of `resuming.py` and `recovering.py`."""

from recovering import honest, job, recorded, stopped
from resuming import guarded, place, sabotaged

__all__ = ["guarded", "honest", "job", "place", "recorded", "sabotaged", "stopped"]
