"""What an incident takes from a run: findings, verdicts, artefacts, and the run's own log as evidence.

Rules
-----
* Everything is named by run and log index. Nothing is judged here: a finding stays a suspicion.
* An artefact is what the log says was changed, moved away, or killed; of checkpoints those that stand as tainted.
* The log is taken in as it is now. A log that does not verify is taken in all the same, and the case says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from trainwarden.casefile import CaseFile, indexed, load_case
from trainwarden.custody import ledger
from trainwarden.custody.taking import Told, take_in
from trainwarden.model import (
    Artefact,
    CheckpointSaved,
    CodeSeen,
    Diverged,
    Evidence,
    Explanation,
    FileChanged,
    Finding,
    Incident,
    Inconclusive,
    Matched,
    ProcessExited,
    Quarantined,
    Reference,
    SourceKind,
    Standing,
)
from trainwarden.store import Store


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """What one run brings."""

    run: str
    findings: tuple[Reference, ...]
    verdicts: tuple[Reference, ...]
    artefacts: tuple[Artefact, ...]


def gather(case: CaseFile) -> Gathered:
    """What the run's log says, in the order of the log; each artefact once, as it was found first."""
    verdicts = [n for kind in (Matched, Diverged, Inconclusive, Explanation) for n, _ in indexed(case.entries, kind)]
    return Gathered(
        run=case.run,
        findings=tuple(Reference(run=case.run, index=n) for n, _ in indexed(case.entries, Finding)),
        verdicts=tuple(Reference(run=case.run, index=n) for n in sorted(verdicts)),
        artefacts=_once(_artefacts(case)),
    )


def _once(artefacts: Iterable[Artefact]) -> tuple[Artefact, ...]:
    found: dict[tuple[str, str], Artefact] = {}
    for artefact in artefacts:
        found.setdefault((artefact.path, artefact.digest), artefact)
    return tuple(found.values())


def _artefacts(case: CaseFile) -> Iterator[Artefact]:
    tainted = {f.digest for c in case.history.checkpoints if c.standing is Standing.TAINTED for f in c.files}
    for index, entry in enumerate(case.entries):
        at = Reference(run=case.run, index=index)
        match entry:
            case FileChanged():
                yield Artefact(
                    path=entry.path, digest=entry.found, before=entry.sealed, what=f"changed {entry.kind}", at=at,
                    found_ns=entry.wall_ns,
                )  # fmt: skip
            case Quarantined():
                yield Artefact(
                    path=entry.path, digest=entry.digest, what="put in quarantine", at=at, found_ns=entry.wall_ns
                )
            case CheckpointSaved(digest=digest) if digest in tainted:
                yield Artefact(path=entry.path, digest=digest, what="tainted checkpoint", at=at)
            case CodeSeen():
                for d in entry.differences:
                    if d.file and d.kind in ("unsealed", "planted", "altered"):
                        yield Artefact(path=d.file, digest="", what=f"{d.kind} code in memory", at=at)
            case ProcessExited(sender=sender) if sender is not None:
                yield Artefact(path=f"pid {entry.pid}", digest="", what="killed", at=at, found_ns=entry.wall_ns)
            case _:
                pass


def take_log(store: Store, by: ledger.Signer, run: str, users: Mapping[int, str]) -> Evidence:
    """The run's log as evidence. One that was sent to a log server cannot be rewritten by root of its host alone.

    Raises:
        UsageError, CustodyTampered, StoreError, LogError: as `take_in`.
    """
    folder = store.run(run)
    sent = folder.shipping.is_dir() and any(folder.shipping.iterdir())
    told = Told(kind=SourceKind.LOG, users=users, editors=("admin:log-server",) if sent else ("root",))
    return take_in(store, by, folder.log / "journal", told)[0]


def bring_up_to_date(
    store: Store, by: ledger.Signer, incident: Incident, runs: Iterable[str] = (), users: Mapping[int, str] = {}
) -> Incident:
    """Add what the incident's runs and these say now, and all evidence that was taken in and is not in it yet.

    `users` are the names of user ids on the hosts of the runs.

    Raises:
        UsageError: it is closed, or there is no such run.
        LogTampered: not even the first entry of a run's log can be read.
        CustodyTampered, StoreError, LogError, LogLocked: as `ledger.add_to`.
    """
    names = dict.fromkeys((*incident.runs, *(store.run(name).id for name in runs)))
    cases = [load_case(store, name, look_at_files=False) for name in names]
    found = [gather(case) for case in cases]
    for name in names:
        take_log(store, by, name, users)
    taken = ledger.read_custody(store).evidence
    new = Incident(
        id=incident.id, title=incident.title, status=incident.status,
        runs=tuple(n for n in names if n not in incident.runs),
        findings=tuple(x for g in found for x in g.findings if x not in incident.findings),
        verdicts=tuple(x for g in found for x in g.verdicts if x not in incident.verdicts),
        artefacts=_new_artefacts(incident, found),
        custody=tuple(e.evidence for e in taken.values() if e.evidence not in incident.custody),
    )  # fmt: skip
    if not (new.runs or new.findings or new.verdicts or new.artefacts or new.custody):
        return incident
    return ledger.add_to(
        store, by, incident.id, runs=new.runs, findings=new.findings, verdicts=new.verdicts, artefacts=new.artefacts,
        evidence=[e.id for e in new.custody],
    )  # fmt: skip


def _new_artefacts(incident: Incident, found: Iterable[Gathered]) -> tuple[Artefact, ...]:
    known = {(a.path, a.digest) for a in incident.artefacts}
    return _once(a for g in found for a in g.artefacts if (a.path, a.digest) not in known)
