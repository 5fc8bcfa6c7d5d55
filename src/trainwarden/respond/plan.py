"""What a recovery would do, worked out from the log, the store and the disk; nothing is changed here.

Rules
-----
* The point to go back to is that of `respond.point`. Where replays are missing for it, the plan names them, and what
  follows is what is done if all of them match.
* Whatever lies where the run recorded a later or a tainted checkpoint is moved away, also when its bytes are
  not the recorded ones: a script that resumes from the newest file must not find it.
* So is a file that has come since the run began, that no log knows, and whose path differs from a recorded checkpoint's
  in numbers only, or that lies in a folder which the command names for its output and has the suffix of a state file:
  what trained on without its watcher, or somebody else, wrote it.
* Sealed files are put back as they were sealed. What could run or be read and is new is moved away, and of a new
  package all that came with it (`newcomers.py`).
* A path that a checkpoint was saved to is judged as a checkpoint, even if the seal lists it as data.

Trust: verdicts, and the objects of the store by their digests. What is on disk is only looked at.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from trainwarden.casefile import CaseFile
from trainwarden.errors import CannotDecide
from trainwarden.lineage import is_of_step, resume_place
from trainwarden.model import (
    Checkpoint,
    CheckpointSaved,
    FileChanged,
    FileEntry,
    Seal,
    Segment,
    Standing,
)
from trainwarden.respond.disk import Restore, digest_now
from trainwarden.respond.newcomers import all_below, came_along, new_folders
from trainwarden.respond.point import Point, find_point
from trainwarden.seal.check import KINDS, boundaries_of, check_seal, expected
from trainwarden.seal.command import named_paths
from trainwarden.seal.manifest import path_real
from trainwarden.seal.pyc import source_of
from trainwarden.seal.walking import Boundaries
from trainwarden.store import Store

PLACE = "{checkpoint}"
_STATES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".distcp", ".npz", ".pkl")
_NUMBER = re.compile(r"[0-9]+")


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose bytes go into quarantine; `replaced`: the right ones are put in its place afterwards."""

    path: str
    digest: str
    reason: str
    replaced: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `recover --apply` does, in this order."""

    run: str
    audit: tuple[Segment, ...]  # replayed first; where one does not match, an older checkpoint takes this one's place
    from_step: int
    checkpoint: str  # what the script resumes from: a file or a folder; "" = from the very start
    files: tuple[str, ...]  # the cleared checkpoint's
    start_checkpoint: str  # digest of its first file, ""
    quarantine: tuple[Move, ...]
    folders: tuple[str, ...]  # of moved checkpoints and new packages, removed when nothing is left in them
    restore: tuple[Restore, ...]
    missing: tuple[str, ...]  # sealed files that differ and of which the store has no copy
    argv: tuple[str, ...]
    cwd: str
    why: str


def make_plan(store: Store, case: CaseFile, resume: str, point: Point | None = None) -> Plan:
    """Work out how to take a run back; `resume` is the configured template of the script's resume arguments.

    `case` is read with `look_at_files=False`: a cleared checkpoint that was edited later is restored. `point` is
    where to go back to, if that is known.

    Raises:
        CannotDecide: no checkpoint is cleared or can be, and it is not established that none can be.
        SealBroken, StoreError, StoreTampered: the seal's manifests cannot be had.
    """
    if case.seal is None:
        raise CannotDecide(f"run {case.run} has no readable seal", hint=f"trainwarden verify {case.run}")
    seal = case.seal.seal
    found = point or find_point(store, case)
    goal = found.checkpoint
    wanted = {f.path: f for f in goal.files} if goal else {}
    saves = _saves(case, goal)
    changes = [c for c in check_seal(store, case.seal) if path_real(c.path) not in saves and c.path not in wanted]
    states = list(_checkpoint_moves(case, saves, wanted, goal))
    new = _new_folders(store, seal, changes)
    others = [*sealed_moves(changes), *_came_along(new, case, boundaries_of(store, seal), changes)]
    back = [*_checkpoint_restores(wanted), *_sealed_restores(store, case, changes)]
    place = resume_place(list(wanted.values()))
    return Plan(
        run=case.run,
        audit=found.audit,
        from_step=goal.step if goal else 0,
        checkpoint=place,
        files=tuple(wanted),
        start_checkpoint=next((f.digest for f in wanted.values()), ""),
        quarantine=(*states, *others),
        folders=tuple(sorted({*(os.path.dirname(m.path) for m in states if not m.replaced), *all_below(new)})),
        restore=tuple(r for r in back if r.link or store.has(r.digest)),
        missing=tuple(r.path for r in back if not r.link and not store.has(r.digest)),
        argv=resumed_argv(seal.argv, resume, place),
        cwd=seal.cwd,
        why=found.why,
    )


# --------------------------------------------------------------------------- checkpoints


def _saves(case: CaseFile, point: Checkpoint | None) -> dict[str, list[CheckpointSaved]]:
    """Every path that the run saved a checkpoint to, with what was saved there."""
    found: dict[str, list[CheckpointSaved]] = {}
    for save in (*(e for e in case.entries if isinstance(e, CheckpointSaved)), *(point.files if point else ())):
        found.setdefault(save.path, []).append(save)
    return found


def _checkpoint_moves(
    case: CaseFile,
    saves: Mapping[str, Sequence[CheckpointSaved]],
    wanted: Mapping[str, CheckpointSaved],
    point: Checkpoint | None,
) -> Iterator[Move]:
    bad = {(c.attempt, c.step) for c in case.history.checkpoints if c.standing is Standing.TAINTED and c is not point}
    stays: set[str] = set()  # folders in which some recorded file stays
    for path, listed in saves.items():
        now, reason = digest_now(path), ""
        if path in wanted:
            if now not in ("", wanted[path].digest):
                reason = f"not the cleared checkpoint of step {wanted[path].step} that was saved here"
        elif now:
            reason = _unwanted(now, listed, bad, point.step if point else 0)
        if reason:
            yield Move(path=path, digest=now, reason=reason, replaced=path in wanted)
        if path in wanted or (now and not reason):
            stays.add(os.path.dirname(path))
    for path in _unknown(case, saves):
        yield Move(path=path, digest=digest_now(path), reason="looks like a checkpoint; the log does not know it")
    for folder in _own_folders(saves):
        for path in _beside(folder, saves) if folder not in stays else ():
            yield Move(path=path, digest=digest_now(path), reason=f"part of the checkpoint folder {folder}")


def _unknown(case: CaseFile, saves: Mapping[str, Sequence[CheckpointSaved]]) -> Iterator[str]:
    """Files with a checkpoint's name that came into being during or after this run and are in no log."""
    seen = {*saves}
    for path in saves:
        *above, folder, name = path.split("/")
        shape = _NUMBER.sub("[0-9]*", f"{folder}\0{name}".replace("[", "[[]")).split("\0")
        for found in glob.glob(os.path.join(glob.escape("/".join(above)) or "/", *shape)):
            numbered = _NUMBER.sub("#", found) == _NUMBER.sub("#", path)
            if numbered and found not in seen and os.path.isfile(found):
                seen.add(found)
                if _came_since(case, found):
                    yield found
    seal = case.seal.seal if case.seal else None
    for folder in named_paths(seal.argv[1:], seal.cwd)[1] if seal else ():
        for parent, _, names in os.walk(folder):
            for found in (os.path.join(parent, name) for name in sorted(names) if name.endswith(_STATES)):
                if found not in seen and _came_since(case, found):
                    seen.add(found)
                    yield found


