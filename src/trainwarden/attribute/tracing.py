"""Where each artefact comes from: the first appearance of its digest, and the deeds that wrote it.

Rules
-----
* A deed counts if a source that its subject cannot write at will tells it: an owner, an author typed into a commit, an
  unsigned commit and a history file only *point* at an account.
* Where a source tells the digest that was found, its deed is certain, and writes of unknown content beside it are
  dropped; before the last time that the file was seen as approved, no write can be the one.
* Lines of several sources about one act are one deed with all of them as witnesses.
* What a process of a job wrote tells whose job it was. Who wrote what that job ran is another artefact's question.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from trainwarden.attribute.nouns import At, Deed, Trace
from trainwarden.attribute.tables import NAMES, Tables
from trainwarden.custody.table import event_of
from trainwarden.model import Act, Artefact, Binding, CustodyEvent, SourceKind

WRITING = (Act.WRITE, Act.RENAME, Act.DELETE, Act.COMMIT, Act.PUSH, Act.SIGNAL)
_RELATIVE = (SourceKind.GIT, SourceKind.FILES, SourceKind.SNAPSHOT)
_JOBS = ("slurmstepd", "torchrun", "srun", "mpirun", "containerd-shim", "torch.distributed.run", "accelerate")
_SLACK_NS = 2_000_000_000  # between what a kernel sees and what a service logs of it
_AUTHOR = re.compile(r"author, as it says: (\S+)")
_LINES = 50_000


def trace(
    tables: Tables, artefacts: Sequence[Artefact], aliases: Mapping[str, Sequence[str]], jobs: frozenset[int]
) -> tuple[Trace, ...]:
    """Every artefact's trace; `aliases` are other names of digests, `jobs` the process ids of guarded ranks."""
    told = _lines(tables, artefacts, aliases)
    weak = {evidence.id for evidence in tables.evidence if evidence.weak}
    return tuple(
        _trace(n, artefact, {artefact.digest, *aliases.get(artefact.digest, ())} - {""}, told.get(n, []), weak, jobs)
        for n, artefact in enumerate(artefacts)
    )


def _lines(
    tables: Tables, artefacts: Sequence[Artefact], aliases: Mapping[str, Sequence[str]]
) -> dict[int, list[CustodyEvent]]:
    """The events that name an artefact's path or digest, by artefact."""
    rows = []
    for n, a in enumerate(artefacts):
        for digest in {a.digest, *aliases.get(a.digest, ()), a.before, *aliases.get(a.before, ())} - {""}:
            rows.append((n, "", digest))
        if a.path:
            rows.append((n, a.path, ""))
    tables.db.execute("CREATE OR REPLACE TEMP TABLE wanted (artefact INT, path VARCHAR, digest VARCHAR)")
    if not rows:
        return {}
    tables.db.executemany("INSERT INTO wanted VALUES (?, ?, ?)", rows)
    relative = [n for n, e in enumerate(tables.evidence) if e.kind in _RELATIVE] or [-1]
    names = ", ".join(f"e.{name}" for name in NAMES)
    found = tables.rows(
        f"SELECT w.artefact, e.source, {names} FROM events e JOIN wanted w ON e.path = w.path WHERE w.path <> '' "
        f"UNION SELECT w.artefact, e.source, {names} FROM events e JOIN wanted w ON e.digest = w.digest "
        "WHERE w.digest <> '' "
        f"UNION SELECT w.artefact, e.source, {names} FROM (SELECT * FROM events WHERE path <> '' AND source IN "
        f"({', '.join(map(str, relative))})) e JOIN wanted w ON w.path <> '' AND "
        "ends_with(w.path, '/' || ltrim(e.path, './')) "
        f"ORDER BY time_ns LIMIT {_LINES}"
    )
    told: dict[int, list[CustodyEvent]] = {}
    for artefact, source, *values in found:
        event = event_of(dict(zip(NAMES, values, strict=True)), tables.evidence[source].id)
        told.setdefault(artefact, []).append(event)
    for n, event in _histories(tables, artefacts):
        told.setdefault(n, []).append(event)
    return told


def _histories(tables: Tables, artefacts: Sequence[Artefact]) -> Iterable[tuple[int, CustodyEvent]]:
    """Commands of weak sources that name a file as an artefact is named."""
    weak = [n for n, e in enumerate(tables.evidence) if e.weak]
    for n, artefact in enumerate(artefacts):
        name = posixpath.basename(artefact.path)
        if weak and name:
            where = f"source IN ({', '.join(map(str, weak))}) AND contains(tree, ?)"
            yield from ((n, event) for event in tables.events(where, [name]))


