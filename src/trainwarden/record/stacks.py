"""Where the threads of this process stand: frames as nouns, without the recorder's own."""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType

from trainwarden import wire
from trainwarden.model import StackFrame

MOST_FRAMES = 16
MOST_THREADS = 64
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def frames_of(frame: FrameType | None, most: int = MOST_FRAMES) -> tuple[StackFrame, ...]:
    """The innermost frames from `frame` outwards; the recorder's own are left out."""
    found: list[StackFrame] = []
    while frame is not None and len(found) < most:
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            found.append(
                StackFrame(file=code.co_filename[:1000], line=frame.f_lineno or 0, function=code.co_qualname[:300])
            )
        frame = frame.f_back
    return tuple(found)


def _file(name: str) -> str:
    """Where a code object says that it lies; what has no file keeps its name in brackets."""
    return (name if name.startswith(("/", "<")) else os.path.abspath(name))[:1000]


def stack_of(thread: int) -> tuple[StackFrame, ...]:
    """Where a thread stands; () when it has ended."""
    return frames_of(sys._current_frames().get(thread))


def stacks(token: int, trainer: int, part: str) -> wire.Stacks:
    """What every thread of this process does; `trainer` moves the optimizers and is in this part of a step."""
    native = {t.ident: (t.native_id or 0, t.name) for t in threading.enumerate()}
    found = sys._current_frames()
    order = sorted(found, key=lambda ident: ident != trainer)[:MOST_THREADS]
    return wire.Stacks(
        token=token,
        part=part,
        threads=tuple(
            wire.ThreadStack(
                native=native.get(ident, (0, ""))[0],
                name=native.get(ident, (0, ""))[1][:100],
                trains=ident == trainer,
                frames=frames_of(found[ident]),
            )
            for ident in order
        ),
    )
