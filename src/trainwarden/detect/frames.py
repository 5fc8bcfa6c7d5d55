"""Python stacks in findings: which frame is the job's own, and how a place is written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainwarden.model import StackFrame

_LIBRARY = re.compile(r"/lib(64)?/python3(\.\d+)?/(?!(site|dist)-packages/)")
_TORCH = re.compile(r"/(site|dist)-packages/torch/")


def caller(frames: Sequence[StackFrame]) -> StackFrame | None:
    """The innermost frame outside of the standard library, else the innermost of all."""
    return next((f for f in frames if not _LIBRARY.search(f.file)), frames[0] if frames else None)


def own(frames: Sequence[StackFrame]) -> StackFrame | None:
    """The innermost frame outside of the standard library and torch, else that outside of the library."""
    return next((f for f in frames if not _LIBRARY.search(f.file) and not _TORCH.search(f.file)), caller(frames))


def place(frame: StackFrame | None) -> str:
    """`function (file:line)`."""
    return f"{frame.function} ({frame.file}:{frame.line})" if frame is not None else "code without a Python frame"
