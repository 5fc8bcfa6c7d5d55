"""Hypotheses that are put to the test by executing the step again: under one change, or with tampered files.

Rules
-----
* A re-execution runs on all ranks in clean processes of the sealed environment; the re-runner answers for that.
* A quarantined file is only ever executed there, in place of the clean one, and never opened here.
* The number of re-executions is bounded; what it left out is listed as not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from trainwarden.audit.hypotheses.base import Details, Question
from trainwarden.audit.hypotheses.forward import Rerun
from trainwarden.audit.perturb import Perturbation
from trainwarden.errors import CannotDecide
from trainwarden.model import STAGES, Detail, Hypothesis, Location, Outcome, Stage

FILES_TOGETHER = "all quarantined files together"
FILE = "tampered file"

Progress = Callable[[str, int, int], None]  # what is being tried, how many are done, of how many


class QuarantinedFile(msgspec.Struct, frozen=True, kw_only=True):
    """Changed bytes kept aside: the path at which they stood in the run's environment, and where they lie now."""

    path: str
    stored: Path
    digest: str = ""


class Rerunner(Protocol):
    """Executes the diverging step again in clean processes, all ranks."""

    def rerun(self, perturbations: Sequence[Perturbation], replace: Mapping[str, Path]) -> Details:
        """The details of every stage and rank, under these changes or with these files in place of clean ones.

        Raises:
            CannotDecide: the step could not be executed like this; the message says why.
        """
        ...


class Agreement(NamedTuple):
    """How a re-execution compares with the record: digests equal, digests recorded, the first that differs."""

    equal: int
    recorded: int
    first: str
    located: bool  # the located tensor's digest is the recorded one

    @property
    def whole(self) -> bool:
        return self.equal == self.recorded > 0


def agreement(at: Location, recorded: Details, executed: Details) -> Agreement:
    """Compare every recorded digest of a step with a re-execution's."""
    equal = total = 0
    first = ""
    located = False
    for rank, stage in sorted(recorded, key=lambda k: (STAGES.index(k[1]), k[0])):
        if stage is Stage.CHECKPOINT:
            continue
        claimed = _pairs(recorded[rank, stage])
        found = _pairs(executed.get((rank, stage)))
        same = {name for name, digest in claimed.items() if found.get(name) == digest}
        equal += len(same)
        total += len(claimed)
        if not first and len(same) < len(claimed):
            first = f"rank {rank}, {stage}, {next(n for n in claimed if n not in same)}"
        if (rank, stage) == (at.rank, at.stage):
            located = at.tensor in same if at.tensor else len(same) == len(claimed) > 0
    return Agreement(equal, total, first, located)


def _pairs(detail: Detail | None) -> dict[str, bytes]:
    return dict(zip(detail.names, detail.digests, strict=True)) if detail is not None else {}


class Work:
    """The question with what is spent on it."""

    def __init__(
        self, q: Question, rerunner: Rerunner | None, progress: Progress | None, total: int, reruns: int
    ) -> None:
        self.q = q
        self.rerunner = rerunner
        self.reruns_left = reruns
        self.spare = 0  # re-executions kept for what comes later
        self._progress = progress
        self._done = 0
        self._total = total

    def begin(self, name: str) -> None:
        if self._progress is not None:
            self._progress(name, self._done, self._total)
        self._done += 1

    def execute(self, perturbations: Sequence[Perturbation], replace: Mapping[str, Path] | None = None) -> Agreement:
        """Re-execute and compare.

        Raises:
            CannotDecide: there is no re-runner, no re-execution is left, or it failed.
        """
        if self.rerunner is None:
            raise CannotDecide("no re-execution was asked for")
        if self.reruns_left <= self.spare:
            raise CannotDecide("the number of re-executions allowed was reached")
        self.reruns_left -= 1
        return agreement(self.q.at, self.q.recorded, self.rerunner.rerun(tuple(perturbations), dict(replace or {})))


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they will be read back from the log."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(parameters))
    return plain


# --------------------------------------------------------------------------- re-executions


