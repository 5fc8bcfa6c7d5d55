"""What a recovery tells to whoever shows it."""

from __future__ import annotations

from trainwarden.model import Verdict
from trainwarden.respond.point import Point
from trainwarden.supervise.supervisor import Event


class Hears:
    """Told of everything as it happens; does nothing by itself."""

    def says(self, sentence: str) -> None:
        """One act, or what comes next."""

    def replays(self, point: Point) -> None:
        """These segments are about to be replayed."""

    def step(self, attempt: int, step: int) -> None:
        """One replayed step has been compared; from any thread."""

    def verdict(self, verdict: Verdict) -> None:
        """One segment has its verdict; from any thread."""

    def event(self, event: Event) -> None:
        """What the supervisor of the resumed run tells; from any thread."""

    def sealing(self, done: int, total: int, label: str) -> None:
        """How many bytes are sealed."""
