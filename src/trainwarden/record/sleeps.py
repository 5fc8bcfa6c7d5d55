"""Who calls `time.sleep` on the training thread: a thin wrapper, put in place when the process starts.

Early, so that modules which take `sleep` by name take this one. Other ways to stand still (locks, `select`, native
code) are seen by the time that they take, see `observers/timing.py`.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from types import FrameType

Listener = Callable[[float, int, FrameType], None]
"""Called on the sleeper's own thread afterwards: seconds asked for, nanoseconds that it took, the caller's frame."""

_listeners: list[Listener] = []
unheard = time.sleep
"""`time.sleep` as it was, for the recorder's own threads."""


class _Sleep:
    """Stands for `time.sleep`. No function: as a class's attribute it must not become a method, as the original."""

    def __init__(self) -> None:
        functools.update_wrapper(self, unheard)

    def __call__(self, seconds: float, /) -> None:
        if not _listeners:
            return unheard(seconds)
        begin = time.monotonic_ns()
        try:
            return unheard(seconds)
        finally:
            took = time.monotonic_ns() - begin
            for listener in _listeners:
                listener(seconds, took, sys._getframe(1))

    def __reduce__(self) -> str:
        return "sleep"  # pickled by name, as the original

    def __repr__(self) -> str:
        return repr(unheard)


def arm() -> None:
    """Wrap `time.sleep`, once in a process."""
    if time.sleep is unheard:
        time.sleep = _Sleep()  # type: ignore[assignment]  # it takes what can be an index as well, as floats do


def listen(listener: Listener) -> None:
    """Call `listener` after each sleep of this process, whichever thread sleeps; it may not raise."""
    _listeners.append(listener)
