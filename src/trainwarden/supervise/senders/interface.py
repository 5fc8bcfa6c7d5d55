"""The seam of what tells who sent a signal."""

from __future__ import annotations

from typing import Protocol

import msgspec

from trainwarden.model import Writer


class Sent(msgspec.Struct, frozen=True):
    """Who sent a process a signal. No `sender`: the kernel itself did."""

    by: str  # what told it
    sender: Writer | None = None


class Source(Protocol):
    """One part of the system that may know."""

    def start(self) -> str:
        """Begin to listen; why that is not possible here, "" when it is."""

    def sent(self, pid: int, signal: int) -> Sent | None:
        """Who sent this process this signal (0: one that ends a process); None when it does not know."""

    def close(self) -> None:
        """Listen no more."""
