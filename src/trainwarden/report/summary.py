"""The verdict in words: headline, the facts beside it, the story in one paragraph, and what was not checked (pure).

The words keep to their meaning: a record is a *claim*, a finding *suspicion*, a verdict *evidence*, and only a
reproduced digest is called *proof*. None of them names a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from trainwarden.casefile import (
    Answer,
    Broken,
    CaseFile,
    KeySource,
    coverage_share,
    earliest_divergence,
    explanation_of,
    indexed,
)
from trainwarden.descent import Frozen
from trainwarden.lineage import last_cleared
from trainwarden.model import (
    DataOpened,
    Diverged,
    Explanation,
    FileChanged,
    Finding,
    Gap,
    Inconclusive,
    Matched,
    Outcome,
    Recovered,
    RunEnded,
    Segment,
    Standing,
)
from trainwarden.report.events import timeline
from trainwarden.report.words import count, percent, span, stage_name, tail

_MOST_LINES = 40


class Fact(msgspec.Struct, frozen=True):
    """A figure beside the verdict."""

    name: str
    value: str
    note: str = ""


class Missing(msgspec.Struct, frozen=True):
    """Something that was not checked, and why."""

    what: str
    why: str


def headline(case: CaseFile) -> str:
    """The answer as one short sentence."""
    match case.answer:
        case Answer.BROKEN:
            return "This record cannot be trusted"
        case Answer.DIVERGED:
            at = _divergence(case).at
            return f"Training diverged at step {at.step} on rank {at.rank}"
        case Answer.UNDECIDED:
            return "Part of this run could not be decided"
        case Answer.MATCHED:
            whole = case.audited.matched == case.audited.records
            return "Every step was reproduced bit for bit" if whole else "Every step that was replayed matched"
        case Answer.NOT_AUDITED:
            return "This run has not been audited"


def subline(case: CaseFile) -> str:
    """What the headline rests on."""
    match case.answer:
        case Answer.BROKEN:
            return case.state.reason if isinstance(case.state, Broken) else ""
        case Answer.DIVERGED:
            at = _divergence(case).at
            told = _explained(case)
            what = f"First difference: {at.words}."
            if told is None:
                return f"{what} The cause has not been looked for yet."
            if told.cause is None:
                return f"{what} Cause not established: none of the hypotheses reproduces the recorded digest."
            return f"{what} Cause: {told.cause}, reproduced bit for bit."
        case Answer.UNDECIDED:
            return "Some segments do not replay to a decision. Undecided is not a pass."
        case Answer.MATCHED:
            return f"{percent(coverage_share(case.audited))} of the recorded steps were replayed from sealed inputs."
        case Answer.NOT_AUDITED:
            return (
                "Nothing has been replayed yet, so nothing is known either way. Curves and findings are not evidence."
            )


def freezes(case: CaseFile, frozen: Sequence[Frozen]) -> list[str]:
    """Why this run is not to be promoted, a sentence for each freeze that holds for it."""
    said = []
    for freeze in frozen:
        whose = "this run" if freeze.run == case.run else f"run {freeze.run}, which this one comes from,"
        why = f": {freeze.reason}" if freeze.reason else ""
        said.append(f"FROZEN, not to be promoted: {whose} was frozen by {freeze.by}{why}")
    return said


def facts(case: CaseFile) -> list[Fact]:
    """Confidence, coverage, safe checkpoint and findings."""
    a = case.audited
    share = Fact(
        "Coverage",
        percent(coverage_share(a)) if a.records else "No steps",
        f"{a.matched:,} of {count(a.records, 'step record')} reproduced",
    )
    safe = last_cleared(case.history.checkpoints)
    total = len(case.history.checkpoints)
    clear = Fact(
        "Last cleared checkpoint",
        f"Step {safe.step}" if safe else "None",
        "its whole lineage matched" if safe else f"{count(total, 'checkpoint')}, none with a whole matched lineage",
    )
    found = len(indexed(case.entries, Finding))
    return [_confidence(case), share, clear, Fact("Findings", f"{found:,}", "raised live: suspicion, not evidence")]


def _confidence(case: CaseFile) -> Fact:
    match case.answer:
        case Answer.BROKEN:
            return Fact("Confidence", "None", "log or seal do not verify")
        case Answer.DIVERGED:
            told = _explained(case)
            if told is not None and told.cause is not None:
                return Fact("Confidence", "Proof", "the recorded digest was reproduced")
            return Fact("Confidence", "Evidence", "a replay from sealed inputs differs")
        case Answer.UNDECIDED:
            return Fact("Confidence", "Open", "some segments could not be decided")
        case Answer.MATCHED:
            return Fact("Confidence", "Evidence", "bit for bit, for what was replayed")
        case Answer.NOT_AUDITED:
            return Fact("Confidence", "None yet", "no replay, no verdict")


def story(case: CaseFile) -> list[Fact]:
    """What happened in plain sentences, in three parts; a part without anything to say is left out."""
    parts = (
        ("What happened", _happened(case)),
        ("What the replay shows", _shown(case)),
        ("What follows", _consequence(case)),
    )
    told = [Fact(name, " ".join(sentences)) for name, sentences in parts]
    return [part for part in told if part.value]


def _happened(case: CaseFile) -> Iterator[str]:
    attempts = [a for a in case.history.attempts if a.last >= a.base]
    if not attempts:
        yield "The run was sealed and recorded no training step."
        return
    world, steps = max(a.world for a in attempts), max(a.last for a in attempts) + 1
    yield f"{count(steps, 'step')} on {count(world, 'rank')}, in {count(len(attempts), 'attempt')}."
    changes = list({c.path: c for _, c in indexed(case.entries, FileChanged)}.values())
    if changes:
        more = f" and {count(len(changes) - 1, 'other sealed file')}" if len(changes) > 1 else ""
        yield f"While the run was under seal, {tail(changes[0].path, 2)}{more} changed on disk."
    kills = [e for e in timeline(case.entries) if e.what == "Killed"]
    if kills:
        yield f"After step {kills[0].step}, {kills[0].text}."
    if kills[1:]:
        yield f"{count(len(kills) - 1, 'more end')} came unasked."
    for attempt in attempts[1:3]:
        yield f"Attempt {attempt.number} went on from step {attempt.base}."


def _shown(case: CaseFile) -> Iterator[str]:
    if case.answer is not Answer.DIVERGED:
        replayed = indexed(case.entries, Matched)
        if replayed:
            digests = count(case.audited.digests, "digest")
            yield f"{count(len(replayed), 'segment')} came out the same in a clean environment, {digests} in all."
        return
    at = _divergence(case).at
    other = (
        f"begins step {at.step} with other weights" if at.before else f"computes another {at.subject} at step {at.step}"
    )
    yield f"From the same sealed inputs, a clean environment {other}."
    told = _explained(case)
    if told is None:
        yield "The cause has not been looked for yet."
        return
    if told.cause is None:
        yield "No hypothesis that was tried reproduces the recorded digest: the cause is not established."
    else:
        tried = sum(h.outcome is not Outcome.NOT_TRIED for h in told.hypotheses)
        yield f"Of {tried} hypotheses tried, {told.cause} reproduces the recorded digest bit for bit."
    if told.file:
        yield f"So does running the changed {tail(told.file, 2)} in place of the sealed one."


def _consequence(case: CaseFile) -> Iterator[str]:
    checkpoints = case.history.checkpoints
    tainted = sum(c.standing is Standing.TAINTED for c in checkpoints)
    safe = last_cleared(checkpoints)
    if tainted:
        verb = "stands" if tainted == 1 else "stand"
        yield f"{count(tainted, 'checkpoint')} {verb} on tainted ground and must not be used."
    if safe:
        yield f"Step {safe.step} is the last checkpoint that is clear all the way back to the seal."
    elif checkpoints:
        yield "No checkpoint is cleared: none should be served or resumed from as if it were."
    for _, recovered in indexed(case.entries, Recovered)[:1]:
        yield f"The run was taken back to step {recovered.from_step} and resumed as run {recovered.new_run}."


def not_checked(case: CaseFile) -> list[Missing]:
    """Everything that this report does not know, with the reason; at most 40 lines."""
    lines = list(_not_checked(case))
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], Missing(f"{len(lines) - _MOST_LINES} more", "see the JSON output")]
    return lines


def _not_checked(case: CaseFile) -> Iterator[Missing]:
    if isinstance(case.state, Broken):
        yield Missing("everything below", f"the log or the seal does not verify: {case.state.reason}")
    if case.key_source is KeySource.LOG:
        yield Missing("who signed", "the log was checked against the key that it names itself")
    replayed = {e.segment for e in case.entries if isinstance(e, Matched | Diverged | Inconclusive)}
    left = [s for s in case.history.segments if s not in replayed]
    if not case.history.segments:
        yield Missing("the training", "no optimizer step was recorded, so there is nothing to replay")
    if left:
        yield Missing(f"{len(left)} of {count(len(case.history.segments), 'segment')}", f"not replayed: {_spans(left)}")
    for _, v in indexed(case.entries, Inconclusive):
        yield Missing(span(v.segment), "inconclusive: " + ("; ".join(v.reasons[:3]) or "no reason given"))
    for _, d in indexed(case.entries, Diverged):
        if d.segment.last > d.at.step:
            rest = Segment(attempt=d.segment.attempt, first=d.at.step + 1, last=d.segment.last)
            yield Missing(span(rest), "the replay stopped at the first difference")
    for stage, why in sorted(case.audited.unseen.items()):
        yield Missing(f"stage {stage_name(stage)}", why)
    for _, gap in indexed(case.entries, Gap):
        yield Missing(f"step {gap.step}, rank {gap.rank}, attempt {gap.attempt}", f"gap: {gap.reason}")
    for _, opened in indexed(case.entries, DataOpened):
        yield Missing(tail(opened.path), f"data that the seal does not list, opened by rank {opened.rank}")
    if not indexed(case.entries, RunEnded):
        yield Missing("the end of the run", "not in the log: it goes on, or its supervisor was killed")


def _spans(segments: Sequence[Segment]) -> str:
    return ", ".join(span(s) for s in segments[:4]) + (" …" if len(segments) > 4 else "")


def next_steps(case: CaseFile) -> list[Fact]:
    """The commands that lead on from here: name is the command, value says what it does."""
    run, safe = case.run, last_cleared(case.history.checkpoints)
    told = _explained(case)
    steps = []
    if case.answer in (Answer.NOT_AUDITED, Answer.UNDECIDED, Answer.MATCHED) and coverage_share(case.audited) < 1:
        steps.append(Fact(f"trainwarden audit {run}", "replay what has not been replayed"))
    if case.answer is Answer.DIVERGED and (told is None or told.cause is None):
        steps.append(Fact(f"trainwarden explain {run}", "look for the cause"))
    if case.answer is Answer.DIVERGED and safe and not indexed(case.entries, Recovered):
        steps.append(Fact(f"trainwarden recover {run}", f"plan to go back to step {safe.step} and resume"))
    steps.append(Fact(f"trainwarden verify {run} --key {case.sealed.key}", "check log, seal, records and files again"))
    return steps


def _divergence(case: CaseFile) -> Diverged:
    found = earliest_divergence(case.entries)
    if found is None:
        raise ValueError("the case has no divergence")
    return found[1]


def _explained(case: CaseFile) -> Explanation | None:
    found = earliest_divergence(case.entries)
    told = explanation_of(case.entries, found[1]) if found else None
    return told[1] if told else None
