"""Sees that a run stands still while its ranks live, and asks each where it stands.

Rules
-----
* A standstill: no rank has completed a step for `stall_seconds`, for `MULTIPLE` times the usual time between steps, and
  for half as long again as any pause that ended by itself. Before the first step it is ten times `stall_seconds`.
* A silent rank: its peers have gone on by `AHEAD` steps and it has told nothing for `stall_seconds` and for `MULTIPLE`
  usual steps.
* Each standstill is one entry. Ranks are asked for their stacks; whoever does not answer within `PATIENCE` seconds is
  described by /proc alone. What the rank says of itself is a claim, what /proc says is the kernel's.
"""

from __future__ import annotations

import time
from collections import deque

from trainwarden.model import RankSeen, Stalled
from trainwarden.supervise import proc
from trainwarden.supervise.monitors.interface import Host
from trainwarden.supervise.presence import Live

MULTIPLE = 20
AHEAD = 8
PATIENCE = 2.0
SPAN = 0.5  # seconds of a look: long enough to tell computing from waiting
_MOST_ASKED = 64  # ranks whose stacks are asked for and told
_WAITS = ("/torch/distributed/", "/torch/nn/parallel/distributed.py")
_WAITING_PART = "reduction"


class Stalls:
    """Watches the newest attempt's steps."""

    name = "stalls"

    def __init__(self, host: Host) -> None:
        self._host = host
        self.every = min(1.0, host.stall_seconds / 4)
        self._attempt = -1
        self._steps = 0
        self._since = 0.0  # when the newest step was completed
        self._times: deque[float] = deque(maxlen=64)  # seconds a step, as seen at each look
        self._longest = 0.0
        self._told = False
        self._silent: set[int] = set()
        self._token = 0

    def look(self, now: float) -> None:
        ranks = self._host.presence.ranks()
        if not ranks:
            return
        self._follow(ranks, now)
        if not self._told and now - self._since > self._patience():
            self._told = True
            self._tell("stall", ranks, now - self._since)
        if self._steps:
            self._look_for_silence(ranks, now)

    def _follow(self, ranks: list[Live], now: float) -> None:
        """Take in how far the ranks are."""
        attempt, steps = ranks[0].attempt, max(r.reached for r in ranks)
        newest = max(r.moved for r in ranks)
        if attempt != self._attempt:
            self._attempt, self._steps, self._since, self._told = attempt, 0, newest, False
            self._silent.clear()
        if steps > self._steps:
            if self._steps:
                self._times.append((newest - self._since) / (steps - self._steps))
                self._longest = max(self._longest, newest - self._since)
            self._steps, self._since, self._told = steps, newest, False

    def _usual(self) -> float:
        times = sorted(self._times)
        return times[len(times) // 2] if times else 0.0

    def _patience(self) -> float:
        least = self._host.stall_seconds
        if not self._steps:
            return 10 * least
        return max(least, MULTIPLE * self._usual(), 1.5 * self._longest if self._longest > least else 0.0)

    def _look_for_silence(self, ranks: list[Live], now: float) -> None:
        patience = max(self._host.stall_seconds, MULTIPLE * self._usual())
        for live in ranks:
            silent = self._steps - live.reached >= AHEAD and now - live.moved > patience
            if silent and live.rank not in self._silent:
                self._silent.add(live.rank)
                self._tell("silent", [live], now - live.moved)

    def _tell(self, kind: str, ranks: list[Live], seconds: float) -> None:
        ranks = sorted(ranks, key=lambda r: r.reached)[:_MOST_ASKED]
        self._token += 1
        before = {r.rank: proc.stat(r.pid) for r in ranks}
        begin = time.monotonic()
        self._host.presence.ask(ranks, self._token, PATIENCE)
        time.sleep(max(0.0, SPAN - (time.monotonic() - begin)))
        span = time.monotonic() - begin
        seen = tuple(self._seen(r, before[r.rank], span) for r in ranks)
        self._host.submit(
            Stalled(
                kind=kind,
                attempt=self._attempt,
                step=self._steps if kind == "stall" else ranks[0].reached,
                seconds=round(seconds, 3),
                usual_seconds=round(self._usual(), 3),
                ranks=tuple(sorted(seen, key=lambda s: s.rank)),
                wall_ns=time.time_ns(),
            )
        )

    def _seen(self, live: Live, before: proc.Stat | None, span: float) -> RankSeen:
        answer = live.answer
        trains = next((t for t in answer.threads if t.trains), None) if answer else None
        thread = trains.native if trains and trains.native > 0 else live.pid
        now, task = proc.stat(live.pid), proc.stat(live.pid, thread)
        frames = trains.frames if trains else ()
        part = answer.part[:32] if answer else ""
        state = task.state if task else ""
        return RankSeen(
            rank=live.rank,
            pid=live.pid,
            reached=live.reached,
            answered=answer is not None,
            state=state,
            waits_in=proc.waits_in(live.pid, thread) if state in ("S", "D") else "",
            cpu_share=round(max(0.0, now.cpu - before.cpu) / span, 3) if now and before and span > 0 else 0.0,
            part=part,
            collective=part == _WAITING_PART or any(w in f.file for f in frames[:1] for w in _WAITS),
            frames=frames,
            unsealed=proc.unsealed(frames, self._host.is_sealed),
            stopped_by=self._host.stopped_by(live.pid) if state in ("T", "t") else None,
        )
