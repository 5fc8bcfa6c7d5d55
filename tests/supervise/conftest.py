"""The fixtures of `supervised.py` and `on_demand.py`."""

from on_demand import memory_store
from supervised import bench, job, make_bench, place

__all__ = ["bench", "job", "make_bench", "memory_store", "place"]
