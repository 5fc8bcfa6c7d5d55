"""Bounds of what a rank may say: numbers, paths and texts beyond them close its connection (pure)."""

from __future__ import annotations

from trainwarden import wire

MAX_WORLD = 1_000_000
MAX_STEP = 1 << 53
MAX_TEXT = 4_096
MAX_PARTS = 64  # tensors in a sample


def count(value: int, what: str) -> int:
    """A number of steps, or of what is counted like them."""
    if not 0 <= value <= MAX_STEP:
        raise ValueError(f"{what} {value}")
    return value


def input_step(message: wire.Pass | wire.Given) -> int:
    """The step that a message about data names, once its numbers are in bounds."""
    count(message.number, "pass")
    if isinstance(message, wire.Given):
        count(message.batch, "batch")
        if len(message.names) > MAX_PARTS or any(len(name) > MAX_TEXT for name in message.names):
            raise ValueError(f"{len(message.names)} tensors in a sample")
    elif not -1 <= message.samples <= MAX_STEP or not 0 < message.replicas <= MAX_WORLD:
        raise ValueError(f"{message.samples} samples in {message.replicas} parts")
    return count(message.step, "step")


def path(text: str) -> str:
    """An absolute path."""
    if not text.startswith("/") or "\0" in text or len(text) > MAX_TEXT:
        raise ValueError(f"not an absolute path: {text[:80]!r}")
    return text