def execute(work: Work, again: Rerun, *, proved: str | None) -> Hypothesis:
    work.begin(again.name)
    reason = ""
    if work.q.at.stage not in again.stages:
        reason = "asked only where the first difference is at " + ", ".join(again.stages)
    elif proved is not None:
        reason = f"the cause is established already: {proved}"
    elif work.rerunner is None:
        reason = "no re-execution was asked for"
    if reason:
        return _untried(again, reason)
    tried, failures, best = 0, [], _NOTHING
    for sentence, perturbations in again.settings(work.q):
        try:
            seen = work.execute(perturbations)
        except CannotDecide as e:
            failures.append(str(e))
            continue
        tried += 1
        if seen.located and seen.equal > best[0].equal:
            best = (seen, sentence, perturbations)
        if seen.whole:
            break
    if best[0].located:
        return _executed(work.q, again, best, tried)
    if not tried:
        return _untried(again, failures[0] if failures else "there was nothing to try")
    beyond = f"{len(failures)} settings were not tried: {failures[0]}" if failures else ""
    text = f"Excluded: {again.claim} ({tried} tried{'; ' + beyond if beyond else ''})."
    return Hypothesis(name=again.name, sentence=text, outcome=Outcome.EXCLUDED, tried=tried, reason=beyond)


_NOTHING: tuple[Agreement, str, tuple[Perturbation, ...]] = (Agreement(0, 0, "", False), "", ())


def _executed(
    q: Question, again: Rerun, best: tuple[Agreement, str, tuple[Perturbation, ...]], tried: int
) -> Hypothesis:
    seen, sentence, perturbations = best
    return Hypothesis(
        name=again.name,
        sentence=f"{sentence[0].upper()}{sentence[1:]}; executed again like this, {_said(q, seen)}.",
        outcome=Outcome.REPRODUCED,
        parameters=plain({"perturbations": perturbations}),
        tried=tried,
        digest=_located_digest(q),
    )


def _untried(again: Rerun, reason: str) -> Hypothesis:
    return Hypothesis(
        name=again.name,
        sentence=f"Not tried: {again.claim}.",
        outcome=Outcome.NOT_TRIED,
        tried=0,
        reason=reason,
    )


def _said(q: Question, seen: Agreement) -> str:
    if seen.whole:
        return f"the step reproduces every one of the {seen.recorded} recorded digests of step {q.at.step}"
    return (
        f"the step reproduces the located digest and {seen.equal} of the {seen.recorded} recorded digests of "
        f"step {q.at.step}; the first that differs: {seen.first}"
    )


def _located_digest(q: Question) -> str:
    return q.claimed(q.at.rank, q.at.stage).get(q.at.tensor, b"").hex() or q.at.recorded


# --------------------------------------------------------------------------- quarantined files


def try_files(work: Work, quarantined: Sequence[QuarantinedFile]) -> tuple[list[Hypothesis], str]:
    """Put each tampered file alone into the clean environment, then all of them unless one alone has done it.

    With more files than re-executions left, all of them together come first.
    """
    if not quarantined:
        text = "Not tried: a changed file of the environment or code does it."
        reason = "no changed file is in quarantine"
        return [Hypothesis(name=FILE, sentence=text, outcome=Outcome.NOT_TRIED, tried=0, reason=reason)], ""
    alone = [(FILE, {f.path: f.stored}, f.digest) for f in quarantined]
    together = [(FILES_TOGETHER, {f.path: f.stored for f in quarantined}, "")] if len(quarantined) > 1 else []
    many = len(quarantined) >= work.reruns_left
    listed: list[Hypothesis] = []
    proved: list[tuple[str, ...]] = []
    for name, replace, digest in together + alone if many else alone + together:
        if name == FILES_TOGETHER and proved:
            continue  # one file alone has done it
        listed.append(_withtry_files(work, name, replace, digest))
        if listed[-1].outcome is Outcome.REPRODUCED:
            proved.append(tuple(replace))
    fewest = sorted(proved, key=len)
    return listed, ", ".join(fewest[0]) if fewest else ""


def _withtry_files(work: Work, name: str, replace: Mapping[str, Path], digest: str) -> Hypothesis:
    paths = ", ".join(replace)
    work.begin(paths)
    parameters = {"files": list(replace)} | ({"digest": digest} if digest else {})
    try:
        seen = work.execute((), replace)
    except CannotDecide as e:
        return Hypothesis(
            name=name,
            sentence=f"Not tried: the sealed environment with {paths} as found in quarantine.",
            outcome=Outcome.NOT_TRIED,
            parameters=parameters,
            tried=0,
            reason=str(e),
        )
    if seen.located:
        return Hypothesis(
            name=name,
            sentence=f"The sealed environment with only {paths} as found in quarantine: {_said(work.q, seen)}.",
            outcome=Outcome.REPRODUCED,
            parameters=parameters,
            digest=_located_digest(work.q),
        )
    return Hypothesis(
        name=name,
        sentence=f"Excluded: with only {paths} as found in quarantine the step does not do what was recorded.",
        outcome=Outcome.EXCLUDED,
        parameters=parameters,
    )
