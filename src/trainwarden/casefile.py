"""One run as an investigator reads it: seal, log, verdicts, checkpoints and how they hang together.

Rules
-----
* Reading changes nothing. A broken log is read as far as it goes and its state says so; a run whose first
  entry cannot be read is an error.
* The answer about a run comes from verdicts alone. Findings raise suspicion, and no number of them makes
  an answer; "not audited" and "could not be decided" are answers of their own, never a pass.
* A checkpoint stands on its parents' logs too: each is verified before anything is taken from it.

Trust: with a key given by the caller, the log and the seal are what that key signed. With the key that the
log itself names they are only consistent with each other, and `key_source` says which of both it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec
from blake3 import blake3

from trainwarden.errors import LogError, LogTampered, StoreError, TrainWardenError, UsageError
from trainwarden.lineage import History, against_disk, as_inherited, trace
from trainwarden.log.reader import LogReader
from trainwarden.log.verify import verify_log
from trainwarden.model import (
    Checkpoint,
    CheckpointSaved,
    Diverged,
    Entry,
    Explanation,
    Inconclusive,
    Location,
    Manifest,
    Matched,
    Recovered,
    Sealed,
    SignedSeal,
    StepRecord,
    TreeHead,
    Verdict,
    decode_entry,
)
from trainwarden.seal.seal import read_seal
from trainwarden.standing import matched_steps
from trainwarden.store import RunDir, Store

T = TypeVar("T")

_DEEPEST_ANCESTRY = 64
_CHUNK = 4 * 1024 * 1024


class Intact(msgspec.Struct, frozen=True, kw_only=True, tag="intact"):
    """Log and seal verify under `key`."""

    head: TreeHead


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    """The log or the seal does not verify; what was read of it may be false."""

    reason: str
    hint: str = ""


LogState: TypeAlias = Intact | Broken


class KeySource(StrEnum):
    """Where the key came from that the log was checked against."""

    GIVEN = "given"
    LOG = "the log itself"


class Answer(StrEnum):
    """What is known of a run as a whole."""

    BROKEN = "broken"
    DIVERGED = "diverged"
    UNDECIDED = "undecided"
    MATCHED = "matched"
    NOT_AUDITED = "not audited"


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a run was audited, in step records (one rank's one step)."""

    records: int  # in the log
    matched: int  # in segments whose replay reproduced every digest, or before the first difference of one
    digests: int  # compared in all
    unseen: dict[str, str] = {}  # stage → why it was not compared


