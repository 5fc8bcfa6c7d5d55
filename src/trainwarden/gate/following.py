"""Follows the logs that clearances stand on: each entry is verified and judged once, when it comes.

Rules
-----
* A run's log is read once for all checkpoints that stand on it. One look judges all of it; further ones judge what came
  since, for whoever answers many times a second beside a run that goes on.
* A log that got shorter, whose head went back, that is not there, or is another one than when a checkpoint was cleared,
  is a trouble.
* Open incidents are read when the log of custody changed, for all runs at once.
* A freeze is looked for anew when something that could be one came, or the store's list of frozen runs changed.

Trust: the runs' keys. What was read before is not read again: an entry that is altered later was counted already.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from trainwarden import descent
from trainwarden.custody.ledger import folder as custody_folder
from trainwarden.errors import LogError, SignatureInvalid, StoreError, UsageError
from trainwarden.gate.findings import divergences, open_findings
from trainwarden.gate.incidents import Incidents
from trainwarden.log.following import LogFollower
from trainwarden.log.storage import HEAD, look_at
from trainwarden.model import (
    CheckpointCleared,
    CheckpointLoaded,
    Contained,
    Diverged,
    Entry,
    Finding,
    Recovered,
    RunSeen,
    Severity,
    Undone,
    decode_entry,
)
from trainwarden.store import Store

_TROUBLES = (LogError, StoreError, UsageError, SignatureInvalid, msgspec.DecodeError)


class Following:
    """What the logs of runs have against checkpoints; kept between looks, for one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._incidents = Incidents(store)
        self._runs: dict[tuple[str, str], RunLog] = {}
        self._judged: dict[tuple[str, int, str], _Judged] = {}
        self._told: dict[tuple[str, str], str] = {}  # what is wrong with each log, by this look

    def look_again(self) -> None:
        """From here on a new look: each log is looked at again, once."""
        self._told.clear()
        self._incidents.look_again()

    def against(self, clearance: CheckpointCleared) -> tuple[str, ...]:
        """What is against a checkpoint as of this look; () for nothing."""
        found = (told for run in clearance.runs for told in self._of(clearance, run))
        return tuple(dict.fromkeys(found))

    def keep(self, clearances: Collection[CheckpointCleared]) -> None:
        """Forget what does not concern these."""
        runs = {(run.run, run.key) for c in clearances for run in c.runs}
        self._runs = {key: log for key, log in self._runs.items() if key in runs}
        wanted = {_key(c, run) for c in clearances for run in c.runs}
        self._judged = {key: judged for key, judged in self._judged.items() if key in wanted}

    def _of(self, clearance: CheckpointCleared, run: RunSeen) -> tuple[str, ...]:
        log = self._runs.setdefault((run.run, run.key), RunLog(self._store, run.run, run.key))
        judged = self._judged.setdefault(_key(clearance, run), _Judged(run, clearance.findings))
        if (run.run, run.key) not in self._told:
            self._told[run.run, run.key] = log.look()
        trouble = self._told[run.run, run.key] or judged.is_another(log)
        found = (*self._incidents.open_on(run.run), *log.frozen, *judged.judge(log))
        return (f"run {run.run} cannot be looked at: {trouble}", *found) if trouble else found


class RunLog:
    """What one run's log says that may be against checkpoints."""

    def __init__(self, store: Store, run: str, key: str) -> None:
        self._store, self._run = store, run
        self.log = LogFollower(store.path / "runs" / run / "log", key)
        self.weighty: list[tuple[int, Finding | Diverged]] = []
        self.frozen: tuple[str, ...] = ()
        self._looks: object = None
        self._marks: object = None
        self._related = True

    def look(self) -> str:
        """Read what is new; what is wrong with the log, "" for nothing."""
        looks = look_at(head_of(self._store, self._run)), frozen_marks(self._store)
        if looks == self._looks:
            return ""
        try:
            for batch in self.log.new():
                entries = [(frame.index, decode_entry(frame.data)) for frame in batch.entries]
                self.weighty += [(i, entry) for i, entry in entries if isinstance(entry, Finding | Diverged)]
                self._related |= any(_is_of_kin(entry) for _, entry in entries)
            self._look_for_freezes(looks[1])
        except _TROUBLES as e:
            self._looks = None  # it may pass: to be looked at again
            return str(e)
        self._looks = looks
        return ""

    def _look_for_freezes(self, marks: object) -> None:
        if not self._related and marks == self._marks:
            return
        self.frozen = tuple(
            f"run {frozen.run} is frozen (entry {frozen.index}: {frozen.reason or 'no reason given'})"
            for frozen in descent.frozen_by(self._store, self._run)
        )
        self._related, self._marks = False, marks


class _Judged:
    """What of a run's log is against one checkpoint: of the entries after it was cleared, at steps it stands on."""

    def __init__(self, seen: RunSeen, least: Severity) -> None:
        self._seen, self._least = seen, least
        self._found: dict[str, None] = {}
        self._done = 0  # of the log's weighty entries

    def judge(self, log: RunLog) -> tuple[str, ...]:
        new = [(index, entry) for index, entry in log.weighty[self._done :] if index >= self._seen.size]
        run, until = self._seen.run, self._seen.until
        for index, diverged in divergences(new, until):
            self._found[f"run {run} diverged at step {diverged.at.step} (entry {index}: {diverged.at.words})"] = None
        for index, finding in open_findings(new, until, self._least):
            told = f"run {run}, entry {index}, {finding.severity} finding {finding.detector}: {finding.seen}"
            self._found[told] = None
        self._done = len(log.weighty)
        return tuple(self._found)

    def is_another(self, log: RunLog) -> str:
        """How the log is not the one that the checkpoint was cleared by, "" where it is."""
        if log.log.size < self._seen.size:
            return f"it has {log.log.size} entries, {self._seen.size} were there when it was cleared"
        if log.log.root(self._seen.size) != self._seen.root:
            return "it is another one than when it was cleared"
        return ""


def _is_of_kin(entry: Entry) -> bool:
    return isinstance(entry, Contained | Undone | Recovered | CheckpointLoaded)


def _key(clearance: CheckpointCleared, run: RunSeen) -> tuple[str, int, str]:
    """What tells judgements apart: a checkpoint that is cleared anew is judged anew."""
    return clearance.digest, clearance.wall_ns, run.run


def head_of(store: Store, run: str) -> Path:
    """Where the head of a run's log lies; with `store_marks` it changes when there may be something new."""
    return store.path / "runs" / run / "log" / HEAD


def frozen_marks(store: Store) -> object:
    """The runs that are marked as frozen, each with its log's head: the mark comes before the entry that freezes."""
    try:
        names = sorted(os.listdir(store.frozen))
    except OSError:
        return ()
    return tuple((name, look_at(head_of(store, name))) for name in names)


def store_marks(store: Store) -> object:
    """What changes when anything of the whole store may be against a checkpoint: freezes, and the log of custody."""
    return frozen_marks(store), look_at(custody_folder(store) / HEAD)
