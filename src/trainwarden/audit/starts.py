"""The ways in which a replay can get into a recorded state, and what each needs.

`START`: the attempt's own beginning; always exact. `RESUME`: the script's own resume from a recorded checkpoint.
`RESTORE`: the same, with what careless checkpoints lack (generators, loader position, scaler) put back from the
recorder's sidecar. `SUBSTITUTE`: the script runs one step of its own, then a full snapshot takes the place of its
state. `AHEAD`: the same twice in a row, for scripts that fetch a batch one step ahead.
What is put back from sidecars and snapshots is the suspect's word: it is given, and everything computed from it is
checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from trainwarden.audit.plan import Plan
from trainwarden.audit.recorded import Placed, Recorded
from trainwarden.errors import CannotDecide
from trainwarden.lineage import resume_place
from trainwarden.model import Segment
from trainwarden.record.structure import read_structure

_Read = Callable[[Path], dict[str, Any]]


class Start(StrEnum):
    START = "start"
    RESUME = "resume"
    RESTORE = "restore"
    SUBSTITUTE = "substitute"
    AHEAD = "ahead"


class Manner(NamedTuple):
    """A way of starting: what a verdict calls it, and in words."""

    mode: str
    words: str


WAYS = {
    Start.START: Manner("start", "from the start"),
    Start.RESUME: Manner("resume", "from the middle, by the script's own resume"),
    Start.RESTORE: Manner("resume", "from the middle, by its resume and what the recorder kept beside it"),
    Start.SUBSTITUTE: Manner("substitution", "from the middle, by substitution of the recorded state"),
    Start.AHEAD: Manner("substitution", "from the middle, by substitution twice (batches fetched one step ahead)"),
}
GIVEN_SETTINGS = (Start.SUBSTITUTE, Start.AHEAD)
"""Ways in which the recorded settings of parameter groups are given, since the script's own counter is not."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A prepared start: files to place, a plan per rank, and what the script is told to resume from, if anything.

    `first` is the first step that the replay can be compared from.
    """

    kind: Start
    files: tuple[Placed, ...]
    plans: tuple[Plan, ...]
    resumes_from: str
    first: int


def prepare(recorded: Recorded, attempt: int, first: int, last: int, kind: Start) -> Way:
    """Prepare a replay of steps `first … last` (both included, counted over the whole job) of an attempt.

    Raises:
        CannotDecide: this way is not open: no checkpoint, sidecar or snapshot at the right place.
    """
    match kind:
        case Start.START:
            way = _from_start(recorded, attempt, last)
        case Start.RESUME | Start.RESTORE:
            way = _from_checkpoint(recorded, attempt, first, last, kind)
        case Start.SUBSTITUTE | Start.AHEAD:
            way = _from_snapshot(recorded, attempt, first, last, kind)
    updates = len([key for key in recorded.updates(attempt) if key[0] == last])
    plans = tuple(msgspec.structs.replace(plan, updates=updates) for plan in way.plans)
    return msgspec.structs.replace(way, plans=plans)


def plan_alone(recorded: Recorded, number: int, rank: int, done: int, last: int, *, ahead: bool) -> Plan:
    """The plan of one rank without its peers, from its state after `done` of the attempt's own steps up to step `last`.

    Raises:
        CannotDecide: a snapshot is missing or cannot be read.
    """
    base = recorded.attempt(number).base
    own, first = recorded.snapshots(number, rank, "full"), recorded.snapshots(number, 0, "full")
    if missing := [d for d in (done, done + 1)[: 2 if ahead else 1] if d not in own]:
        raise CannotDecide(f"rank {rank} kept no state after {missing[0]} of its steps")
    read = functools.cache(_read)
    try:
        weights = [_weights(first, own, d, read) for d in (done, done + 1)[: 2 if ahead else 1]]
    except KeyError as e:
        raise CannotDecide(f"rank 0 kept no state after {e} of its steps") from None
    updates = recorded.updates(number)
    hyper = {
        f"{step - base}/{optimizer}": ranks[rank].hyper
        for (step, optimizer), ranks in updates.items()
        if base + done <= step <= last and rank in ranks
    }
    return Plan(
        first=done,
        last=last - base,
        updates=len([key for key, ranks in updates.items() if key[0] == last and rank in ranks]),
        warmup=1,
        complement=str(own[done]),
        weights=weights[0],
        again=str(own[done + 1]) if ahead else "",
        again_weights=weights[-1] if ahead else "",
        hyper=hyper,
        epochs=_epochs(recorded, number, rank, read),
        layouts=_layouts(read(own[done])),
    )


def ways(recorded: Recorded, segment: Segment) -> list[Start]:
    """The ways to try for a segment, in order."""
    attempt = recorded.attempt(segment.attempt)
    if segment.first == attempt.base:
        return [Start.START]
    return [Start.RESUME, Start.RESTORE, Start.SUBSTITUTE, Start.AHEAD]


def _from_start(recorded: Recorded, number: int, last: int) -> Way:
    attempt = recorded.attempt(number)
    world = len(recorded.starts(number))
    return Way(
        kind=Start.START,
        files=tuple(recorded.start_files(attempt)),
        plans=(Plan(first=0, last=last - attempt.base),) * world,
        resumes_from="",
        first=attempt.base,
    )


def _from_checkpoint(recorded: Recorded, number: int, first: int, last: int, kind: Start) -> Way:
    attempt = recorded.attempt(number)
    files = recorded.checkpoint_files(number, first)
    if not files:
        raise CannotDecide(f"no checkpoint of the script's own at step {first}")
    done = first - attempt.base
    read = functools.cache(_read)
    plans = []
    for start, _ in recorded.starts(number):
        side = recorded.snapshots(number, start.rank, "side").get(done)
        state = read(side) if side else {}
        if kind is Start.RESTORE and not side:
            raise CannotDecide(f"rank {start.rank} left no sidecar at step {first}")
        plans.append(
            Plan(
                first=done,
                last=last - attempt.base,
                complement=str(side) if kind is Start.RESTORE else "",
                epochs=_epochs(recorded, number, start.rank, read),
                layouts=_layouts(state),
            )
        )
    place = resume_place(list(recorded.saved_by(number, first).values()))
    return Way(kind=kind, files=tuple(files), plans=tuple(plans), resumes_from=place, first=first)


def _from_snapshot(recorded: Recorded, number: int, first: int, last: int, kind: Start) -> Way:
    attempt = recorded.attempt(number)
    starts = recorded.starts(number)
    ahead = 1 if kind is Start.AHEAD else 0
    full = [recorded.snapshots(number, s.rank, "full") for s, _ in starts]
    usable = [d for d in full[0] if d + ahead <= first - attempt.base and all(d in f and d + ahead in f for f in full)]
    if not usable:
        raise CannotDecide(
            f"no full snapshot at or before step {first}",
            hint="the recorder writes one every [record] snapshot_every steps and keeps the newest",
        )
    done = max(usable)
    hyper = _hyper(recorded, number, attempt.base)
    read = functools.cache(_read)
    plans = tuple(
        Plan(
            first=done,
            last=last - attempt.base,
            warmup=1,
            complement=str(full[i][done]),
            weights=_weights(full[0], full[i], done, read),
            again=str(full[i][done + 1]) if ahead else "",
            again_weights=_weights(full[0], full[i], done + 1, read) if ahead else "",
            hyper=hyper[s.rank],
            epochs=_epochs(recorded, number, s.rank, read),
            layouts=_layouts(read(full[i][done])),
        )
        for i, (s, _) in enumerate(starts)
    )
    return Way(
        kind=kind,
        files=tuple(recorded.start_files(attempt)),
        plans=plans,
        resumes_from="",
        first=attempt.base + done + ahead,
    )


def _hyper(recorded: Recorded, number: int, base: int) -> dict[int, dict[str, tuple[dict[str, Any], ...]]]:
    found: dict[int, dict[str, tuple[dict[str, Any], ...]]] = {}
    for (step, optimizer), ranks in recorded.updates(number).items():
        for rank, record in ranks.items():
            found.setdefault(rank, {})[f"{step - base}/{optimizer}"] = record.hyper
    return found


def _epochs(recorded: Recorded, number: int, rank: int, read: _Read) -> tuple[dict[str, Any], ...]:
    """The epochs that the rank's loaders went through, from its newest snapshot."""
    newest = recorded.snapshots(number, rank, "side") | recorded.snapshots(number, rank, "full")
    return tuple(read(newest[max(newest)])["epochs"]) if newest else ()


def _layouts(state: dict[str, Any]) -> tuple[tuple[int, tuple[tuple[str, ...], ...]], ...]:
    return tuple((step, tuple(tuple(names) for names in layout)) for step, layout in state.get("layouts", ()))


def _weights(first: dict[int, Path], own: dict[int, Path], done: int, read: _Read) -> str:
    """The snapshot that holds a rank's weights: its own, or rank 0's where DDP keeps replicas."""
    return str(own[done] if "weights" in read(own[done]) else first[done])


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_structure(path)
    except (OSError, ValueError) as e:
        raise CannotDecide(f"the snapshot {path} cannot be read: {e}") from e
