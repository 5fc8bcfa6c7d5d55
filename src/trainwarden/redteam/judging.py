"""What was found of an attack, when, and whether it is right: pure, over entries, marks and the honest run.

Rules
-----
* Only findings graver than a note count. What was told before the insider did anything is no evidence but a false
  alarm; what is told between the payload's arrival and its first tampered step counts as at once.
* A place is exact when it names the first tampered step, and rank, tensor and stage where the payload's marks and the
  variant name them: what a finding leaves open is not located.
* "found" takes every piece of evidence that is needed. A piece of evidence that was not looked for (no audit) leaves
  the answer undecided, never "found".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from trainwarden.model import Diverged, Entry, Explanation, Finding, Location, Severity, StepRecord
from trainwarden.redteam.interface import Effect, Evidence, When
from trainwarden.redteam.outcome import Effects, Expected, Found, Marked
from trainwarden.redteam.running import Ran

GRAVER = frozenset({"medium", "high"})


@dataclass(frozen=True)
class Truth:
    """Where an attack struck: the payload's own marks, and the stages in which a variant's first numbers may differ."""

    marks: Sequence[Marked] = ()
    strikes: Sequence[str] = ()

    @property
    def first(self) -> list[Marked]:
        """The marks of the first tampered step, of all ranks."""
        return [m for m in self.marks if m.step == min(each.step for each in self.marks)]


def findings(ran: Ran, truth: Truth) -> list[tuple[float, Found]]:
    """Every finding that is more than a note, with the time at which the terminal told it."""
    marks = truth.marks
    began = marks[0].wall_ns if marks else int(ran.acted[0] * 1e9) if ran.acted else 0
    left, out = list(ran.told), []
    for run in ran.runs:
        since: set[tuple[int, int]] = set()  # steps recorded since the insider acted, restarts included
        for entry in ran.entries.get(run, ()):
            if isinstance(entry, StepRecord) and entry.wall_ns > began:
                since.add((entry.attempt, entry.step))
            elif isinstance(entry, Finding) and entry.severity is not Severity.INFO:
                when = _told(left, entry)
                out.append((when, _live(entry, when, len(since), began, truth)))
    return out


def _told(left: list[tuple[float, str, str]], finding: Finding) -> float:
    printed = "".join(c if c.isprintable() else "?" for c in finding.seen).strip()
    match = next((t for t in left if t[1] == finding.detector and t[2] == printed), None)
    if match is None:  # found after the end, or not shown
        return finding.wall_ns / 1e9
    left.remove(match)
    return match[0]


def _live(finding: Finding, when: float, since: int, began: int, truth: Truth) -> Found:
    late = max(0.0, when - began / 1e9)
    found = Found(
        when=When.LIVE,
        by=finding.detector,
        severity=finding.severity.value,
        sentence=finding.seen,
        step=finding.step,
        ranks=finding.ranks,
        stage=str(finding.stage or ""),
        tensor=finding.tensor,
        steps=max(0, since - bool(truth.marks)) * (late > 0) if began else None,  # the tampered step is not one later
        seconds=round(late, 3) if began else None,
    )
    return placed(found, truth)


def placed(found: Found, truth: Truth) -> Found:
    """The same with whether its place is the true one; None where it names no step, or there is none to name."""
    first = truth.first
    if found.step < 0 or not first:
        return found
    named = set(found.ranks)
    tensors = {m.tensor for m in first if m.tensor and (not named or m.rank in named)}
    right = (
        found.step == first[0].step
        and bool(named)
        and named <= {m.rank for m in first}
        and (not tensors or found.tensor in tensors)
        and (not truth.strikes or found.stage in truth.strikes)
    )
    return msgspec.structs.replace(found, exact=right)


def replayed(entries: Iterable[Entry], truth: Truth) -> list[Found]:
    """Where replays differ from the record, and where an explanation found the same to come from."""
    out = []
    for e in entries:
        if isinstance(e, Diverged):
            out.append(placed(_at("replay", e.at), truth))
        elif isinstance(e, Explanation):
            out.append(placed(_at("explain", e.at), truth))
    return out


def _at(by: str, at: Location) -> Found:
    return Found(
        when=When.AUDIT,
        by=by,
        severity="high",
        sentence=f"step {at.step}, rank {at.rank}: {at.words}",
        step=at.step,
        ranks=(at.rank,),
        stage="weights before" if at.before else str(at.stage),
        tensor=at.tensor,
    )


def failed_checks(checks: dict[str, object], wanted: Collection[str] = ()) -> list[Found]:
    """Checks of `verify` that do not hold; those `wanted` also where they could not be made: never a pass."""
    out = []
    for told in checks.values():
        for check in told.get("checks", ()) if isinstance(told, dict) else ():
            result = check["result"]
            if result["type"] == "failed":
                out.append(Found(when=When.VERIFY, by=check["name"], severity="high", sentence=result["reason"]))
            elif result["type"] == "not checked" and check["name"] in wanted:
                said = f"not checked: {result['reason']}"
                out.append(Found(when=When.VERIFY, by=check["name"], severity="medium", sentence=said))
        if isinstance(told, dict) and "error" in told:
            out.append(Found(when=When.VERIFY, by="verify", severity="high", sentence=str(told["error"])))
    return out


def refused_files(scan: object) -> list[Found]:
    """What the scan of checkpoints refuses; what it left undecided is no finding, and no pass."""
    out = []
    for file in scan.get("files", ()) if isinstance(scan, dict) else ():
        decision = file["decision"]
        if decision["type"] == "refused":
            first = decision["objections"][0]
            said = f"{file['path']}: {first['opcode']} {first['name']}: {first['why']}"
            out.append(Found(when=When.GATE, by="scan", severity="high", sentence=said))
    return out


def compared(
    expects: Sequence[Evidence], found: Sequence[Found], marks: Sequence[Marked], looked: set[When]
) -> list[Expected]:
    """What became of each expected piece of evidence; `looked` are the walls that were asked."""
    out = []
    for wanted in expects:
        fits = any(_fits(wanted, f, marks) for f in found)
        state = "found" if fits else "silent" if wanted.when in looked else "not checked"
        out.append(Expected(when=wanted.when, by=wanted.by, stage=wanted.stage, needed=wanted.needed, state=state))
    return out


def _fits(wanted: Evidence, found: Found, marks: Sequence[Marked]) -> bool:
    if (found.when, found.by) != (wanted.when, wanted.by) or (wanted.stage and found.stage != wanted.stage):
        return False
    struck = {m.rank for m in marks if m.step == found.step}
    right = {
        "step": bool(marks) and found.step == marks[0].step,
        "rank": len(found.ranks) > 0 and set(found.ranks) <= struck,
        "tensor": any(m.tensor == found.tensor for m in marks if m.tensor),
    }
    return all(right[name] for name in wanted.exact)


def verdict(expected: Sequence[Expected]) -> str:
    """found | missed | undecided."""
    needed = [e for e in expected if e.needed] or list(expected)
    if all(e.state == "found" for e in needed) and needed:
        return "found"
    return "missed" if any(e.state == "silent" for e in needed) else "undecided"


def located(found: Sequence[Found], marks: Sequence[Marked]) -> str:
    """Whether something names the first tampered step, rank, stage and tensor rightly ("exact"), or is within three
    steps ("near"); else, and where no step was tampered with, "no"."""
    if any(f.exact for f in found):
        return "exact"
    return "near" if any(f.step >= 0 and marks and abs(f.step - marks[0].step) <= 3 for f in found) else "no"


def cause(entries: Iterable[Entry]) -> tuple[str, bool | None]:
    """What reproduced the recorded digest bit for bit, and whether anything did; None when nothing was explained."""
    told = [e for e in entries if isinstance(e, Explanation)]
    if not told:
        return "", None
    last = told[-1]
    return last.cause or last.file, bool(last.cause or last.file)


def had(effect: Effect, measured: Effects) -> bool | None:
    """Was the effect that a variant must have measured? None when it could not be."""
    match effect:
        case Effect.WEIGHTS:
            return measured.weights_differ
        case Effect.SECONDS:
            return None if measured.seconds_lost is None else measured.seconds_lost > 0
        case Effect.STEPS_TWICE:
            return measured.steps_twice > 0
        case Effect.CODE_RAN:
            return measured.code_ran
        case Effect.METRIC:
            return measured.metric_differs
        case Effect.ENDED:
            return measured.exit_code != 0
        case Effect.EVIDENCE | Effect.SERVED:  # what the acts noted
            return measured.code_ran
