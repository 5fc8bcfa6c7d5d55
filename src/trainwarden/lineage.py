"""What a checkpoint stands on: attempts, segments and standing, from the log's entries alone (pure).

Rules
-----
* A record of step *t* moves the state from *t* to *t* + 1 steps done; a checkpoint of step *c* holds the
  state after steps 0 … *c* − 1. Segments are cut at every checkpoint: a lineage is a list of whole segments.
  A file that was told of after later steps of its rank stands on those too, whatever step it claims.
* An attempt stands on what it loaded and on nothing else: a file that the log saw being saved (with that
  checkpoint's lineage), one of a parent run, or one that the seal lists. Any other file, whenever it is
  loaded, is something the log does not know: nothing saved after it is ever cleared.
* CLEARED needs, for *every* segment back to the seal: a record of every rank for every step, no gap, a
  `Matched` that compared all of those records including the weights, no `Diverged`; and, for every
  checkpoint on the way, a file that was found to hold the recorded weights. Sabotage is not monotone:
  segments after a diverged one carry on honestly from a bad state and match, and clear nothing.
* A `Diverged` is never overruled by a `Matched`: both on one step is a conflict, and undecided.
  An `Inconclusive` is no evidence: a complete `Matched` of the same steps stands beside it.

Trust: verdicts are trusted about the steps they name, the state these start from included. Everything
else in the log is a claim that can only keep a checkpoint from being cleared.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from trainwarden.model import (
    DCP,
    DCP_INDEX,
    Checkpoint,
    CheckpointLoaded,
    CheckpointSaved,
    Entry,
    Matched,
    Segment,
    Standing,
    StepRecord,
)
from trainwarden.standing import Doubt, Seen, collect, is_open, judge, worst

UNSEALED: Final = "which neither the seal nor the log knows"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One start of the job: `base` steps were done when it began; without a step `last` is `base` − 1."""

    number: int
    world: int
    ranks: tuple[int, ...]
    base: int
    last: int
    loaded: tuple[CheckpointLoaded, ...] = ()  # before its first step


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A run's attempts, its segments in the order in which they ran, and its checkpoints in log order."""

    attempts: tuple[Attempt, ...]
    segments: tuple[Segment, ...]
    checkpoints: tuple[Checkpoint, ...]


class _Group(msgspec.Struct):
    """The saves of one (attempt, step) so far, and what they stand on."""

    saves: list[CheckpointSaved] = []
    lineage: dict[Segment, None] = {}
    doubts: dict[Doubt, None] = {}


def attempts(entries: Sequence[Entry]) -> tuple[Attempt, ...]:
    """The attempts of a run, in order."""
    return trace(entries).attempts


def segments(entries: Sequence[Entry]) -> tuple[Segment, ...]:
    """The segments of a run: each attempt's steps, cut at every checkpoint it saved."""
    return trace(entries).segments


def trace(
    entries: Sequence[Entry], *, sealed: Container[str] = frozenset(), inherited: Sequence[Checkpoint] = ()
) -> History:
    """Attempts, segments and checkpoints of a run.

    `sealed` are the digests of the files that the seal lists, `inherited` the checkpoints of the runs that
    this one recovers, as `as_inherited` gives them.
    """
    seen = collect(entries)
    found = {number: _attempt(number, s, len(entries)) for number, s in sorted(seen.items())}
    cuts = {number: _cut(attempt, seen[number].saved) for number, attempt in found.items()}
    judged = {segment: judge(segment, seen[number]) for number, cut in cuts.items() for segment in cut}
    groups = _groups(entries, cuts, sealed, inherited)
    rewritten = reproduced(entries)
    return History(
        attempts=tuple(found.values()),
        segments=tuple(s for cut in cuts.values() for s in cut if s.first <= found[s.attempt].last),
        checkpoints=tuple(_checkpoint(*key, group, judged, rewritten) for key, group in groups.items()),
    )