class CaseFile(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of one run. An entry's log index is its place in `entries`."""

    run: str
    path: str
    key: str
    key_source: KeySource
    state: LogState
    sealed: Sealed
    seal: SignedSeal | None
    entries: tuple[Entry, ...]
    history: History
    audited: Audited
    answer: Answer
    sentence: str


def load_case(store: Store, run: str, public_key: str = "", *, look_at_files: bool = True) -> CaseFile:
    """Read the run named `run` (an id, its beginning or end, or "last").

    Without `public_key` the log is checked against the key that its own first entry names. With
    `look_at_files` every checkpoint file that is still there is hashed.

    Raises:
        UsageError: there is no such run, or it has no log yet.
        LogTampered: not even the log's first entry can be read.
    """
    folder = store.run(run)
    entries, damage = read_entries(folder)
    if not entries and damage:
        raise LogTampered(f"the log of run {folder.id} cannot be read: {damage}", hint="restore it from a copy")
    if not entries or not isinstance(entries[0], Sealed):
        raise UsageError(
            f"run {folder.id} has no log yet: it stopped before it was sealed",
            hint="start it again with `trainwarden run -- COMMAND`",
        )
    first = entries[0]
    key = public_key or first.key
    state, seal = _check(folder, first, key, damage)
    history = _history(store, entries, seal, first.parent, key, look_at_files)
    audited = _audited(entries)
    answer, sentence = _answer(state, entries, audited)
    return CaseFile(
        run=folder.id,
        path=str(folder.path),
        key=key,
        key_source=KeySource.GIVEN if public_key else KeySource.LOG,
        state=state,
        sealed=first,
        seal=seal,
        entries=entries,
        history=history,
        audited=audited,
        answer=answer,
        sentence=sentence,
    )


def read_entries(folder: RunDir) -> tuple[tuple[Entry, ...], str]:
    """The run's entries as far as they can be read, and what stopped the reading ("" when nothing did)."""
    entries: list[Entry] = []
    try:
        for _, data in LogReader.open(folder.log).entries():
            entries.append(decode_entry(data))
    except (LogError, msgspec.DecodeError) as e:
        return tuple(entries), str(e)
    return tuple(entries), ""


def indexed(entries: Sequence[Entry], kind: type[T]) -> list[tuple[int, T]]:
    """The entries of one kind with their log indexes."""
    return [(index, entry) for index, entry in enumerate(entries) if isinstance(entry, kind)]


def earliest_divergence(entries: Sequence[Entry]) -> tuple[int, Diverged] | None:
    """The `Diverged` that came first in the job's own time, with its log index."""
    found = indexed(entries, Diverged)
    return min(found, key=lambda pair: _when(pair[1]), default=None)


def explanation_of(entries: Sequence[Entry], verdict: Diverged) -> tuple[int, Explanation] | None:
    """The latest explanation of the place where `verdict` diverged, one with a cause before one without.

    An explanation may name another rank or an earlier stage of the step, where what was done shows elsewhere first.
    """
    at = verdict.at
    found = [(index, e) for index, e in indexed(entries, Explanation) if _explains(e.at, at)]
    return max(found, key=lambda pair: (pair[1].cause is not None, pair[0]), default=None)


def _explains(place: Location, at: Location) -> bool:
    return (place.step, place.optimizer) == (at.step, at.optimizer) and place.order <= at.order


def file_digest(path: Path) -> str:
    """The BLAKE3 of a file, "" when it is gone or cannot be read."""
    hasher = blake3()
    try:
        with path.open("rb", buffering=0) as f:
            while chunk := f.read(_CHUNK):
                hasher.update(chunk)
    except OSError:
        return ""
    return hasher.hexdigest()


# --------------------------------------------------------------------------- reading


def _check(folder: RunDir, first: Sealed, key: str, damage: str) -> tuple[LogState, SignedSeal | None]:
    try:
        head = verify_log(folder.log, key)
        if damage:
            return Broken(reason=damage), None
        seal = read_seal(folder.seal_file, key)
    except TrainWardenError as e:
        return Broken(reason=str(e), hint=e.hint), None
    if seal.digest != first.seal:
        reason = f"the log was begun for seal {first.seal}, seal.json holds {seal.digest}"
        return Broken(reason=reason, hint="seal.json was replaced after the run began"), None
    if first.run != folder.id:
        reason = f"the log was begun for run {first.run}, it lies in the folder of run {folder.id}"
        return Broken(reason=reason, hint="the folder was renamed or the log was copied"), None
    return Intact(head=head), seal


def _history(
    store: Store,
    entries: Sequence[Entry],
    seal: SignedSeal | None,
    parent: str,
    key: str,
    look_at_files: bool,
) -> History:
    inherited = _inherited(store, parent, key, _DEEPEST_ANCESTRY)
    history = trace(entries, sealed=sealed_digests(store, seal), inherited=inherited)
    if not look_at_files:
        return history
    checkpoints = _on_disk(store, entries, history.checkpoints)
    return msgspec.structs.replace(history, checkpoints=checkpoints)


def _inherited(store: Store, run: str, key: str, depth: int) -> tuple[Checkpoint, ...]:
    """The checkpoints of the run that this one recovers and of its parents, of logs that verify only."""
    if not run or depth == 0 or run not in store.runs():
        return ()
    folder = store.run(run)
    entries, damage = read_entries(folder)
    if not entries or not isinstance(entries[0], Sealed):
        return ()
    state, seal = _check(folder, entries[0], key, damage)
    if isinstance(state, Broken):
        return ()
    before = _inherited(store, entries[0].parent, key, depth - 1)
    history = trace(entries, sealed=sealed_digests(store, seal), inherited=before)
    return as_inherited((*before, *history.checkpoints), run)


def sealed_digests(store: Store, signed: SignedSeal | None) -> frozenset[str]:
    """The digests of all files that the seal lists; a manifest that cannot be read adds none."""
    if signed is None:
        return frozenset()
    digests: set[str] = set()
    for ref in (signed.seal.code, signed.seal.environment, signed.seal.data):
        try:
            manifest = msgspec.json.decode(store.get(ref.digest), type=Manifest)
        except (StoreError, msgspec.DecodeError):
            continue
        digests.update(entry.digest for tree in manifest.trees for entry in tree)
    return frozenset(digests)


def _on_disk(store: Store, entries: Sequence[Entry], checkpoints: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
    paths = {file.path for c in checkpoints for file in c.files}
    found = {path: file_digest(Path(path)) for path in sorted(paths) if os.path.isabs(path)}
    recorded: dict[str, set[str]] = {}
    for saved in _saves(store, entries):
        recorded.setdefault(saved.path, set()).add(saved.digest)
    return against_disk(checkpoints, found, recorded)


def _saves(store: Store, entries: Iterable[Entry]) -> Iterable[CheckpointSaved]:
    """The saves of this run and of those that recover it."""
    known = set(store.runs())
    waiting, done = list(entries), set[str]()
    for entry in waiting:
        if isinstance(entry, CheckpointSaved):
            yield entry
        elif isinstance(entry, Recovered) and entry.new_run in known - done:
            done.add(entry.new_run)
            waiting.extend(read_entries(store.run(entry.new_run))[0])


# --------------------------------------------------------------------------- answering


def _when(verdict: Diverged) -> tuple[int, int, int, int]:
    at = verdict.at
    return verdict.segment.attempt, at.step, at.order, at.rank


def _audited(entries: Sequence[Entry]) -> Audited:
    verdicts = [e for e in entries if isinstance(e, Matched | Diverged)]
    unseen: dict[str, str] = {}
    for verdict in verdicts:
        unseen |= verdict.coverage.unseen
    matched = matched_steps(entries)
    return Audited(
        records=sum(isinstance(e, StepRecord) for e in entries),
        matched=sum(isinstance(e, StepRecord) and (e.attempt, e.step) in matched for e in entries),
        digests=sum(v.coverage.digests for v in verdicts),
        unseen=unseen,
    )


def _answer(state: LogState, entries: Sequence[Entry], audited: Audited) -> tuple[Answer, str]:
    if isinstance(state, Broken):
        return Answer.BROKEN, f"the log or the seal does not verify: {state.reason}"
    if (found := earliest_divergence(entries)) is not None:
        return Answer.DIVERGED, _diverged_sentence(entries, found[1])
    verdicts: list[Verdict] = [e for e in entries if isinstance(e, Matched | Inconclusive)]
    share = f"{audited.matched} of {audited.records} step records"
    if any(isinstance(v, Inconclusive) for v in verdicts):
        return Answer.UNDECIDED, f"some segments could not be decided; {share} were reproduced"
    if verdicts:
        return Answer.MATCHED, f"every audited segment matched; {share} were reproduced"
    return Answer.NOT_AUDITED, "not audited: nothing has been replayed yet, so nothing is known either way"


def _diverged_sentence(entries: Sequence[Entry], verdict: Diverged) -> str:
    at = verdict.at
    where = f"diverged at step {at.step}, rank {at.rank}, {at.words}"
    told = explanation_of(entries, verdict)
    if told is None:
        return f"{where}; the cause was not looked for yet"
    cause = told[1].cause
    return f"{where}; cause proved: {cause}" if cause else f"{where}; cause not established"


def coverage_share(audited: Audited) -> float:
    """The part of the step records that a replay reproduced, 0 … 1."""
    return audited.matched / audited.records if audited.records else 0.0
