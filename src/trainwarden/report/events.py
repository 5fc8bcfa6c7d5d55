"""What happened in a run, in log order: the timeline and the markers of the loss curve (pure).

The order is the log's, the only one that is signed. Wall times are shown as their source gave them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from trainwarden.model import (
    Action,
    Approved,
    CheckpointLoaded,
    CheckpointSaved,
    CleanRoom,
    CodeSeen,
    Contained,
    DataOpened,
    Diverged,
    Entry,
    Explanation,
    FileChanged,
    Finding,
    Gap,
    Inconclusive,
    Matched,
    ProcessExited,
    ProcessSeen,
    ProcessStarted,
    Quarantined,
    Recovered,
    Released,
    Responded,
    Restored,
    RunEnded,
    Sealed,
    StepRecord,
    Undelivered,
    Undone,
)
from trainwarden.report.words import count, short, span, tail

MOST_EVENTS = 150
MOST_MARKERS = 12
_ACTS = {
    Action.NOTE: "noted",
    Action.ALERT: "sent over the alert channels",
    Action.HOLD: "the job was held",
    Action.STOP: "the command was ended",
    Action.RECOVER: "the command was ended, to be recovered",
}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the timeline. `step` is the step under way when it was logged; `kind` gives its colour."""

    index: int
    wall_ns: int
    step: int
    attempt: int
    kind: str  # "plain" | "alert" | "evidence" | "good"
    what: str  # one or two words
    text: str


def timeline(entries: Sequence[Entry]) -> list[Event]:
    """Everything but step records, in log order; what several ranks say alike is one event."""
    events: list[Event] = []
    attempt, step = 0, 0
    begins = first_steps(entries)
    told_already: set[tuple[object, ...]] = set()
    for index, entry in enumerate(entries):
        if isinstance(entry, StepRecord):
            attempt, step = entry.attempt, entry.step
            continue
        if (repeated := _repeated(entry)) is not None:
            if repeated in told_already:
                continue
            told_already.add(repeated)
        for kind, what, text in _told(entry):
            events.append(
                Event(
                    index=index,
                    wall_ns=getattr(entry, "wall_ns", 0),
                    step=_step_of(entry, step, begins),
                    attempt=getattr(entry, "attempt", attempt),
                    kind=kind,
                    what=what,
                    text=text,
                )
            )
    return events


def bounded(events: Sequence[Event], most: int = MOST_EVENTS) -> tuple[list[Event], int]:
    """The events to show and the number left out: alerts and evidence first, then the others, in log order."""
    if len(events) <= most:
        return list(events), 0
    ranked = sorted(events, key=lambda e: (e.kind == "plain", e.index))[:most]
    return sorted(ranked, key=lambda e: e.index), len(events) - most


def markers(events: Sequence[Event]) -> list[Event]:
    """The events that the loss curve marks: what interfered, what was proved, what was undone."""
    whats = {"Divergence", "File changed", "Killed", "Finding", "Recovery", "Gap", "Restart"}
    found = [e for e in events if e.what in whats]
    facts = [e.step for e in found if e.what in ("File changed", "Killed", "Gap")]
    # A finding beside the fact that it is about says nothing new on a curve.
    found = [e for e in found if e.what != "Finding" or not any(abs(e.step - s) <= 1 for s in facts)]
    order = ["Divergence", "File changed", "Killed", "Recovery", "Restart", "Gap", "Finding"]
    kept: dict[tuple[str, int], Event] = {}
    for event in sorted(found, key=lambda e: (order.index(e.what), e.index)):
        kept.setdefault((event.what, event.step), event)
    return sorted(list(kept.values())[:MOST_MARKERS], key=lambda e: (e.step, e.index))


def first_steps(entries: Sequence[Entry]) -> dict[int, int]:
    """Each attempt's first recorded step."""
    first: dict[int, int] = {}
    for entry in entries:
        if isinstance(entry, StepRecord):
            first[entry.attempt] = min(entry.step, first.get(entry.attempt, entry.step))
    return first


def _repeated(entry: Entry) -> tuple[object, ...] | None:
    """What several ranks say alike, told once."""
    if isinstance(entry, ProcessStarted):
        return ("start", entry.attempt)
    if isinstance(entry, CheckpointLoaded):
        return ("loaded", entry.attempt, entry.path, entry.digest)
    return None


def _step_of(entry: Entry, current: int, begins: Mapping[int, int]) -> int:
    """The step to show it at; `begins` has each attempt's first, which a rank does not know before it has resumed."""
    match entry:
        case ProcessStarted():
            return begins.get(entry.attempt, 0)
        case Diverged():
            return entry.at.step
        case Recovered():
            return entry.from_step
        case Finding() | Gap():
            return max(entry.step, begins.get(entry.attempt, 0)) if entry.step >= 0 else current
        case CheckpointSaved():
            return entry.step
        case CheckpointLoaded():
            return max(entry.known_step, begins.get(entry.attempt, 0))
        case _:
            return current


