"""Replays steps of one attempt and compares them with the record as they arrive.

The start that both sides share is prepared (`starts`), the ranks run (`runner`), each step is compared when every
rank's record of it has come (`compare`), and each checkpoint file when it is written. The first difference stops
the replay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from trainwarden.audit import given, runner
from trainwarden.audit.begun import begun
from trainwarden.audit.compare import Seen, add, began_differently, coverage, first_difference
from trainwarden.audit.contents import content_digest, same_but_for_places
from trainwarden.audit.recorded import Placed, Recorded
from trainwarden.audit.starts import GIVEN_SETTINGS, WAYS, Way, prepare
from trainwarden.audit.starts import Start as Start
from trainwarden.config import load_config
from trainwarden.errors import CannotDecide
from trainwarden.model import (
    CheckpointSaved,
    Coverage,
    Detail,
    Diverged,
    Inconclusive,
    Location,
    Matched,
    Segment,
    Stage,
    StepRecord,
    Verdict,
)
from trainwarden.seal.room import Room, Workspace, new_workspace

OnStep = Callable[[int, int], None]
"""Called with (attempt, step) whenever a step has been compared."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one replay showed: the steps that matched, the first difference, and what went wrong if anything."""

    kind: Start
    matched: tuple[int, ...]
    divergence: Location | None
    coverage: dict[int, Coverage]  # step → coverage
    rewritten: dict[int, list[str]]  # last step before a checkpoint → recorded digests of files written again
    problems: tuple[str, ...]
    resumed: bool  # the script loaded the checkpoint that it was given, where it was given one
    seconds: float


class _Written(NamedTuple):
    """A file that the replay wrote again after `done` steps: the recorded one, and the digests of both contents."""

    done: int
    old: CheckpointSaved
    was: str
    now: str


