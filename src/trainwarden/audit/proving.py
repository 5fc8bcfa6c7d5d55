"""Explains a divergence of a recorded run: captures the clean step, and re-executes it for the hypotheses."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainwarden.audit.capture import open_captures
from trainwarden.audit.compare import Seen
from trainwarden.audit.explain import Progress, QuarantinedFile, explain
from trainwarden.audit.hypotheses.base import BatchHistory, Details
from trainwarden.audit.hypotheses.before import LOSS
from trainwarden.audit.perturb import Perturbation, cannot_execute, encode
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import rerun
from trainwarden.errors import CannotDecide
from trainwarden.model import Detail, Diverged, Explanation, FileChanged, Location, Stage
from trainwarden.seal.room import Room, build_room, remove_variant
from trainwarden.supervise.rows import read_rows

_HISTORY_STEPS = 512
AHEAD = 2  # steps before its own at which a batch may have been fetched


class CleanRerunner:
    """Executes the diverging step again in clean processes; implements `explain.Rerunner`."""

    def __init__(self, recorded: Recorded, room: Room, attempt: int, at: Location) -> None:
        self._recorded, self._room, self._attempt, self._at = recorded, room, attempt, at

    def rerun(self, perturbations: Sequence[Perturbation], replace: Mapping[str, Path]) -> Details:
        """The details of every stage and rank of the step, under these changes or with these files swapped in.

        Raises:
            CannotDecide: a replay cannot bring these changes about, or did not get to the step.
        """
        if reason := cannot_execute(perturbations):
            raise CannotDecide(reason)
        room = build_room(self._recorded.store, self._recorded.seal, replace=replace) if replace else self._room
        try:
            plan = encode(perturbations).decode() if perturbations else ""
            updates = rerun(self._recorded, room, self._attempt, self._at.step, perturbations=plan)
        finally:
            remove_variant(room)
        return _details(updates, self._at)

    def capture(self, folder: Path, losses: Mapping[int, str]) -> Details:
        """Run the step clean and write every rank's capture; `losses` are recorded digests to look for an edit by."""
        return _details(
            rerun(
                self._recorded,
                self._room,
                self._attempt,
                self._at.step,
                capture=folder,
                optimizer=self._at.optimizer,
                samples=self._at.stage is Stage.BATCH,
                seek=losses,
            ),
            self._at,
        )


def prove(recorded: Recorded, room: Room, verdict: Diverged, progress: Progress | None = None) -> Explanation:
    """Find what reproduces the first difference of a diverged segment.

    Raises:
        CannotDecide: the clean step cannot be captured.
    """
    at, attempt = verdict.at, verdict.segment.attempt
    if at.stage is Stage.CHECKPOINT:
        raise CannotDecide(
            "only the checkpoint file differs, and every record of the step is honest",
            hint="the file was changed on its way to disk or after it: compare it with the one the audit wrote",
        )
    records = recorded.updates(attempt)[at.step, at.optimizer]
    details = {
        (rank, stage): detail
        for rank, record in records.items()
        for stage, detail in recorded.seen(record).details.items()
    }
    rerunner = CleanRerunner(recorded, room, attempt, at)
    with tempfile.TemporaryDirectory(prefix="tw-capture-") as folder:
        if progress:
            progress("capturing the clean step", 0, 1)
        rerunner.capture(Path(folder), _losses(details) if at.stage is Stage.ACTIVATIONS else {})
        return explain(
            at,
            open_captures(Path(folder)),
            details,
            records,
            _history(recorded, attempt, at),
            rerunner,
            quarantined(recorded),
            recorded.key,
            progress,
        )


def _losses(details: Details) -> dict[int, str]:
    """The recorded digest of each rank's first loss."""
    told = {r: dict(zip(d.names, d.digests, strict=True)) for (r, s), d in details.items() if s is Stage.ACTIVATIONS}
    return {rank: digests[LOSS].hex() for rank, digests in told.items() if LOSS in digests}


def quarantined(recorded: Recorded) -> list[QuarantinedFile]:
    """The changed files that the supervisor kept, newest bytes of each path."""
    found: dict[str, QuarantinedFile] = {}
    for e in recorded.entries:
        if isinstance(e, FileChanged) and e.found and recorded.store.has(e.found):
            stored = recorded.store.object_path(e.found)
            found[e.path] = QuarantinedFile(path=e.path, stored=stored, digest=e.found)
    return list(found.values())


def _history(recorded: Recorded, attempt: int, at: Location) -> BatchHistory:
    """Digests of the steps around, for hypotheses of swapped batches, states and weights."""
    parts: dict[Stage, dict[tuple[int, int], Detail]] = {
        s: {} for s in (Stage.BATCH, Stage.RNG, Stage.WEIGHTS, Stage.OPTIMIZER_STATE)
    }
    near = sorted((k for k in recorded.updates(attempt) if k[1] == at.optimizer), key=lambda k: abs(k[0] - at.step))
    for step, optimizer in near[:_HISTORY_STEPS]:
        for rank, record in recorded.updates(attempt)[step, optimizer].items():
            for stage, detail in recorded.seen(record).details.items():
                if stage in parts:
                    parts[stage][step, rank] = detail
    rows = read_rows(recorded.folder.private, attempt, range(at.step - AHEAD, at.step + 1))
    batches, states, weights, moments = parts.values()
    return BatchHistory(batches, states, weights, moments, rows)


def _details(updates: Mapping[tuple[int, int], Mapping[int, Seen]], at: Location) -> Details:
    found = {
        (rank, stage): detail
        for rank, seen in updates.get((at.step, at.optimizer), {}).items()
        for stage, detail in seen.details.items()
    }
    if not found:
        raise CannotDecide(f"the replay made no record of step {at.step}")
    return found
