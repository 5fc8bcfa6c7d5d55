"""Where in a nest of containers a part is, and how deep a scan goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from trainwarden.gate.results import Decision, Undecided
from trainwarden.gate.scan.window import Window

DEEPEST: Final = 6
MOST_PARTS: Final = 1 << 17


class Budget:
    """What is left of a file's share of work, over all of its parts."""

    __slots__ = ("instructions", "parts")

    def __init__(self) -> None:
        self.parts = MOST_PARTS
        self.instructions = 0  # of pickles, followed so far


class Place(NamedTuple):
    """A part's path inside its file, its depth, and how to decide on a part of it."""

    path: str
    depth: int
    name: str  # the part's own: it tells prose from code, and nothing else
    judge: Callable[[Window, Place], Decision]
    budget: Budget

    def inside(self, window: Window, name: str) -> Decision:
        """The decision on a part of this place."""
        self.budget.parts -= 1
        if self.depth >= DEEPEST or self.budget.parts < 0:
            return Undecided(kind="nested", why=f"{self.path}: too many containers in containers")
        return self.judge(
            window, Place(f"{self.path}!{name}"[:300].lstrip("!"), self.depth + 1, name, self.judge, self.budget)
        )

    def undecided(self, kind: str, why: str) -> Undecided:
        """A doubt about this part."""
        return Undecided(kind=kind, why=f"{self.path}: {why}" if self.path else why)