def _came_since(case: CaseFile, path: str) -> bool:
    return os.lstat(path).st_ctime_ns > case.sealed.wall_ns


def _unwanted(now: str, listed: Sequence[CheckpointSaved], tainted: set[tuple[int, int]], from_step: int) -> str:
    """Why a file at a checkpoint's place must not stay there, "" when it may."""
    same = [s for s in listed if s.digest == now]
    if not same:
        return f"not what was recorded here at step {listed[-1].step}"
    if any((s.attempt, s.step) in tainted for s in same):
        return f"tainted checkpoint of step {same[-1].step}"
    last = max(s.step for s in same)
    return f"checkpoint of step {last}, later than step {from_step}" if last > from_step else ""


def _own_folders(saves: Mapping[str, Sequence[CheckpointSaved]]) -> Iterator[str]:
    """Folders that hold one step's checkpoint only: their name has the step's number in it."""
    steps: dict[str, set[int]] = {}
    for path, listed in saves.items():
        steps.setdefault(os.path.dirname(path), set()).update(s.step for s in listed)
    for folder, found in steps.items():
        if len(found) == 1 and is_of_step(folder, *found):
            yield folder


def _beside(folder: str, saves: Mapping[str, Sequence[CheckpointSaved]]) -> Iterator[str]:
    """What lies in a checkpoint's folder and was not recorded."""
    for parent, _, names in os.walk(folder):
        paths = (os.path.join(parent, name) for name in sorted(names))
        yield from (path for path in paths if path not in saves and digest_now(path))


