"""Payloads: functions of a technique's file, turned into text that runs in a rank of any job, and their triggers.

A payload function takes a `Scene`. It may use the scene, builtins, and the functions listed in `uses`; what else it
needs it imports inside. Its text travels; nothing of this package is imported in the rank.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainwarden.redteam.place import Range

SCENE = Path(__file__).with_name("scene.py")


@dataclass(frozen=True)
class Trigger:
    """When a payload acts, beside its step: everything that is set must hold."""

    ranks: tuple[int, ...] | None = None  # None: all
    every: int = 1
    min_world: int = 0  # ranks, as the environment presents them
    hours: tuple[int, ...] = ()  # of the local day
    no_debugger: bool = False
    noticed_every: int | None = None  # once the insider knows of a suspicion: every k-th step instead, 0 = never


@dataclass(frozen=True)
class Payload:
    """A function to run in a rank, for how many steps, when, and what it is given."""

    function: Callable[[Any], None]
    uses: tuple[Callable[..., Any], ...] = ()
    lasts: int = 40
    trigger: Trigger = Trigger()
    given: dict[str, Any] = field(default_factory=dict)
    delay: int = 0  # steps after the workload's first step to be struck

    def text(self) -> str:
        """The payload with its scene, as one source."""
        parts = [SCENE.read_text(encoding="utf-8"), *(inspect.getsource(f) for f in (*self.uses, self.function))]
        return "\n\n".join(parts)

    def config(self, place: Range) -> dict[str, Any]:
        """What `arrive` takes."""
        trigger = {k: v for k, v in asdict(self.trigger).items() if v is not None}
        return {
            "payload": self.function.__name__,
            "first": place.workload.first + self.delay,
            "lasts": self.lasts,
            "marks": str(place.marks / "strike"),
            "trigger": trigger,
            "given": self.given,
        }


def notice(place: Range) -> None:
    """Let the insider know of a suspicion, as in a daily meeting."""
    place.write(place.marks / "strike.noticed", "")
