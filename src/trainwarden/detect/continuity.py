"""State changed between steps: the weights that a step began with are not those that the one before ended with.

A record's `before` is the root over the weights as the step's first forward pass found them; the record before it
of the same rank, attempt and optimizer has the root of the weights that it left. Buffers are in neither: forward
passes move them (running statistics), and data-parallel wrappers copy those of rank 0. Nothing but an optimizer changes
weights in between, or it is interference (or a script that edits its weights on purpose). The tensors named are those
that the record lists as found changed: the rank's word, which only a replay checks.

Optimizer state is looked at in slices: those that an update left are read again right before the next update of the
same optimizer, and the rank tells where one is another (`StateChanged`). Slices of weights are compared so as well,
which covers big models and several optimizers. State that is emptied is told by `cleared`.

Whole roots are not compared at steps where the recorder did not look (`before` is empty), at the first step of an
attempt, after a gap, and in jobs with several optimizers, each of which records the weights it owns at other moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from trainwarden.model import Confidence, Detail, Entry, Finding, Severity, Stage, StateChanged, StepRecord

_BENIGN = (
    "the script edits weights between steps on purpose (weight clipping, averaging, re-initialisation)",
    "the script loaded a checkpoint in the middle of an attempt",
)


class Continuity:
    """Compares `before` with the same rank's record before it."""

    id = "continuity"

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], tuple[int, StepRecord]] = {}
        self._several: set[tuple[int, int]] = set()

    def observe(self, index: int, entry: Entry, detail: Mapping[Stage, Detail] | None) -> Iterable[Finding]:
        if isinstance(entry, StateChanged):
            return _slices(index, entry)
        if not isinstance(entry, StepRecord):
            return ()
        rank = (entry.attempt, entry.rank)
        last = self._last.get(rank)
        self._last[rank] = (index, entry)
        if entry.optimizer:
            self._several.add(rank)
        if last is None or rank in self._several or entry.seq != last[1].seq + 1 or not entry.before:
            return ()
        left = last[1].parameters
        if not left or left == entry.before:
            return ()
        return (_changed(last[0], last[1], index, entry),)

    def finish(self) -> Iterable[Finding]:
        return ()


def _which(record: StepRecord) -> str:
    names = sorted(record.found)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f": {names[0]}{more}" if names else ""


def _changed(before: int, last: StepRecord, index: int, record: StepRecord) -> Finding:
    return Finding(
        detector=Continuity.id,
        severity=Severity.HIGH,
        confidence=Confidence.HIGH,
        seen=f"Rank {record.rank} began step {record.step} with other weights than it had after step {last.step}"
        f"{_which(record)}.",
        expected="Between two steps nothing changes the weights.",
        step=record.step,
        attempt=record.attempt,
        ranks=(record.rank,),
        stage=Stage.WEIGHTS,
        tensor=min(record.found, default=""),
        evidence=(before, index),
        benign=_BENIGN,
        wall_ns=record.wall_ns,
    )


def _slices(index: int, note: StateChanged) -> Iterator[Finding]:
    """What an update found otherwise than the one before had left it: weights and state apart."""
    for what, names, stage in (
        ("weights", note.weights, Stage.WEIGHTS),
        ("optimizer state", note.state, Stage.OPTIMIZER_STATE),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield Finding(
                detector=Continuity.id,
                severity=Severity.MEDIUM,
                confidence=Confidence.HIGH,
                seen=f"Rank {note.rank}'s update at step {note.step} found other {what} than the update before had "
                f"left: {names[0]}{more}.",
                expected=f"Between two updates nothing changes the {what}.",
                step=note.step,
                attempt=note.attempt,
                ranks=(note.rank,),
                stage=stage,
                tensor=names[0],
                evidence=(index,),
                benign=_BENIGN,
            )
