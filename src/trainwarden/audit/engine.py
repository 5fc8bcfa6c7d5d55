"""Which segments are replayed, from where, and what follows from it.

Rules
-----
* Neighbouring segments of one attempt share one replay: a segment that begins where a matched one ended needs no
  new start.
* A replay from an attempt's own start is exact, and its difference is a verdict. A replay that starts in mid-run is
  tried in several ways; a match in any of them is a match. A difference at its very first step may be the
  start's fault, and is a verdict only when the same way of starting has matched elsewhere in this run.
* A difference is a verdict only when a second clean replay gives the very same digest in its place. Where two clean
  replays differ from each other, the job does not replay bit for bit, and that is inconclusive.
* Independent groups of segments run side by side.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from trainwarden.audit.comparing import OnStep
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import Result, replay, verdicts
from trainwarden.audit.starts import WAYS, Start, ways
from trainwarden.errors import CannotDecide, UsageError
from trainwarden.model import Diverged, Inconclusive, Location, Matched, Segment, Verdict
from trainwarden.seal.room import Room

OnVerdict = Callable[[Verdict], None]


def choose(segments: Sequence[Segment], sample: float | None, draw: random.Random) -> list[Segment]:
    """All segments, or each with probability `sample` (at least one).

    Raises:
        UsageError: `sample` is not a share.
    """
    if sample is None:
        return list(segments)
    if not 0 < sample <= 1:
        raise UsageError(f"--sample {sample} is not a share between 0 and 1")
    chosen = [s for s in segments if draw.random() < sample]
    return chosen or ([draw.choice(list(segments))] if segments else [])


def groups(segments: Sequence[Segment], jobs: int) -> list[list[Segment]]:
    """Runs of neighbouring segments of one attempt, cut further while there are fewer groups than jobs."""
    found: list[list[Segment]] = []
    for s in segments:
        if found and found[-1][-1].attempt == s.attempt and found[-1][-1].last + 1 == s.first:
            found[-1].append(s)
        else:
            found.append([s])
    while len(found) < jobs and (longest := max(found, key=len, default=[])) and len(longest) > 1:
        at, half = found.index(longest), (len(longest) + 1) // 2
        found[at : at + 1] = [longest[:half], longest[half:]]
    return found


class Audit:
    """One audit of one run."""

    def __init__(
        self,
        recorded: Recorded,
        room: Room,
        on_step: OnStep = lambda attempt, step: None,
        on_verdict: OnVerdict = lambda verdict: None,
        abort: Callable[[], bool] = lambda: False,
    ) -> None:
        """Once `abort()` is true replays end, and no further verdict is given."""
        self._recorded, self._room = recorded, room
        self._on_step, self._on_verdict = on_step, on_verdict
        self._stopped = threading.Event()
        self._abort: Callable[[], bool] = lambda: self._stopped.is_set() or abort()
        self._proved: set[Start] = {Start.START}  # ways of starting that have matched in this run

    def run(self, segments: Sequence[Segment], *, jobs: int = 1, first_only: bool = False) -> list[Verdict]:
        """Replay the segments; with `first_only` stop after the first attempt that differs."""
        work = groups(segments, jobs)
        if jobs == 1 or len(work) == 1:
            found: list[Verdict] = []
            for group in work:
                found += self._group(group, first_only)
                if first_only and any(isinstance(v, Diverged) for v in found):
                    break
            return found
        with ThreadPoolExecutor(jobs) as pool:
            try:
                return [v for part in pool.map(lambda g: self._group(g, first_only), work) for v in part]
            except BaseException:  # an interruption: the others need not end by themselves
                self._stopped.set()
                raise

    def _group(self, segments: Sequence[Segment], first_only: bool) -> list[Verdict]:
        """One replay through neighbouring segments; after a difference the rest start anew."""
        found: list[Verdict] = []
        rest = list(segments)
        while rest:
            said = self._from(rest)
            if self._abort():
                break
            for verdict in said:
                self._on_verdict(verdict)
            found += said
            rest = rest[len(said) :]
            if first_only and any(isinstance(v, Diverged) for v in said):
                break
        return found

    def _from(self, segments: Sequence[Segment]) -> list[Verdict]:
        """Verdicts on at least the first of these segments, by the first way of starting that works."""
        head = segments[0]
        doubts: list[str] = []
        for kind in ways(self._recorded, head):
            if self._abort():
                break
            try:
                result = self._replay(segments, kind)
            except CannotDecide as e:
                doubts.append(f"{kind}: {e}")
                continue
            said = verdicts(result, segments, self._recorded)
            if said and isinstance(said[0], Matched):
                self._proved.add(kind)
                return said
            if said and isinstance(said[0], Diverged) and (kind in self._proved or said[0].at.step > head.first):
                return [self._again(said[0], head.first, kind)]
            doubts += [f"{kind}: {reason}" for reason in _reasons(result)]
        if head.first != self._recorded.attempt(head.attempt).base and not self._abort():
            from_start = self._through(segments, doubts)
            if from_start:
                return from_start
        return [Inconclusive(segment=head, reasons=tuple(doubts) or ("nothing to start from",))]

    def _through(self, segments: Sequence[Segment], doubts: list[str]) -> list[Verdict]:
        """The last resort: from the attempt's start through everything before; decides only if all of that matches."""
        head = segments[0]
        base = self._recorded.attempt(head.attempt).base
        try:
            result = replay(
                self._recorded,
                self._room,
                head.attempt,
                base,
                segments[-1].last,
                Start.START,
                self._on_step,
                self._abort,
            )
        except CannotDecide as e:
            doubts.append(f"{Start.START}: {e}")
            return []
        if result.divergence is not None and result.divergence.step < head.first:
            doubts.append(f"from the start: the attempt already differs at step {result.divergence.step}")
            return []
        decided = [v for v in verdicts(result, segments, self._recorded) if not isinstance(v, Inconclusive)]
        return [self._again(v, base, Start.START) if isinstance(v, Diverged) else v for v in decided]

    def _again(self, said: Diverged, first: int, kind: Start) -> Verdict:
        """The verdict, if another clean replay computes the same in place of what was recorded."""
        segment, at = said.segment, said.at
        other = replay(self._recorded, self._room, segment.attempt, first, at.step, kind, stop=self._abort).divergence
        if other is not None and same(other, at):
            return said
        where = f"step {at.step}, rank {at.rank}, {at.subject}" + (f", {at.tensor}" if at.tensor else "")
        reason = f"two clean replays differ from each other at {where}: this job does not replay bit for bit here"
        return Inconclusive(segment=segment, reasons=(f"{reason} (trainwarden doctor says why)",), mode=said.mode)

    def _replay(self, segments: Sequence[Segment], kind: Start) -> Result:
        head = segments[0]
        last = segments[-1].last
        return replay(self._recorded, self._room, head.attempt, head.first, last, kind, self._on_step, self._abort)


def same(one: Location, other: Location) -> bool:
    """Whether two differences from the record lie at one place and have one digest there in its stead."""
    return (one.step, one.optimizer, one.rank, one.stage, one.before, one.tensor, one.replayed) == (
        *(other.step, other.optimizer, other.rank, other.stage, other.before, other.tensor, other.replayed),
    )


def _reasons(result: Result) -> Iterator[str]:
    yield from result.problems
    if result.divergence is not None:
        at = result.divergence
        where = f"step {at.step}, rank {at.rank}, {at.subject}" + (f", {at.tensor}" if at.tensor else "")
        yield f"started in mid-run ({WAYS[result.kind].mode}), it differs at once: {where}"
