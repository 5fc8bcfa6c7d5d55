"""What a recovery tells to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trainwarden.model import Verdict
from trainwarden.respond.point import Point
from trainwarden.supervise.events import Event

OnAct = Callable[[str], None]
"""Called with one sentence after each act."""

TOLD = 10  # acts of one kind that are told one by one: an upgraded package is thousands of files


def carry_out(acts: Iterable[str], on_act: OnAct, what: str) -> None:
    """Do what gives a sentence an act, and tell the first `TOLD`; of the rest how many there were (`what`)."""
    done = 0
    for sentence in acts:
        done += 1
        if done <= TOLD:
            on_act(sentence)
    if done > TOLD:
        on_act(f"{what}: {done - TOLD:,} more")


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
