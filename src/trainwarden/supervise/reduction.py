"""The reduction of gradients over ranks: what every rank tells of it, put together here, judged and logged.

Rules
-----
* An update is judged when all ranks that reduce together have told their sums (`reducing`); in a thread of its own.
* Logged are faults, once why something is not compared, and at the end how much was: the log does not grow with steps.
  The same fault of the same ranks is logged `MOST_TOLD` times and then counted.
* Keys differ from host to host, and so do the sums: ranks of other hosts are not waited for longer than `MAX_OPEN`
  updates, and an update that lacks some is counted as not compared.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from trainwarden import wire
from trainwarden.model import Gap, ReductionFault, ReductionSeen
from trainwarden.supervise.ledger import Ledger
from trainwarden.supervise.reducing import Judged

MAX_OPEN = 64
MOST_WAITING = 4_096
MOST_TOLD = 8
MOST_ROWS = 1 << 16
MOST_SUMS = 64
_MOST_TEXT = 500
_NAMED = 32

_Place = tuple[int, int, tuple[int, ...]]  # step, optimizer, ranks that reduce together


@dataclass(frozen=True)
class _Told:
    attempt: int
    rank: int
    step: int
    message: wire.Sums


@dataclass
class _Attempt:
    """What is known of one attempt."""

    open: OrderedDict[_Place, dict[int, wire.Sums]] = field(default_factory=OrderedDict)
    updates: int = 0
    parts: int = 0
    elements: int = 0
    alone: int = 0  # updates of which ranks were missing
    last: int = 0
    reasons: set[str] = field(default_factory=set)
    faults: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)
    more: int = 0


class ReductionDesk:
    """Puts the ranks' sums of each update together; `close` logs how much was compared."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._attempts: dict[int, _Attempt] = {}
        self._lost = 0
        self._queue: queue.Queue[_Told | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-reduction")
        self._thread.start()

    def seen(self, attempt: int, rank: int, step: int, message: wire.Sums) -> None:
        """A rank told of the reduction in an update.

        Raises:
            ValueError: no honest recorder tells so much.
        """
        if len(message.rows) > MOST_ROWS or any(len(row.local) > MOST_SUMS for row in message.rows):
            raise ValueError(f"{len(message.rows)} rows of sums")
        try:
            self._queue.put_nowait(_Told(attempt, rank, step, message))
        except queue.Full:
            self._lost += 1

    def close(self, timeout: float = 60.0) -> None:
        """Judge what waits, and log how much was compared."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            pass
        self._thread.join(timeout)
        if self._lost or self._thread.is_alive():
            waiting = self._lost + self._queue.qsize()
            reason = f"the sums of the reduction of {waiting} updates were not judged"
            self._ledger.submit(Gap(attempt=-1, rank=-1, step=-1, reason=reason))
        if self._thread.is_alive():
            return
        for number, attempt in sorted(self._attempts.items()):
            alone = attempt.alone or (not attempt.updates and len(attempt.open))
            if alone:
                reason = f"of {alone} updates not all ranks told here, and other hosts have other keys"
                attempt.reasons.add(reason)
                self._tell(number, attempt, attempt.last, (), reason)
            elif attempt.updates:
                self._tell(number, attempt, attempt.last, ())

    # -- the thread

    def _work(self) -> None:
        while (told := self._queue.get()) is not None:
            attempt = self._attempts.setdefault(told.attempt, _Attempt())
            attempt.last = max(attempt.last, told.step)
            if told.message.unchecked:
                self._not_checked(told.attempt, attempt, told.step, told.message.unchecked)
            elif told.rank in told.message.ranks:
                self._take_in(attempt, told)

    def _take_in(self, attempt: _Attempt, told: _Told) -> None:
        place = told.step, told.message.optimizer, told.message.ranks
        group = attempt.open.setdefault(place, {})
        group[told.rank] = told.message
        if len(group) < len(set(place[2])):
            if len(attempt.open) > MAX_OPEN:
                attempt.open.popitem(last=False)
                attempt.alone += 1
            return
        del attempt.open[place]
        judged = Judged(group)
        if judged.unchecked:
            self._not_checked(told.attempt, attempt, told.step, judged.unchecked)
            return
        attempt.updates += 1
        attempt.parts += judged.parts
        attempt.elements += judged.elements
        new = [fault for fault in judged.faults if self._is_new(attempt, fault)]
        if new:
            self._tell(told.attempt, attempt, told.step, tuple(map(_short, new)))

    def _is_new(self, attempt: _Attempt, fault: ReductionFault) -> bool:
        cause = fault.kind, fault.ranks
        told = attempt.faults[cause] = attempt.faults.get(cause, 0) + 1
        attempt.more += told > MOST_TOLD
        return told <= MOST_TOLD

    def _not_checked(self, number: int, attempt: _Attempt, step: int, reason: str) -> None:
        if reason not in attempt.reasons and len(attempt.reasons) < MOST_TOLD:
            attempt.reasons.add(reason)
            self._tell(number, attempt, step, (), reason[:_MOST_TEXT])

    def _tell(
        self, number: int, attempt: _Attempt, step: int, faults: tuple[ReductionFault, ...], unchecked: str = ""
    ) -> None:
        self._ledger.submit(
            ReductionSeen(
                attempt=number,
                step=step,
                updates=attempt.updates,
                parts=attempt.parts,
                elements=attempt.elements,
                faults=faults,
                more=attempt.more,
                unchecked=unchecked,
                wall_ns=time.time_ns(),
            )
        )


def _short(fault: ReductionFault) -> ReductionFault:
    """At most so many names that the entry stays small."""
    names = tuple(name[:_MOST_TEXT] for name in fault.tensors[:_NAMED])
    return ReductionFault(
        kind=fault.kind, ranks=fault.ranks, tensors=names, factor=fault.factor, residual=fault.residual
    )
