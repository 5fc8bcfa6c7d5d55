"""Updates against the rules of their optimizers: slices that ranks tell, recomputed here, and logged where they differ.

Rules
-----
* Judged in a thread of its own, and NumPy is imported there when the first slices come. Neither training nor the log
  waits: when more than `MOST_WAITING` updates wait, further ones are counted as missed.
* torch's own classes are held to the rule of their name from the first update on. A class of another module, and one
  below a class with a rule, is held to it once its first `TRIAL` updates held it; else it is not checked, and said.
* An entry, `UpdateSeen`, is made at an optimizer's first judged update, for each new cause of a difference, and when
  the rank ends. Causes told are capped for each rank; all differing updates are counted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainwarden import wire
from trainwarden.model import Gap, Misfit, UpdateSeen
from trainwarden.supervise.ledger import Ledger

if TYPE_CHECKING:
    from trainwarden.supervise.slices import Outcome

TRIAL = 3
MOST_WAITING = 1024
MOST_TOLD = 8  # misfits in one entry
MOST_CAUSES = 256  # told for one optimizer of one rank
MOST_TENSORS = 100_000  # counted one by one
MOST_OPTIMIZERS = 100_000  # of all ranks
OWN = "torch.optim."
MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
"""What hostile settings and slices may raise where the rules compute with them."""
RULES = ("SGD", "Adam", "AdamW", "Lion", "Muon", "Adafactor")
_NEEDS_WHOLE = {
    "Muon": "only the momentum is compared of matrices above 16384 elements, and of smaller ones between whole looks",
    "Adafactor": "tensors above 16384 elements are not compared, and smaller ones at some updates",
}


@dataclass
class _Optimizer:
    """What is known of one optimizer of one rank."""

    kind: str
    rule: str
    trial: int
    unchecked: str = ""
    said: bool = False
    updates: int = 0
    elements: int = 0
    differing: int = 0
    step: int = -1
    tensors: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True)
class _Told:
    attempt: int
    rank: int
    step: int
    message: wire.Updated | None  # None: the rank has ended


class UpdateDesk:
    """Judges the slices that ranks tell."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._optimizers: dict[tuple[int, int, int], _Optimizer] = {}
        self._missed: dict[tuple[int, int, int], int] = {}
        self._queue: queue.Queue[_Told | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def seen(self, attempt: int, rank: int, step: int, message: wire.Updated) -> None:
        """Slices of an update have come; never blocks."""
        if self._queue.qsize() >= MOST_WAITING:
            where = (attempt, rank, message.optimizer)
            self._missed[where] = self._missed.get(where, 0) + 1
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="trainwarden-updates")
            self._thread.start()
        self._queue.put(_Told(attempt, rank, step, message))

    def left(self, attempt: int, rank: int) -> None:
        """A rank has ended in order: how much of it was compared is said once what waits is judged."""
        if self._thread is not None:
            self._queue.put(_Told(attempt, rank, -1, None))

    def close(self) -> None:
        """Judge what waits, and say how much was compared of the ranks that did not say goodbye."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(60.0)

    # -- the desk's thread

    def _work(self) -> None:
        while (told := self._queue.get()) is not None:
            if told.message is None:
                self._sum_up(told.attempt, told.rank)
                continue
            try:
                self._judge(told, told.message)
            except MALFORMED as e:
                reason = f"slices of an update could not be compared: {type(e).__name__}: {e}"[:1000]
                self._ledger.submit(Gap(attempt=told.attempt, rank=told.rank, step=told.step, reason=reason))
        for attempt, rank in dict.fromkeys(key[:2] for key in self._optimizers):
            self._sum_up(attempt, rank)

    def _judge(self, told: _Told, message: wire.Updated) -> None:
        where = (told.attempt, told.rank, message.optimizer)
        one = self._optimizers.get(where)
        if one is None or one.kind != message.kind[:300]:
            if len(self._optimizers) >= MOST_OPTIMIZERS:
                raise ValueError(f"more than {MOST_OPTIMIZERS} optimizers")
            one = self._optimizers[where] = _optimizer(message)
        one.step = told.step
        if message.unseen or not one.rule:
            one.unchecked = one.unchecked or message.unseen[:200]
            if not one.said:
                self._say(where, one)
            return
        from trainwarden.supervise.slices import judge

        outcome = judge(message, one.rule)
        if one.trial:
            self._try(where, one, outcome)
        elif outcome.elements or outcome.unchecked:
            self._count(one, outcome)
            one.unchecked = one.unchecked or outcome.unchecked
            new = [m for m in outcome.misfits if (m.tensor, m.part) not in one.told]
            if not one.said or (new and len(one.told) < MOST_CAUSES):
                one.told.update((m.tensor, m.part) for m in new)
                self._say(where, one, new)

    def _try(self, where: tuple[int, int, int], one: _Optimizer, outcome: Outcome) -> None:
        """A class that is not torch's own: does it hold the rule whose name it bears?"""
        self._count(one, outcome)
        if outcome.misfits or not outcome.elements:
            differs = outcome.unchecked or f"{outcome.misfits[0].part} of {outcome.misfits[0].tensor} do not fit"
            one.unchecked = f"its updates do not hold the rule of {one.rule}: {differs}"
            one.rule, one.trial, one.differing = "", 0, 0
            self._say(where, one)
            return
        one.trial -= 1
        if not one.trial:
            self._say(where, one)

    def _count(self, one: _Optimizer, outcome: Outcome) -> None:
        one.updates += 1
        one.elements += outcome.elements
        one.differing += bool(outcome.misfits)
        if len(one.tensors) < MOST_TENSORS:
            one.tensors.update(outcome.tensors)

    def _say(
        self, where: tuple[int, int, int], one: _Optimizer, misfits: Sequence[Misfit] = (), last: bool = False
    ) -> None:
        one.said = True
        self._ledger.submit(
            UpdateSeen(
                attempt=where[0],
                rank=where[1],
                step=one.step,
                optimizer=where[2],
                kind=one.kind,
                rule=one.rule,
                unchecked=one.unchecked,
                misfits=tuple(misfits[:MOST_TOLD]),
                more=max(0, len(misfits) - MOST_TOLD),
                updates=one.updates,
                tensors=len(one.tensors),
                elements=one.elements,
                differing=one.differing,
                missed=self._missed.get(where, 0),
                last=last,
                wall_ns=time.time_ns(),
            )
        )

    def _sum_up(self, attempt: int, rank: int) -> None:
        for where in [key for key in self._optimizers if key[:2] == (attempt, rank)]:
            self._say(where, self._optimizers.pop(where), last=True)
            self._missed.pop(where, None)


def _optimizer(message: wire.Updated) -> _Optimizer:
    kind = message.kind[:300]
    name = kind.rpartition(".")[2]
    rule = next((n for n in (name, *message.bases) if n in RULES), "")
    own = kind.startswith(OWN) and name == rule
    unchecked = _NEEDS_WHOLE.get(rule, "") if rule else f"no rule is known for {kind}"
    return _Optimizer(kind, rule, 0 if own else TRIAL, unchecked)