class _Comparison:
    """Collects replayed records until every recorded rank's is there, then compares."""

    def __init__(self, recorded: Recorded, attempt: int, base: int, way: Way, last: int, on_step: OnStep) -> None:
        self._recorded, self._attempt, self._base, self._way = recorded, attempt, base, way
        self._last, self._on_step = last, on_step
        self._waiting: dict[tuple[int, int], dict[int, Seen]] = {}
        self._updates = recorded.updates(attempt)
        self._left: dict[tuple[int, int], Detail | None] = {}  # (rank, optimizer) → the weights it left last
        self.matched: dict[int, Coverage] = {}
        self._left_out = {key for key in self._updates if way.first <= key[0] <= last}  # not compared yet
        self.divergence: Location | None = None
        self.details: dict[tuple[int, int], dict[int, Seen]] = {}
        self.keep: int | None = None
        self.rewritten: dict[int, list[str]] = {}  # last step before a checkpoint → digests of equal files
        self._files: list[_Written] = []  # not decided yet

    def step(self, seen: Seen) -> None:
        step = seen.record.step + self._base
        seen = Seen(
            record=msgspec.structs.replace(seen.record, step=step), details=seen.details, start=self._begun(step, seen)
        )
        key = (step, seen.record.optimizer)
        if self.keep == step:
            self.details.setdefault(key, {})[seen.record.rank] = seen
        if step < self._way.first or step > self._last or self.divergence is not None:
            return
        records = self._updates.get(key)
        if records is None:
            return
        waiting = self._waiting.setdefault(key, {})
        waiting[seen.record.rank] = seen
        if set(records) <= set(waiting):
            self._compare(key, [self._claimed(r, waiting[rank]) for rank, r in sorted(records.items())], waiting)
            del self._waiting[key]

    def _begun(self, step: int, seen: Seen) -> Detail | None:
        """The weights that a replayed update began with, where the record says others."""
        place = seen.record.rank, seen.record.optimizer
        left = self._left.get(place)
        self._left[place] = seen.details.get(Stage.WEIGHTS)
        old = self._updates.get((step, seen.record.optimizer), {}).get(seen.record.rank)
        differently = old is not None and began_differently(old, seen.record)
        return begun(self._recorded.key, seen.record, left) if differently else None

    def _claimed(self, record: StepRecord, replayed: Seen) -> Seen:
        seen = self._recorded.seen(record)
        if not began_differently(record, replayed.record):
            return seen
        return msgspec.structs.replace(seen, start=self._recorded.begun(record))

    def _compare(self, key: tuple[int, int], old: Sequence[Seen], waiting: Mapping[int, Seen]) -> None:
        new = [waiting[s.record.rank] for s in old]
        self.divergence = first_difference(old, new)
        if self.divergence is None:
            step = key[0]
            self._left_out.discard(key)
            self.matched[step] = add(self.matched.get(step, Coverage()), self._covered(new, old))
            self._on_step(self._attempt, step)
            self._settle()

    @property
    def whole(self) -> tuple[int, ...]:
        """The steps of which every optimizer's update was compared and is equal."""
        return tuple(sorted(self.matched.keys() - {step for step, _ in self._left_out}))

    def _covered(self, new: Sequence[Seen], old: Sequence[Seen]) -> Coverage:
        covered = coverage(new, old)
        if self._way.kind not in GIVEN_SETTINGS:
            return covered
        given = {str(Stage.HYPERPARAMETERS): "given by the record where a replay begins by substitution, not checked"}
        digests = sum(s.record.stages[Stage.HYPERPARAMETERS].tensors for s in new)
        return msgspec.structs.replace(covered, digests=covered.digests - digests, unseen=covered.unseen | given)

    def saved(self, saving: runner.Saving, space: Workspace) -> None:
        """Compare a checkpoint file that the replay wrote with the recorded one of the same place.

        It is read now, since it may be overwritten, and counts when the steps before it are compared: ranks tell on
        connections of their own, and one's file can be told of before another's step, which may be the cause.
        """
        done = self._base + self._way.plans[0].first - self._way.plans[0].warmup + saving.done
        if self.divergence is not None or not saving.path.is_file():
            return
        for path, old in self._recorded.saved_by(self._attempt, done).items():
            if space.map_path(path) != str(saving.path) or old.format == "other":
                continue
            if not self._recorded.store.has(old.digest):
                continue
            kept = self._recorded.store.object_path(old.digest)
            try:
                was, now = content_digest(kept, old.format), content_digest(saving.path, old.format)
            except ValueError:
                continue  # not what its format says: it is not found to be reproduced
            if was != now and same_but_for_places(kept, saving.path, _places(space)):
                now = was
            self._files.append(_Written(done, old, was, now))
        self._settle()

    def _settle(self, *, all_told: bool = False) -> None:
        """Decide on the files that stand on nothing that is still to be compared."""
        waiting, self._files = self._files, []
        for file in waiting:
            if self.divergence is not None:
                return
            if not all_told and any(step < file.done for step, _ in self._left_out):
                self._files.append(file)
            elif file.was == file.now:
                self.rewritten.setdefault(file.done - 1, []).append(file.old.digest)
            else:
                self.divergence = Location(
                    step=file.done - 1,
                    rank=file.old.rank,
                    stage=Stage.CHECKPOINT,
                    tensor=file.old.path,
                    recorded=file.was,
                    replayed=file.now,
                )

    def ended(self) -> None:
        """Nothing more is told: decide on the rest."""
        self._settle(all_told=True)