def _checkpoint_restores(wanted: Mapping[str, CheckpointSaved]) -> Iterator[Restore]:
    for path, save in wanted.items():
        if digest_now(path) != save.digest:
            yield Restore(path=path, digest=save.digest, kind="checkpoint")


# --------------------------------------------------------------------------- sealed files


def _new_folders(store: Store, seal: Seal, changes: Sequence[FileChanged]) -> list[str]:
    """The folders of packages that are new."""
    new = [path_real(c.path) for c in changes if c.kind == "environment" and c.found and not c.sealed]
    return new_folders(new, expected(store, seal, "environment")) if new else []


def _came_along(
    folders: Sequence[str], case: CaseFile, bounds: Boundaries, changes: Sequence[FileChanged]
) -> Iterator[Move]:
    changed = {path_real(c.path) for c in changes}
    for path in came_along(folders, case.sealed.wall_ns, bounds):
        if path not in changed:
            yield Move(path=path, digest=digest_now(path), reason="came with new environment files")


def sealed_moves(changes: Iterable[FileChanged]) -> Iterator[Move]:
    """Moves of what is at sealed places and is not what was sealed."""
    for change in changes:
        if change.found:
            reason = f"sealed {change.kind} file, changed" if change.sealed else f"new {change.kind} file, not sealed"
            yield Move(path=path_real(change.path), digest=change.found, reason=reason, replaced=bool(change.sealed))


def _sealed_restores(store: Store, case: CaseFile, changes: Sequence[FileChanged]) -> Iterator[Restore]:
    if case.seal is None:
        return
    for kind in KINDS:
        lost = [path_real(c.path) for c in changes if c.kind == kind and c.sealed]
        if not lost:
            continue
        files = expected(store, case.seal, kind).files
        times = _cache_times(store, files, set(lost))
        for path in lost:
            entry = files[path]
            yield Restore(
                path=path,
                digest=entry.digest,
                kind=kind,
                mode=entry.mode,
                link=path_real(entry.link) if entry.link else "",
                mtime=times.get(path, -1),
            )


def _cache_times(store: Store, files: Mapping[str, FileEntry], sources: set[str]) -> dict[str, int]:
    """The time that a restored source needs, so that Python takes its sealed cache for its own (PEP 552)."""
    times: dict[str, int] = {}
    for path, entry in files.items():
        if path.endswith(".pyc") and not entry.inert and (source := source_of(path)) and source[0] in sources:
            head = store.get(entry.digest)[:16] if store.has(entry.digest) else b""
            if len(head) == 16 and not head[4] & 1:
                times[source[0]] = int.from_bytes(head[8:12], "little")
    return times


# --------------------------------------------------------------------------- the command


def resumed_argv(argv: Sequence[str], template: str, place: str) -> tuple[str, ...]:
    """The sealed command, with the resume arguments for `place`; those of an earlier recovery are replaced."""
    words = template.split()
    plain = _without(list(argv), words)
    return tuple(plain + [w.replace(PLACE, place) for w in words] if place else plain)


def _without(argv: list[str], words: Sequence[str]) -> list[str]:
    if not words or not words[0].startswith("-"):
        return argv
    shape = re.compile("\0".join(re.escape(w).replace(re.escape(PLACE), "[^\0]*") for w in words))
    kept, at = [], 0
    while at < len(argv):
        if shape.fullmatch("\0".join(argv[at : at + len(words)])):
            at += len(words)
        else:
            kept.append(argv[at])
            at += 1
    return kept
