"""The fixtures of `resuming.py`."""

from resuming import guarded, place, sabotaged

__all__ = ["guarded", "place", "sabotaged"]
