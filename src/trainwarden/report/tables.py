"""The tables of a report: stages of the diverging step, recorded against executed, findings, the changed files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import msgspec

from trainwarden.casefile import CaseFile, earliest_divergence, indexed
from trainwarden.detect.causes import alerts_of
from trainwarden.errors import StoreError
from trainwarden.model import (
    STAGES,
    Alert,
    ApprovalPolicy,
    Approved,
    CleanRoom,
    Confidence,
    Diverged,
    FileChanged,
    Finding,
    Location,
    Numerics,
    ProcessStarted,
    Severity,
    Stage,
    StepRecord,
)
from trainwarden.report.events import first_steps
from trainwarden.report.words import count, short, stage_name
from trainwarden.store import Store

MOST_FINDINGS = 60
MOST_DIFFS = 3
MOST_DIFF_LINES = 200
_LARGEST_DIFFED = 1 << 20
_MOST_DIFFED_LINES = 20_000
_SEVERITIES = (Severity.HIGH, Severity.MEDIUM, Severity.LOW, Severity.INFO)
_CONFIDENCES = (Confidence.HIGH, Confidence.MEDIUM, Confidence.LOW)


class StageRow(msgspec.Struct, frozen=True):
    """One stage of the diverging step: `mark` is "same", "differs", "unseen" or "after"."""

    name: str
    mark: str
    recorded: str
    replayed: str
    note: str


class Compared(msgspec.Struct, frozen=True):
    """One line of sealed against run: `mark` is "same", "differs" or ""."""

    name: str
    sealed: str
    ran: str
    mark: str


class DiffLine(msgspec.Struct, frozen=True):
    """A line of a unified diff: `kind` is "add", "cut", "place" or "same"."""

    kind: str
    text: str


class Diff(msgspec.Struct, frozen=True):
    """A changed file against the sealed one; without lines `note` says why there are none."""

    path: str
    lines: tuple[DiffLine, ...] = ()
    note: str = ""


# --------------------------------------------------------------------------- the diverging step


def stage_rows(case: CaseFile) -> list[StageRow]:
    """Every stage of the earliest diverging step, in the order in which a step computes them."""
    found = earliest_divergence(case.entries)
    if found is None:
        return []
    verdict = found[1]
    record = _record(case, verdict)
    begun = [_begun_row(verdict.at)] if verdict.at.before else []
    return begun + [_stage_row(stage, verdict, record) for stage in STAGES]


def _record(case: CaseFile, verdict: Diverged) -> StepRecord | None:
    at = verdict.at
    wanted = (verdict.segment.attempt, at.rank, at.step, at.optimizer)
    records = (r for _, r in indexed(case.entries, StepRecord))
    return next((r for r in records if (r.attempt, r.rank, r.step, r.optimizer) == wanted), None)


def _begun_row(at: Location) -> StageRow:
    return StageRow(at.subject, "differs", short(at.recorded), short(at.replayed), _tensors(at))


def _tensors(at: Location) -> str:
    others = len(at.tensors) - 1
    return (at.tensor or "the stage as a whole") + (f" and {others} more" if others > 0 else "")


def _stage_row(stage: Stage, verdict: Diverged, record: StepRecord | None) -> StageRow:
    name, at = stage_name(stage), verdict.at
    committed = record.stages.get(stage) if record else None
    if stage is at.stage and not at.before:
        return StageRow(name, "differs", short(at.recorded), short(at.replayed), _tensors(at))
    if committed is None or not committed.root:
        why = committed.unseen if committed and committed.unseen else "not in the record"
        return StageRow(name, "unseen", "", "", why)
    if stage in verdict.coverage.unseen and STAGES.index(stage) >= at.order:
        return StageRow(name, "unseen", short(committed.root), "", verdict.coverage.unseen[stage])
    if STAGES.index(stage) < at.order:
        return StageRow(name, "same", short(committed.root), short(committed.root), count(committed.tensors, "tensor"))
    return StageRow(name, "after", short(committed.root), "", "follows the first difference")


# --------------------------------------------------------------------------- sealed against run


def compared(case: CaseFile) -> list[Compared]:
    """Command, interpreter, world and numerics as sealed and as the ranks say they ran."""
    starts = [s for _, s in indexed(case.entries, ProcessStarted)]
    if case.seal is None:
        return []
    seal = case.seal.seal
    starts = [_at_home(s, case) for s in starts]
    rows = (
        [Compared("approved by", _policy_line(seal.approval), approval_line(case), "")]
        if seal.approval.approvals
        else []
    )
    rows.append(Compared("command", " ".join(seal.argv), "; ".join(_distinct(" ".join(s.argv) for s in starts)), ""))
    rows.append(_compare("folder", seal.cwd, _distinct(s.cwd for s in starts)))
    rows.append(_compare("interpreter", seal.interpreter, _distinct(s.executable for s in starts)))
    if seal.world:
        rows.append(_compare("ranks", str(seal.world), _distinct(str(s.world) for s in starts)))
    rows += _numerics(seal.numerics, [s.numerics for s in starts])
    kept = ", ".join(map(short, _distinct(s.env_digest for s in starts)))
    ran = f"values kept in private, digest {kept}" if kept else "nothing started"
    rows.append(Compared("environment variables", _variables(seal.env_vars), ran, ""))
    return rows


def approval_line(case: CaseFile) -> str:
    """Who approved the seal, as the run's own log says; whether that holds is for `verify` to check."""
    if case.seal is None or not case.seal.seal.approval.approvals:
        return "by nobody: the seal demands no approval"
    found = [a for _, entry in indexed(case.entries, Approved) for a in entry.approvals if a.seal == case.seal.digest]
    names = ", ".join(dict.fromkeys(a.actor for a in found)) or "nobody"
    return f"by {names}; {_policy_line(case.seal.seal.approval)}"


