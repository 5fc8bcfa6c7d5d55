"""Loss masked: what a cross entropy leaves out, weighs or smooths changes in mid-attempt, or differs between ranks.

Read from `LossSeen`: the forms of a step's losses as the graph of the loss says them, and the share of targets that
they count. The share is statistics: it may suspect, and never concludes. How many targets there are for what the model
is given is exact, and was the same in every step before (`record/observers/losses.py`).

Not checked, and said once: losses of other kinds, compiled ones, and masks that the script multiplies itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from trainwarden.detect.about import about
from trainwarden.model import Confidence, Detail, Entry, Finding, LossForm, LossSeen, Severity, Stage

EARLY = 8  # steps in which new forms are what the script does
SURE = 64
MAX_RANKS = 4_096
_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


@dataclass(frozen=True)
class _First:
    index: int
    seen: LossSeen


class LossMask:
    """Compares forms within a rank and between ranks."""

    id = "loss-mask"

    def __init__(self) -> None:
        self._ranks: OrderedDict[tuple[int, int], _First] = OrderedDict()
        self._attempts: OrderedDict[int, _First] = OrderedDict()
        self._unseen: set[str] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        return list(self._judge(index, entry)) if isinstance(entry, LossSeen) else ()

    def finish(self) -> Iterable[Finding]:
        return ()

    def _judge(self, index: int, entry: LossSeen) -> Iterator[Finding]:
        if entry.low >= 0:
            yield _left(index, entry)
            return
        if entry.usual >= 0:
            yield _fewer(index, entry)
            return
        if entry.unseen and entry.unseen not in self._unseen and len(self._unseen) < MAX_RANKS:
            self._unseen.add(entry.unseen)
            yield _unchecked(index, entry)
        if not entry.forms:
            return
        place = (entry.attempt, entry.rank)
        first = self._ranks.get(place)
        if first is None:
            self._ranks[place] = _First(index, entry)
            if len(self._ranks) > MAX_RANKS:
                self._ranks.popitem(last=False)
            yield from self._beside(index, entry)
        elif entry.seen >= EARLY:
            yield _changed(first, index, entry)

    def _beside(self, index: int, entry: LossSeen) -> Iterator[Finding]:
        """A rank's first forms against those of the first rank that told any at the same step."""
        first = self._attempts.setdefault(entry.attempt, _First(index, entry))
        if len(self._attempts) > MAX_RANKS:
            self._attempts.popitem(last=False)
        same_step = first.seen.step == entry.step and first.seen.rank != entry.rank
        if same_step and first.seen.forms != entry.forms:
            yield _apart(first, index, entry)


def _words(forms: tuple[LossForm, ...]) -> str:
    return " and ".join(
        f"ignore_index {f.ignore_index}, reduction {_REDUCTIONS.get(f.reduction, f.reduction)}"
        f"{', class weights' if f.weighted else ''}{', label smoothing' if f.smoothing else ''}"
        for f in forms
    )


_finding = partial(about, LossMask.id, Stage.ACTIVATIONS)


def _changed(first: _First, index: int, entry: LossSeen) -> Finding:
    return _finding(
        (first.index, index),
        entry,
        Severity.MEDIUM,
        Confidence.MEDIUM if entry.seen >= SURE else Confidence.LOW,
        f"Rank {entry.rank} computes its loss with {_words(entry.forms)} from step {entry.step} on; it began with "
        f"{_words(first.seen.forms)}.",
        "What the loss counts stays as it was.",
        ("the script has several losses and computes this one for the first time (an auxiliary task, a second phase)",),
    )


def _apart(first: _First, index: int, entry: LossSeen) -> Finding:
    return _finding(
        (first.index, index),
        entry,
        Severity.MEDIUM,
        Confidence.MEDIUM,
        f"Rank {entry.rank} computes its loss with {_words(entry.forms)}, rank {first.seen.rank} with "
        f"{_words(first.seen.forms)}.",
        "Ranks compute one loss.",
        ("the ranks train different tasks or stages on purpose",),
        ranks=tuple(sorted((first.seen.rank, entry.rank))),
    )


def _left(index: int, entry: LossSeen) -> Finding:
    return _finding(
        (index,),
        entry,
        Severity.LOW,
        Confidence.LOW,
        f"The loss of rank {entry.rank} counts {entry.counted:.0%} of its targets since step {entry.step}; it was "
        f"{entry.low:.0%} to {entry.high:.0%} in the steps before.",
        "The share of targets that a loss counts stays in its band.",
        ("the data of these steps are of another kind (longer padding, another mixture)",),
    )


def _fewer(index: int, entry: LossSeen) -> Finding:
    return _finding(
        (index,),
        entry,
        Severity.MEDIUM,
        Confidence.LOW,
        f"The loss of rank {entry.rank} has {entry.per_input:.5g} targets for each element of the model's input since "
        f"step {entry.step}; it always had {entry.usual:.5g}.",
        "A loss has as many targets for what the model is given as before.",
        ("the script leaves some outputs out of its loss on purpose in these steps",),
    )


def _unchecked(index: int, entry: LossSeen) -> Finding:
    return _finding(
        (index,),
        entry,
        Severity.INFO,
        Confidence.HIGH,
        f"What the loss of rank {entry.rank} leaves out was not checked: {entry.unseen}.",
        "The graph of the loss shows a cross entropy or a negative log-likelihood.",
        ("the job trains on a loss of another kind",),
    )