def _trace(
    n: int,
    artefact: Artefact,
    digests: set[str],
    events: list[CustodyEvent],
    weak: set[str],
    jobs: frozenset[int],
) -> Trace:
    earliest = min((e for e in events if e.digest in digests), key=lambda e: e.time_ns, default=None)
    good = [e.time_ns for e in events if artefact.before and e.digest == artefact.before]
    since = max((t for t in good if not artefact.found_ns or t <= artefact.found_ns), default=0)
    deeds = [_deed(n, e, digests, jobs) for e in events if _is_deed(e, artefact, digests, weak, since)]
    merged = _merged(deeds)
    commits = [d for d in merged if d.act is Act.COMMIT]  # in a repository; that it came here is another act
    writes = [d for d in merged if d.act is not Act.COMMIT]
    writes = [d for d in writes if d.certain] or writes
    return Trace(
        artefact=artefact,
        earliest=earliest,
        deeds=tuple(sorted((*commits, *writes), key=lambda d: d.time_ns)),
        pointers=tuple(dict.fromkeys(p for e in events for p in _pointers(e, weak))),
    )


def _is_deed(event: CustodyEvent, artefact: Artefact, digests: set[str], weak: set[str], since: int) -> bool:
    if event.act not in WRITING or not (event.account or event.login) or event.source in weak:
        return False
    if event.act is Act.COMMIT and event.binding is Binding.NONE:
        return False  # names in a commit are text
    if event.digest and event.digest not in digests:
        return False
    late = artefact.found_ns and event.time_ns - event.error_ns > artefact.found_ns + _SLACK_NS
    return not late and event.time_ns + event.error_ns >= since


def _deed(n: int, event: CustodyEvent, digests: set[str], jobs: frozenset[int]) -> Deed:
    return Deed(
        artefact=n,
        act=event.act,
        time_ns=event.time_ns,
        error_ns=event.error_ns,
        who=event.login or event.account,
        account=event.account,
        kind=event.kind,
        host=event.host,
        session=event.session,
        origin=event.origin,
        processes=event.processes,
        told=(At(source=event.source, line=event.line),),
        digest=event.digest,
        certain=event.digest in digests,
        by_job=_by_job(event, jobs),
        binding=event.binding,
    )


def _by_job(event: CustodyEvent, jobs: frozenset[int]) -> bool:
    if any(process.pid in jobs for process in event.processes[:1]):
        return True
    words = [posixpath.basename(p.program) for p in event.processes] + [w for p in event.processes for w in p.argv[:4]]
    return any(job in word for word in words for job in _JOBS)


def _merged(deeds: list[Deed]) -> list[Deed]:
    """One deed for all lines that can be about the same act."""
    kept: list[Deed] = []
    for deed in sorted(deeds, key=lambda d: (d.time_ns, d.error_ns)):
        same = next((n for n, k in enumerate(kept) if _same(k, deed)), None)
        if same is None:
            kept.append(deed)
            continue
        a, b = kept[same], deed
        finer, other = (a, b) if a.error_ns <= b.error_ns else (b, a)
        kept[same] = msgspec.structs.replace(
            finer,
            told=tuple(dict.fromkeys((*a.told, *b.told))),
            kind=finer.kind or other.kind,
            host=finer.host or other.host,
            session=finer.session or other.session,
            origin=finer.origin or other.origin,
            processes=max(finer.processes, other.processes, key=len),
            digest=finer.digest or other.digest,
            certain=a.certain or b.certain,
            by_job=a.by_job or b.by_job,
            binding=finer.binding if finer.binding is not Binding.NONE else other.binding,
        )
    return kept


def _same(a: Deed, b: Deed) -> bool:
    return (
        a.who == b.who
        and (a.act is b.act or {a.act, b.act} <= {Act.WRITE, Act.RENAME})
        and (a.host == b.host or not a.host or not b.host)
        and abs(a.time_ns - b.time_ns) <= a.error_ns + b.error_ns + _SLACK_NS
    )


def _pointers(event: CustodyEvent, weak: set[str]) -> Iterable[str]:
    if event.act is Act.EXISTS and event.account:
        yield event.account
    if event.source in weak and event.account:
        yield event.account
    if event.act is Act.COMMIT and event.binding is Binding.NONE and event.account and event.path:
        yield event.account
    if event.act is Act.COMMIT and (found := _AUTHOR.search(event.note)):
        yield found[1]