def newest_first(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """By the steps done, the most first."""
    return sorted(checkpoints, key=lambda c: (c.step, c.attempt), reverse=True)


def last_cleared(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The cleared checkpoint with the most steps done, None when there is none."""
    cleared = (c for c in checkpoints if c.standing is Standing.CLEARED)
    return max(cleared, key=lambda c: (c.step, c.attempt), default=None)


def outstanding(entries: Sequence[Entry], checkpoint: Checkpoint) -> tuple[Segment, ...] | None:
    """The segments of this run that must still be replayed before `checkpoint` can be cleared, in their order.

    None when no replay can clear it: in one of them a replay diverged, or records are missing.
    """
    seen = collect(entries)
    own = [s for s in checkpoint.lineage if not s.run and judge(s, seen[s.attempt]) is not None]
    return tuple(own) if all(is_open(s, seen[s.attempt]) for s in own) else None


def as_inherited(checkpoints: Iterable[Checkpoint], run: str) -> tuple[Checkpoint, ...]:
    """The checkpoints of `run` as a later run may stand on them: their segments carry the run's name."""
    return tuple(
        msgspec.structs.replace(
            c, lineage=tuple(s if s.run else msgspec.structs.replace(s, run=run) for s in c.lineage)
        )
        for c in checkpoints
    )


def against_disk(
    checkpoints: Iterable[Checkpoint],
    found: Mapping[str, str],
    recorded: Mapping[str, Container[str]] | None = None,
) -> tuple[Checkpoint, ...]:
    """The checkpoints in the light of the files as they are now.

    `found` gives each path's digest now ("" when it is gone; absent when nobody looked); `recorded` the
    digests that logs know for a path. An edited file is tainted; one that a later save replaced is not the
    recorded state and is not cleared either; a missing file misleads nobody.
    """
    return tuple(_on_disk(c, found, recorded or {}) for c in checkpoints)


# --------------------------------------------------------------------------- attempts and cuts


def _attempt(number: int, seen: Seen, end: int) -> Attempt:
    until = end if seen.first_step_at is None else seen.first_step_at
    loaded = tuple(load for index, load in seen.loads if index < until)
    base = max((load.known_step for load in loaded), default=0)
    base = max(base, 0)
    if seen.steps:
        base = min(base, seen.steps[0])
    return Attempt(
        number=number,
        world=max(seen.world, 1),
        ranks=tuple(sorted(seen.by_rank)),
        base=base,
        last=seen.steps[-1] if seen.steps else base - 1,
        loaded=loaded,
    )


def _cut(attempt: Attempt, saved: Iterable[int]) -> tuple[Segment, ...]:
    edges = sorted({attempt.base, attempt.last + 1, *(step for step in saved if step > attempt.base)})
    return tuple(Segment(attempt=attempt.number, first=first, last=after - 1) for first, after in pairwise(edges))


# --------------------------------------------------------------------------- what stands on what


def _groups(
    entries: Sequence[Entry],
    cuts: Mapping[int, tuple[Segment, ...]],
    sealed: Container[str],
    inherited: Sequence[Checkpoint],
) -> dict[tuple[int, int], _Group]:
    groups: dict[tuple[int, int], _Group] = {}
    grounds: dict[int, _Group] = {}  # what each attempt has loaded so far stands on
    known: dict[tuple[str, str], _Group] = {}  # (digest, path) and (digest, "") → the latest save of it
    parents = {(f.digest, path): c for c in inherited for f in c.files for path in ("", f.path)}
    rewritten = reproduced(entries)
    done: dict[tuple[int, int], int] = {}  # steps of an attempt's rank that are in the log so far
    for entry in entries:
        if isinstance(entry, StepRecord):
            key = (entry.attempt, entry.rank)
            done[key] = max(done.get(key, 0), entry.step + 1)
        elif isinstance(entry, CheckpointLoaded):
            ground = grounds.setdefault(entry.attempt, _Group())
            source = known.get((entry.digest, entry.path)) or known.get((entry.digest, ""))
            if source is not None:
                _add(ground, source.lineage, (*source.doubts, *_unbound(source.saves, rewritten)))
            elif parent := parents.get((entry.digest, entry.path)) or parents.get((entry.digest, "")):
                _add(ground, parent.lineage, _inherited_doubt(parent))
            elif entry.digest not in sealed:
                _add(ground, (), (_unknown(entry),))
        elif isinstance(entry, CheckpointSaved):
            group = groups.setdefault((entry.attempt, entry.step), _Group())
            group.saves.append(entry)
            ground = grounds.get(entry.attempt, _Group())
            logged = done.get((entry.attempt, entry.rank), 0)  # hashing takes a while: at least what had arrived
            reached = max(entry.step, entry.reached if entry.reached >= 0 else logged)
            own = (s for s in cuts[entry.attempt] if s.first < reached)
            _add(group, (*ground.lineage, *own), ground.doubts)
            known[entry.digest, entry.path] = known[entry.digest, ""] = group
    return groups


def _add(group: _Group, lineage: Iterable[Segment], doubts: Iterable[Doubt]) -> None:
    group.lineage.update(dict.fromkeys(lineage))
    group.doubts.update(dict.fromkeys(doubts))


def _unknown(load: CheckpointLoaded) -> Doubt:
    return Doubt(
        Standing.UNDECIDED,
        f"attempt {load.attempt} loaded {load.path}, {UNSEALED}",
    )


def _inherited_doubt(parent: Checkpoint) -> tuple[Doubt, ...]:
    if parent.standing is Standing.CLEARED:
        return ()
    reason = f"it stands on step {parent.step} of an earlier run, which is {parent.standing}: {parent.reason}"
    return (Doubt(parent.standing, reason),)


def in_place(saves: Sequence[CheckpointSaved]) -> tuple[CheckpointSaved, ...]:
    """The newest save of each path, without the paths that files were renamed away from."""
    newest: dict[str, CheckpointSaved] = {}
    for save in saves:
        newest.pop(save.renamed_from, None)
        newest[save.path] = save
    return tuple(newest.values())


def is_of_step(folder: str, step: int) -> bool:
    """Whether a folder's name carries this step: it then holds that step's checkpoint and nothing else."""
    return step in (int(n) for n in re.findall(r"\d+", folder.rpartition("/")[2]))


def resume_place(files: Sequence[CheckpointSaved]) -> str:
    """What a script is given to resume from: the one state file, or the folder that the checkpoint is kept in."""
    if not files:
        return ""
    folder = files[0].path.rpartition("/")[0]
    if any(f.format in (DCP, DCP_INDEX) for f in files):
        return folder
    states = [f.path for f in files if f.format != "other"]
    if len(files) == 1 or (len(states) == 1 and not is_of_step(folder, files[0].step)):
        return (states or [files[0].path])[0]
    return folder


def reproduced(entries: Iterable[Entry]) -> frozenset[str]:
    """Digests of the checkpoint files that a matched replay wrote again."""
    return frozenset(digest for e in entries if isinstance(e, Matched) for digest in e.files)


def _unbound(saves: Sequence[CheckpointSaved], rewritten: Container[str]) -> tuple[Doubt, ...]:
    """A matched record says nothing of a file that neither holds the recorded weights nor was written again.

    One file that does binds the checkpoint; of a distributed one every part and its index, since none holds it all.
    """
    if distributed := [save for save in saves if save.format in (DCP, DCP_INDEX)]:
        if lost := [save for save in distributed if save.digest not in rewritten]:
            return (Doubt(Standing.UNDECIDED, f"{lost[0].path} was not written again by a matched replay"),)
        return ()
    if any(save.digest in rewritten and save.format != "other" for save in saves):
        return ()
    for save in saves:
        if save.weights.startswith("differs"):
            return (Doubt(Standing.UNDECIDED, f"{save.path} does not hold the recorded weights: {save.weights}"),)
    if any(save.weights == "matches" for save in saves):
        return ()
    why = f"no file of step {saves[0].step} was found to hold the recorded weights"
    if any(save.format != "other" for save in saves):
        why += ", and no matched replay has written one again"
    return (Doubt(Standing.UNDECIDED, why),)


# --------------------------------------------------------------------------- standing


def _checkpoint(
    attempt: int, step: int, group: _Group, judged: Mapping[Segment, Doubt | None], rewritten: Container[str]
) -> Checkpoint:
    doubts = [d for s in group.lineage if not s.run and (d := judged[s]) is not None]
    doubts += [*group.doubts, *_unbound(group.saves, rewritten)]
    standing, reason = worst(doubts) or (Standing.CLEARED, _all_matched(group.lineage))
    return Checkpoint(
        step=step,
        attempt=attempt,
        files=in_place(group.saves),
        lineage=tuple(group.lineage),
        standing=standing,
        reason=reason,
    )


def _all_matched(lineage: Collection[Segment]) -> str:
    return f"all {len(lineage)} segments back to the seal matched" if len(lineage) > 1 else "its one segment matched"


def _on_disk(checkpoint: Checkpoint, found: Mapping[str, str], recorded: Mapping[str, Container[str]]) -> Checkpoint:
    doubts = []
    for file in checkpoint.files:
        now = found.get(file.path, "")
        if not now or now == file.digest:
            continue
        if now in recorded.get(file.path, ()):
            reason = f"{file.path} now holds another recorded checkpoint; this one is in the store"
            doubts.append(Doubt(Standing.UNDECIDED, reason))
        else:
            reason = f"{file.path} was edited after it was recorded ({file.digest[:12]} is now {now[:12]})"
            doubts.append(Doubt(Standing.TAINTED, reason))
    if checkpoint.standing is not Standing.CLEARED:
        doubts.append(Doubt(checkpoint.standing, checkpoint.reason))
    standing, reason = worst(doubts) or (checkpoint.standing, checkpoint.reason)
    return msgspec.structs.replace(checkpoint, standing=standing, reason=reason)
