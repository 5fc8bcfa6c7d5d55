"""Replays steps of one attempt and compares them with the record as they arrive.

The start that both sides share is prepared (`starts`), the ranks run (`runner`), each step is compared when every
rank's record of it has come (`compare`), and each checkpoint file when it is written. The first difference stops
the replay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from trainwarden.audit import given, runner
from trainwarden.audit.compare import Seen, add
from trainwarden.audit.comparing import Comparison, OnStep
from trainwarden.audit.recorded import Placed, Recorded
from trainwarden.audit.starts import WAYS, Way, prepare
from trainwarden.audit.starts import Start as Start
from trainwarden.config import load_config
from trainwarden.errors import CannotDecide
from trainwarden.model import (
    Coverage,
    Diverged,
    Inconclusive,
    Location,
    Matched,
    Segment,
    Verdict,
)
from trainwarden.seal.room import Room, Workspace, new_workspace


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
    comparison = Comparison(recorded, attempt, recorded.attempt(attempt).base, way, last, on_step)
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
    samples: bool = False,
    seek: Mapping[int, str] = {},
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
            capture_samples=samples,
            seek=seek.get(rank, ""),
            perturb_step=step - base if perturbations else -1,
            perturbations=perturbations,
        )
        for rank, plan in enumerate(way.plans)
    )
    comparison = Comparison(
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
    comparison: Comparison,
    stop: Callable[[], bool] = lambda: False,
) -> runner.Ended:
    space = new_workspace(room)
    try:
        ended = runner.run(
            ranks_of(recorded, attempt, way, space),
            space,
            recorded.key,
            recorded.seal.seal.comparison.activations_every,
            comparison.step,
            lambda saving: comparison.saved(saving, space),
            lambda: comparison.divergence is not None or stop(),
        )
        comparison.ended()
        strayed = tuple(given.strayed(recorded, space, ended.opened))
        return msgspec.structs.replace(ended, problems=strayed + ended.problems, unfit=strayed + ended.unfit)
    finally:
        space.remove()


def ranks_of(recorded: Recorded, attempt: int, way: Way, space: Workspace) -> list[runner.Rank]:
    """The ranks of an attempt, to be started in a workspace in which the files of this way now lie.

    Raises:
        CannotDecide, StoreError, StoreTampered: what a rank needs cannot be had.
    """
    place_inputs(recorded, way, space)
    arguments = _resume_arguments(space, way.resumes_from) if way.resumes_from else ()
    return [
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


def place_inputs(recorded: Recorded, way: Way, space: Workspace) -> None:
    """Put what a run began with and read, as far as the record knows it by now, at its places in the workspace.

    Raises:
        StoreError, StoreTampered: a file cannot be read from the store.
    """
    for file in way.files:
        place_file(recorded, space, file)
    given.place(recorded, space)


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