def _policy_line(policy: ApprovalPolicy) -> str:
    return f"{policy.approvals} of {', '.join(policy.approvers)}, registrar {short(policy.registrar)}"


def _at_home(start: ProcessStarted, case: CaseFile) -> ProcessStarted:
    """A rank of a clean room that is a copy, with the sealed places instead of the room's."""
    rooms = [f"{room.path}/root" for _, room in indexed(case.entries, CleanRoom) if room.kind == "copy"]

    def home(path: str) -> str:
        return next((path.removeprefix(r) for r in rooms if path.startswith(r + "/")), path)

    return msgspec.structs.replace(start, executable=home(start.executable), argv=tuple(map(home, start.argv)))


def _numerics(sealed: Numerics, ran: Sequence[Numerics]) -> list[Compared]:
    """One line for all that is the same, one for each setting that differs."""
    same, rows = [], []
    for field in Numerics.__struct_fields__:
        wanted = str(getattr(sealed, field) or "")
        found = [v for v in _distinct(str(getattr(n, field) or "") for n in ran) if v]
        if not wanted or not found:
            continue
        row = _compare(field, wanted, found)
        if row.mark == "same":
            same.append(f"{field} {wanted}")
        else:
            rows.append(row)
    joined = ", ".join(same)
    return ([Compared("numerics", joined, joined, "same")] if same else []) + rows


def _compare(name: str, sealed: str, ran: Sequence[str]) -> Compared:
    mark = "" if not ran else "same" if all(value == sealed for value in ran) else "differs"
    return Compared(name, sealed, "; ".join(ran) or "nothing started", mark)


def _distinct(values: Iterable[str], most: int = 4) -> list[str]:
    kept = list(dict.fromkeys(values))
    return kept[:most] + ([f"{len(kept) - most} more"] if len(kept) > most else [])


def _variables(env: dict[str, str]) -> str:
    return "  ".join(f"{k}={v}" for k, v in sorted(env.items())) or "none"


def changes(case: CaseFile) -> list[FileChanged]:
    """The changed files, each path's latest state, at most 100."""
    latest = {c.path: c for _, c in indexed(case.entries, FileChanged)}
    return list(latest.values())[:100]


def diffs(case: CaseFile, store: Store | None, first: str = "") -> list[Diff]:
    """Unified diffs of changed files whose both versions are in the store, `first` before the others."""
    ordered = sorted(changes(case), key=lambda c: c.path != first)
    return [_diff(c, store) for c in ordered[:MOST_DIFFS]] if store else []


def _diff(change: FileChanged, store: Store) -> Diff:
    versions: list[list[str]] = []
    for digest in (change.sealed, change.found):
        try:
            data = store.get(digest) if digest else b""
        except StoreError as e:
            return Diff(change.path, note=f"no diff: {e}")
        lines = data.decode("utf-8", "replace").split("\n")
        if len(data) > _LARGEST_DIFFED or len(lines) > _MOST_DIFFED_LINES or b"\0" in data[:8192]:
            return Diff(change.path, note=f"no diff: a binary or large file, {len(data):,} bytes")
        versions.append(lines)
    made = difflib.unified_diff(versions[0], versions[1], lineterm="")
    shown = [DiffLine(_kind(line), line[:400]) for line in islice(made, 2, MOST_DIFF_LINES + 3)]
    if len(shown) > MOST_DIFF_LINES:
        return Diff(change.path, tuple(shown[:-1]), f"only the first {MOST_DIFF_LINES} lines are shown")
    return Diff(change.path, tuple(shown))


def _kind(line: str) -> str:
    return {"+": "add", "-": "cut", "@": "place"}.get(line[:1], "same")


# --------------------------------------------------------------------------- findings


def findings(case: CaseFile) -> tuple[list[tuple[int, Finding]], int]:
    """The findings to show with their log indexes, gravest first, and the number left out."""
    begins = first_steps(case.entries)
    found = [(index, _placed(f, begins)) for index, f in indexed(case.entries, Finding)]
    found.sort(key=lambda p: (_SEVERITIES.index(p[1].severity), _CONFIDENCES.index(p[1].confidence), p[0]))
    return found[:MOST_FINDINGS], max(0, len(found) - MOST_FINDINGS)


def alerts(case: CaseFile) -> tuple[list[Alert], int]:
    """The alerts to show, findings of one cause each, in the order in which they began, and the number left out."""
    found = alerts_of(indexed(case.entries, Finding))
    return found[:MOST_FINDINGS], max(0, len(found) - MOST_FINDINGS)


def _placed(finding: Finding, begins: Mapping[int, int]) -> Finding:
    """A rank that has not resumed yet counts its steps from 0: shown is where its attempt began."""
    begin = begins.get(finding.attempt, 0)
    return msgspec.structs.replace(finding, step=begin) if 0 <= finding.step < begin else finding
