"""A replay beside the run differs from what the run recorded.

Fires on a `Diverged` in the log of a run that goes on: its own record of a segment is not what sealed inputs give, bit
for bit, in two clean replays. Of a resumed run the first steps are replayed as soon as they are done; whether the rest
is replayed beside it is a matter of configuration. A first replay without an answer is told once, as not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainwarden.model import (
    Confidence,
    Detail,
    Diverged,
    Entry,
    Finding,
    Inconclusive,
    Sealed,
    Severity,
    Stage,
)


class Replay:
    """Judges the verdicts that come while a run goes on."""

    id = "replay"

    def __init__(self) -> None:
        self._parent = ""
        self._told = False  # of the first replay without an answer

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        match entry:
            case Sealed():
                self._parent = entry.parent
            case Diverged():
                return (self._diverged(index, entry),)
            case Inconclusive() if self._parent and not self._told:
                self._told = True
                return (self._unknown(index, entry),)
            case _:
                pass
        return ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _diverged(self, index: int, verdict: Diverged) -> Finding:
        at = verdict.at
        run = f"The run that goes on from run {self._parent}" if self._parent else "The run"
        return Finding(
            detector=self.id,
            severity=Severity.HIGH,
            confidence=Confidence.HIGH,
            seen=f"{run} does not replay: two clean replays of step {at.step} differ from it at rank {at.rank}, "
            f"{at.words}.",
            expected="What sealed inputs give in a clean environment is what the run recorded.",
            step=at.step,
            attempt=verdict.segment.attempt,
            ranks=(at.rank,),
            stage=at.stage,
            tensor=at.tensor,
            evidence=(index,),
            benign=("something outside of the seal that differs between two hosts or two times decides the result",),
        )

    def _unknown(self, index: int, verdict: Inconclusive) -> Finding:
        where = f"steps {verdict.segment.first} to {verdict.segment.last}"
        return Finding(
            detector=self.id,
            severity=Severity.INFO,
            confidence=Confidence.HIGH,
            seen=f"Whether this resumed run replays is not known ({where}): {'; '.join(verdict.reasons)}",
            expected="The first steps of a resumed run are replayed.",
            attempt=verdict.segment.attempt,
            evidence=(index,),
        )