def replay(
    recorded: Recorded,
    room: Room,
    attempt: int,
    first: int,
    last: int,
    kind: Start,
    on_step: OnStep = lambda attempt, step: None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Replay steps `first … last` of an attempt from the given start and compare every step from the start on.

    `stop` ends it early from outside; what was not reached is then not decided.

    Raises:
        CannotDecide: this start is not open, or the clean room cannot be made.
    """
    way = prepare(recorded, attempt, first, last, kind)
    comparison = _Comparison(recorded, attempt, recorded.attempt(attempt).base, way, last, on_step)
    ended = _run(recorded, room, attempt, way, comparison, stop)
    problems = list(ended.problems)
    resumed = not way.files or {str(Path(p).name) for p in ended.loaded} & {Path(f.path).name for f in way.files}
    if not resumed:
        problems.append("the script did not load the checkpoint that it was given")
    return Result(
        kind=kind,
        matched=() if ended.unfit else comparison.whole,
        divergence=None if ended.unfit else comparison.divergence,
        coverage=comparison.matched,
        rewritten=comparison.rewritten,
        problems=tuple(problems),
        resumed=bool(resumed),
        seconds=ended.seconds,
    )


def rerun(
    recorded: Recorded,
    room: Room,
    attempt: int,
    step: int,
    *,
    capture: Path | None = None,
    optimizer: int = 0,
    perturbations: str = "",
) -> dict[tuple[int, int], dict[int, Seen]]:
    """Run up to and including `step` from the attempt's start; (step, optimizer) → rank → what the replay recorded.

    Raises:
        CannotDecide: the steps before `step` did not match, or the replay did not get there.
    """
    way = prepare(recorded, attempt, step, step, Start.START)
    base = recorded.attempt(attempt).base
    plans = tuple(
        msgspec.structs.replace(
            plan,
            capture_step=step - base if capture else -1,
            capture=str(capture / f"rank-{rank}") if capture else "",
            capture_optimizer=optimizer,
            perturb_step=step - base if perturbations else -1,
            perturbations=perturbations,
        )
        for rank, plan in enumerate(way.plans)
    )
    comparison = _Comparison(
        recorded,
        attempt,
        base,
        msgspec.structs.replace(way, plans=plans),
        step - 1,
        lambda attempt, step: None,
    )
    comparison.keep = step
    ended = _run(recorded, room, attempt, msgspec.structs.replace(way, plans=plans), comparison)
    if ended.unfit:
        raise CannotDecide("; ".join(ended.unfit))
    if comparison.divergence is not None:
        raise CannotDecide(f"the replay already differs at step {comparison.divergence.step}")
    if not comparison.details:
        raise CannotDecide("; ".join(ended.problems) or f"the replay never reached step {step}")
    return comparison.details


def _run(
    recorded: Recorded,
    room: Room,
    attempt: int,
    way: Way,
    comparison: _Comparison,
    stop: Callable[[], bool] = lambda: False,
) -> runner.Ended:
    space = new_workspace(room)
    try:
        for file in way.files:
            place_file(recorded, space, file)
        given.place(recorded, space)
        arguments = _resume_arguments(space, way.resumes_from) if way.resumes_from else ()
        ranks = [
            runner.Rank(
                started=started,
                env=env,
                plan=plan,
                arguments=arguments,
                resume=space.map_path(way.resumes_from) if way.resumes_from and not arguments else "",
                entropy=recorded.entropy(attempt, started.rank),
            )
            for (started, env), plan in zip(recorded.starts(attempt), way.plans, strict=True)
        ]
        every = recorded.seal.seal.comparison.activations_every
        ended = runner.run(
            ranks,
            space,
            recorded.key,
            every,
            comparison.step,
            lambda saving: comparison.saved(saving, space),
            lambda: comparison.divergence is not None or stop(),
        )
        comparison.ended()
        strayed = tuple(given.strayed(recorded, space, ended.opened))
        return msgspec.structs.replace(ended, problems=strayed + ended.problems, unfit=strayed + ended.unfit)
    finally:
        space.remove()


def place_file(recorded: Recorded, space: Workspace, file: Placed) -> None:
    """Put a file of the store at its recorded place in the workspace. Raises StoreError, StoreTampered."""
    recorded.store.check(file.digest)
    target = Path(space.map_path(file.path))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(recorded.store.object_path(file.digest), target)


def _resume_arguments(space: Workspace, place: str) -> tuple[str, ...]:
    template = load_config(None, space.cwd).replay.resume
    return tuple(word.replace("{checkpoint}", space.map_path(place)) for word in template.split())


def _places(space: Workspace) -> tuple[str, ...]:
    """What stands before the original paths in a workspace and its room (`Workspace.map_path`)."""
    return f"{space.scratch}/abs", f"{space.room.path}/root"


def verdicts(result: Result, segments: Sequence[Segment], recorded: Recorded) -> list[Verdict]:
    """What a replay says of the segments that it ran through, in order, up to where it ended.

    A segment that was not reached gets `Inconclusive` when something went wrong, nothing otherwise.
    """
    found: list[Verdict] = []
    mode = WAYS[result.kind].mode
    for segment in segments:
        steps = {s for s, _ in recorded.updates(segment.attempt) if segment.first <= s <= segment.last}
        total = Coverage()
        for step in sorted(steps):
            total = add(total, result.coverage.get(step, Coverage()))
        at = result.divergence if result.resumed else None
        if at is not None and segment.first <= at.step <= segment.last:
            found.append(Diverged(segment=segment, at=at, coverage=total, mode=mode, seconds=result.seconds))
            break
        if steps and result.resumed and steps <= set(result.matched):
            files = tuple(result.rewritten.get(segment.last, ()))
            found.append(Matched(segment=segment, coverage=total, mode=mode, seconds=result.seconds, files=files))
        elif at is None:
            reasons = result.problems or ("the replay ended before this segment",)
            found.append(Inconclusive(segment=segment, reasons=reasons, mode=mode, seconds=result.seconds))
    return found