def _told(entry: Entry) -> Iterator[tuple[str, str, str]]:
    match entry:
        case Sealed():
            recovers = f", recovering run {entry.parent}" if entry.parent else ""
            yield "plain", "Sealed", f"inputs sealed as {short(entry.seal)}{recovers}"
        case ProcessStarted():
            what = "Restart" if entry.attempt else "Start"
            yield "plain", what, f"attempt {entry.attempt} began with {count(entry.world, 'rank')}"
        case Gap():
            yield "alert", "Gap", f"rank {entry.rank} was not recorded at step {entry.step}: {entry.reason}"
        case CheckpointSaved():
            yield "plain", "Checkpoint", f"step {entry.step} saved to {tail(entry.path)}{_weights(entry)}"
        case CheckpointLoaded():
            known = f"of step {entry.known_step}" if entry.known_step >= 0 else "that no step of this log saved"
            yield "plain", "Loaded", f"attempt {entry.attempt} loaded {tail(entry.path)}, a file {known}"
        case DataOpened():
            yield "plain", "Data opened", f"rank {entry.rank} opened {tail(entry.path)}, which the seal does not list"
        case ProcessExited():
            if (told := _exit(entry)) is not None:
                yield told
        case FileChanged():
            yield "alert", "File changed", f"sealed {entry.kind} file {tail(entry.path)} {_change(entry)}"
        case CodeSeen() | ProcessSeen():
            return  # what differs is a finding of its own
        case Finding():
            yield "alert", "Finding", f"{entry.detector}: {entry.seen}"
        case Matched():
            yield "good", "Matched", f"replay of {span(entry.segment)} reproduced every digest"
        case Diverged():
            at = entry.at
            text = f"replay differs at step {at.step}, rank {at.rank}: {at.words}"
            yield "evidence", "Divergence", text
        case Inconclusive():
            why = "; ".join(entry.reasons[:3])
            yield "plain", "Inconclusive", f"replay of {span(entry.segment)} could not decide: {why}"
        case Explanation():
            text = f"cause proved: {entry.cause}" if entry.cause else "cause not established"
            yield "evidence", "Explanation", f"{text} (tried: {len(entry.hypotheses)})"
        case RunEnded():
            yield "plain", "End", f"the command ended with code {entry.code} after {count(entry.records, 'record')}"
        case _:
            yield from _done(entry)


def _done(entry: Entry) -> Iterator[tuple[str, str, str]]:
    """What somebody, or the policy, did about it."""
    match entry:
        case Quarantined():
            yield "plain", "Quarantined", f"{tail(entry.path)} kept as {short(entry.digest)}: {entry.reason}"
        case Restored():
            yield "plain", "Restored", f"{tail(entry.path)} put back as {short(entry.digest)}"
        case Recovered():
            yield "good", "Recovery", f"taken back to step {entry.from_step} and resumed as run {entry.new_run}"
        case Responded():
            failed = f", which failed: {entry.failed}" if entry.failed else ""
            yield "plain", "Policy", f"{_ACTS[entry.action]}{failed} (alert {entry.alert.id}: {entry.alert.title})"
        case Released():
            yield "plain", "Released", f"the held job was let go on by {entry.by}"
        case Contained():
            why = f": {entry.reason}" if entry.reason else ""
            yield "plain", "Contained", f"{contained_words(entry)} by {entry.by}{why}"
        case Undone():
            yield "plain", "Undone", f"the act at entry {entry.of} was taken back by {entry.by}"
        case Undelivered():
            lost = f"{count(entry.alerts, 'alert')} over " if entry.alerts else ""
            yield "alert", "Undelivered", f"{lost}{entry.channel}: {entry.reason}"
        case Approved():
            names = ", ".join(a.actor for a in entry.approvals)
            yield "plain", "Approved", f"the seal was approved by {names}"
        case CleanRoom():
            how = "in a namespace" if entry.kind == "namespace" else f"as a private copy ({entry.reason})"
            left = f"; not in it: {', '.join(map(tail, entry.left[:3]))}" if entry.left else ""
            yield "plain", "Clean room", f"the environment was rebuilt from the store, {how}{left}"


def contained_words(entry: Contained) -> str:
    """What was done, in words."""
    match entry.what:
        case "hold":
            return "the job was held"
        case "stop":
            return "the command was ended"
        case "freeze":
            return "promotion of the run and its descendants was frozen"
        case "revoke":
            return f"the key of {entry.subject} was revoked"


def _weights(entry: CheckpointSaved) -> str:
    if entry.weights.startswith("differs"):
        return f"; it does not hold the recorded weights ({entry.weights})"
    return "; it holds the recorded weights" if entry.weights == "matches" else ""


def _exit(entry: ProcessExited) -> tuple[str, str, str] | None:
    who = f"rank {entry.rank}" if entry.rank >= 0 else "the command"
    why = f": {entry.reason}" if entry.reason else ""
    if entry.sender is not None:
        why = f" by process {entry.sender.pid} ({entry.sender.program or 'gone'}){why}"
    elif entry.told_by:
        why = f" by the kernel ({entry.told_by}){why}"
    if entry.code == 0 or entry.goodbye:
        return None if entry.rank >= 0 else ("plain", "Exit", f"{who} ended in order")
    if entry.stopping or entry.code == -15:
        return "plain", "Stopped", f"{who} was stopped{why}"
    if not entry.known:
        return "alert", "Killed", f"{who} vanished without a goodbye{why}"
    if entry.code < 0:
        return "alert", "Killed", f"{who} was ended by signal {-entry.code}{why}"
    return "alert", "Failed", f"{who} ended with code {entry.code}{why}"


def _change(entry: FileChanged) -> str:
    if not entry.found:
        return "is gone"
    if not entry.sealed:
        return f"is new ({short(entry.found)})"
    return f"changed from {short(entry.sealed)} to {short(entry.found)}"
