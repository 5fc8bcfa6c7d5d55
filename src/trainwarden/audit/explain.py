"""Finds the cause of a divergence: the first differing step is computed again under each hypothesis of the catalogue.

Rules
-----
* Proof is one thing: a value computed from clean captures, or by a re-execution in clean processes, has the
  recorded (tampered) digest bit for bit. Everything else is excluded or not tried, and listed as such.
* When nothing reproduces the digest the cause is None: "cause not established" is an answer.
* Cheap first: functions of captured values, then re-executions under one change, then files from quarantine.
* Captures and the re-runner are trusted as far as the sealed inputs they come from; records, recorded digests
  and quarantined files are the suspect's. A quarantined file is only ever executed by the re-runner, in its
  processes, and never opened here.
* A numeric cause and a file are independent proofs: the first says what was done, the second by which bytes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainwarden.audit.capture import Capture
from trainwarden.audit.hypotheses import BEFORE_THE_STEP, HYPOTHESES, RERUNS
from trainwarden.audit.hypotheses.base import (
    Answer,
    BatchHistory,
    Budget,
    Details,
    Idea,
    Question,
    not_tried,
    retarget,
)
from trainwarden.audit.hypotheses.executions import (
    FILE,
    FILES_TOGETHER,
    Agreement,
    Progress,
    QuarantinedFile,
    Rerunner,
    Work,
    execute,
    plain,
    try_files,
)
from trainwarden.audit.perturb import Assign, Perturbation
from trainwarden.errors import CannotDecide
from trainwarden.model import STAGES, Explanation, Hypothesis, Location, Outcome, Stage, StepRecord

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FILE",
    "FILES_TOGETHER",
    "BatchHistory",
    "Details",
    "Progress",
    "QuarantinedFile",
    "Rerunner",
    "explain",
]

SEARCH_SECONDS = 60.0
IDEA_SECONDS = 8.0  # for one hypothesis
LATER_SECONDS = 2.0  # for one hypothesis once another has reproduced the digest
MAX_RERUNS = 16
CONFIRMATIONS = 3


def explain(
    at: Location,
    captures: Mapping[int, Capture],
    recorded: Details,
    records: Mapping[int, StepRecord],
    history: BatchHistory,
    rerun: Rerunner | None,
    quarantined: Sequence[QuarantinedFile],
    key: bytes,
    progress: Progress | None = None,
    *,
    kept_batches: Mapping[int, Path] | None = None,
    budget_s: float = SEARCH_SECONDS,
    max_reruns: int = MAX_RERUNS,
) -> Explanation:
    """Try every hypothesis on the diverging step and say which reproduces what was recorded, bit for bit.

    `recorded` and `records` are those of step `at.step` and optimizer `at.optimizer`, all ranks; `budget_s` bounds
    the search over captured values and `max_reruns` the re-executions, files included.

    Raises:
        CannotDecide: a capture or a kept batch cannot be read.
    """
    begun = time.monotonic()
    at = _cause_first(Question(at, captures, recorded, records, history, key))
    q = Question(at, captures, recorded, records, history, key, kept_batches)
    work = Work(q, rerun, progress, len(HYPOTHESES) + len(RERUNS) + len(quarantined), max_reruns)
    answers = _search(work, budget_s)
    work.spare = min(len(quarantined) + (len(quarantined) > 1), max(1, max_reruns // 2))
    hypotheses, cause = _judge(work, answers)
    at = _place(at, cause, answers)
    for again in RERUNS:
        listed = execute(work, again, proved=cause)
        cause = cause or (again.name if listed.outcome is Outcome.REPRODUCED else None)
        hypotheses.append(listed)
    work.spare = 0
    files, file = try_files(work, quarantined)
    hypotheses += files
    if cause is None and file:
        cause = FILE
    seconds = round(time.monotonic() - begun, 3)
    return Explanation(at=at, hypotheses=tuple(hypotheses), cause=cause, file=file, seconds=seconds)


def _cause_first(q: Question) -> Location:
    """The located divergence, or another rank's earlier stage of the same step that it follows from.

    Ranks meet in the reduction, so a difference after it may come from another rank before it. A stage counts only
    if the located rank's own captured values have the recorded digests there, as the replay found.
    """
    if q.at.order < STAGES.index(Stage.REDUCED_GRADIENTS):
        return q.at
    for stage in STAGES[: STAGES.index(q.at.stage)]:
        differing = q.differing(stage)
        if differing and all(t.rank != q.at.rank for t in differing):
            rank, name = differing[0]
            return Location(
                step=q.at.step,
                rank=rank,
                stage=stage,
                tensor=name,
                optimizer=q.at.optimizer,
                recorded=q.claimed(rank, stage)[name].hex(),
                replayed=q.clean_digests(rank, stage)[name].hex(),
                tensors=tuple(t.name for t in differing if t.rank == rank),
            )
    return q.at


def _place(at: Location, cause: str | None, answers: Sequence[tuple[Idea, Answer]]) -> Location:
    """Where the cause lies: what a rank does in the reduction, say, shows on all ranks alike."""
    return next((a.place for idea, a in answers if idea.name == cause and a.place is not None), at)


# --------------------------------------------------------------------------- functions of captured values


def _search(work: Work, budget_s: float) -> list[tuple[Idea, Answer]]:
    end = time.thread_time() + budget_s
    answers: list[tuple[Idea, Answer]] = []
    most = IDEA_SECONDS
    for idea in HYPOTHESES:
        work.begin(idea.name)
        answer = _ask(work.q, idea, min(most, end - time.thread_time()), budget_s)
        answers.append((idea, answer))
        most = LATER_SECONDS if answer.found else most
    return answers


def _ask(q: Question, idea: Idea, seconds: float, budget_s: float) -> Answer:
    if q.at.before and idea.name not in BEFORE_THE_STEP:
        return not_tried("asked only of what a step computes, and the weights differ before this one begins")
    if q.at.stage not in idea.stages:
        stages = ", ".join(s for s in STAGES if s in idea.stages)
        return not_tried(f"asked only where the first difference is at {stages}")
    if q.unusable:
        return not_tried(q.unusable)
    if seconds <= 0:
        return not_tried(f"the {budget_s:.0f} s for the search were spent")
    try:
        return idea.search(q, Budget(seconds))
    except RuntimeError as e:  # torch's, of values that this search was not made for: nothing is excluded by it
        return not_tried(f"it could not be computed from these values: {str(e).splitlines()[0][:200]}")


def _judge(work: Work, answers: Sequence[tuple[Idea, Answer]]) -> tuple[list[Hypothesis], str | None]:
    """Confirm what was found by re-execution, best first, and write every answer down."""
    found = [(idea, answer) for idea, answer in answers if answer.found]
    found.sort(key=lambda pair: -len(pair[1].covered))  # stable: the catalogue's order among equals
    cause = found[0][0].name if found else None
    notes: dict[str, str] = {}
    for idea, answer in found[:CONFIRMATIONS]:
        seen, notes[idea.name] = _confirm(work, answer)
        if seen is not None and seen.whole:
            cause = idea.name
            break
        if work.rerunner is None:
            break
    return [_written(work.q, idea, answer, notes.get(idea.name, "")) for idea, answer in answers], cause


def _confirm(work: Work, answer: Answer) -> tuple[Agreement | None, str]:
    """Execute the step again with what was found, and what to say about it."""
    if work.rerunner is None:
        return None, ""
    at = work.q.at
    with tempfile.TemporaryDirectory(prefix="trainwarden-explain-") as folder:
        try:
            try:
                seen = work.execute(answer.perturbations or _changes(work.q, answer, Path(folder)))
            except CannotDecide:
                if not answer.perturbations or not answer.solved:
                    raise
                seen = work.execute(_changes(work.q, answer, Path(folder)))
        except CannotDecide as e:
            return None, f"; it was not confirmed by executing the step again: {e}"
    if seen.whole:
        return seen, f", and with it every one of the {seen.recorded} recorded digests of step {at.step}"
    return seen, (
        f"; executed again with it, {seen.equal} of the {seen.recorded} recorded digests of step {at.step} "
        f"are reproduced, the first that is not: {seen.first}"
    )


def _changes(q: Question, answer: Answer, folder: Path) -> tuple[Perturbation, ...]:
    """The perturbations that bring the solved values about; computed values travel in a file."""
    if not answer.solved:
        if not answer.perturbations:
            raise CannotDecide("this hypothesis compares digests and has nothing to execute")
        return answer.perturbations
    changes: list[Perturbation] = list(retarget(answer.solved, q.targets))
    if q.at.stage is Stage.RNG:
        raise CannotDecide("a re-execution does not put a generator's state in place")
    computed: dict[tuple[int, Stage], Mapping[str, Tensor]] = {}
    for target in q.targets:
        if target in answer.solved and answer.solved[target].change is None:
            values = computed.setdefault((target.rank, q.at.stage), {})
            computed[target.rank, q.at.stage] = {**values, target.name: answer.solved[target].make(target)}
    computed |= {place: values() for place, values in answer.follow.items()}
    changes += [_assigned(rank, stage, values, folder, q.at.before) for (rank, stage), values in computed.items()]
    return tuple(changes)


def _assigned(rank: int, stage: Stage, values: Mapping[str, Tensor], folder: Path, before: bool) -> Assign:
    from safetensors.torch import save_file

    path = folder / f"{stage}-{rank}.safetensors"
    save_file({name: t.contiguous().clone() for name, t in values.items()}, path)
    return Assign(stage=stage, ranks=(rank,), tensors=tuple(values), path=str(path), before=before)


def _written(q: Question, idea: Idea, answer: Answer, note: str) -> Hypothesis:
    if answer.not_tried:
        return Hypothesis(
            name=idea.name,
            sentence=f"Not tried: {idea.claim}.",
            outcome=Outcome.NOT_TRIED,
            tried=0,
            reason=answer.not_tried,
        )
    if not answer.found:
        beyond = f"; not covered: {answer.limits}" if answer.limits else ""
        return Hypothesis(
            name=idea.name,
            sentence=f"Excluded: {idea.claim} ({answer.tried:,} tried{beyond}).",
            outcome=Outcome.EXCLUDED,
            tried=answer.tried,
            reason=answer.limits,
        )
    return Hypothesis(
        name=idea.name,
        sentence=f"{_subject(q, answer)}: {answer.sentence}; this reproduces {_extent(q, answer)}{note}.",
        outcome=Outcome.REPRODUCED,
        parameters=plain(answer.parameters),
        tried=answer.tried,
        digest=answer.digest,
    )


def _subject(q: Question, answer: Answer) -> str:
    place = q.place if q.targets and q.place in answer.covered else sorted(answer.covered)[0]
    return f"{place.name or q.at.subject} on rank {place.rank}"


def _extent(q: Question, answer: Answer) -> str:
    differing = len(q.targets)
    reached = len(answer.covered & set(q.targets))
    if differing <= 1 or not reached:
        return "the recorded digest bit for bit"
    if reached == differing:
        return f"all {differing} digests that differ at stage {q.at.stage} bit for bit"
    return f"{reached} of the {differing} digests that differ at stage {q.at.stage} bit for bit"
