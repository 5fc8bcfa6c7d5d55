"""From a technique to a judged row: the honest run, the attacked run, and the benign twin run the same way."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from trainwarden.errors import CannotDecide
from trainwarden.model import StepRecord
from trainwarden.redteam import gated, judging
from trainwarden.redteam.interface import Effect, Technique, Twin, Variant, When
from trainwarden.redteam.outcome import Effects, Expected, Found, Outcome
from trainwarden.redteam.place import Range
from trainwarden.redteam.running import Ran, audited, carry_out, marks, verified

UNASKED = {
    When.GATE: "the gate gave no answer: its evidence is not checked",
    When.INCIDENT: "no incident is built from the run here: its evidence is not checked",
}
SCAN = "scan"  # of the walls at the gate the one that is asked about every checkpoint
NEEDS_THE_END = (Effect.WEIGHTS, Effect.METRIC, Effect.SECONDS)  # measured at the end of a job that ends well
Say = Callable[[str, int], None]  # what is going on, and the step that the job is at


class Measured(msgspec.Struct, frozen=True):
    """What the effect of an attack is measured by."""

    weights: str = ""  # SHA-256 of the last checkpoint's weights
    loss: float | None = None
    wall_s: float = 0.0
    steps: int = 0  # recorded by rank 0, those that were made twice included
    metrics: str = ""  # SHA-256 of what the job reported to its tracker
    exit_code: int = 0


def measure(place: Range, ran: Ran) -> Measured:
    """Read from the log and the last checkpoint what a run came to."""
    records = [e for e in ran.all_entries if isinstance(e, StepRecord) and e.rank == 0]
    last = place.checkpoints[-1:]
    file = place.weights(last[0]) if last else None
    tracked = place.tracked
    times = [r.wall_ns for r in records]
    return Measured(
        weights=hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else "",
        loss=records[-1].loss if records else None,
        wall_s=(max(times) - min(times)) / 1e9 if times else 0.0,
        steps=len(records),
        metrics=hashlib.sha256(tracked.read_bytes()).hexdigest() if tracked.exists() else "",
        exit_code=ran.code,
    )


def honest(place: Range, say: Say) -> tuple[Measured, Outcome | None]:
    """The honest run of this workload and seed, measured once for a range; its row when it was run now.

    Raises:
        CannotDecide: the job does not train when nobody strikes.
    """
    w = place.workload
    kept = place.folder / "honest" / f"{w.name}-{place.seed}-{_settings(place)}.json"
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=Measured), None
    ran = carry_out(place, (), tell=lambda step: say("honest run", step))
    measured = measure(place, ran)
    if not measured.steps or ran.code != 0:
        raise CannotDecide(
            f"the honest job ended with {ran.code} after {measured.steps} recorded steps: {_end_of(ran)}",
            hint="see that the command trains when it is run by itself",
        )
    row = innocent("honest", place, ran)
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(msgspec.json.encode(measured))
    return measured, row


def _settings(place: Range) -> str:
    """What the honest run depends on: the copied job, its command, the environment's packages."""
    w = place.workload
    told = [place.words(w.command), place.source, list(w.packages), str(w.venv)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _end_of(ran: Ran) -> str:
    return " | ".join(line.strip() for line in ran.said[-6:])[-500:]


def attack(place: Range, technique: Technique, variant: Variant, *, audit: bool, say: Say) -> Outcome:
    """Carry out one variant and judge what was found of it."""
    names = {"technique": technique.id, "variant": variant.name}

    def refused(reason: str) -> Outcome:
        row = Outcome(kind="attack", workload=place.workload.name, seed=place.seed, verdict="not carried out")
        return msgspec.structs.replace(row, note=reason, **names)

    if reason := lacking(place, variant.needs):
        return refused(reason)
    ordinary, _ = honest(place, say)
    begin = time.monotonic()
    try:
        ran = carry_out(
            place, variant.acts, options=variant.options, approved=variant.approved, again=variant.again,
            tell=lambda step: say(f"{technique.id}/{variant.name}", step),
        )  # fmt: skip
    except CannotDecide as e:
        return refused(str(e))
    looked = look(place, variant, ran, audit=audit, say=say)
    row = judged(place, variant, ran, effects(place, ran, ordinary), looked)
    return msgspec.structs.replace(row, seconds=round(time.monotonic() - begin, 1), **names)


def look(place: Range, variant: Variant, ran: Ran, *, audit: bool, say: Say) -> set[When]:
    """Ask the walls that stand after the run; those that gave an answer, and those that always do."""
    looked = {When.BEFORE_START, When.LIVE}
    if any(e.when is When.VERIFY for e in variant.expects):
        verified(place, ran)
        looked.add(When.VERIFY)
    if audit and ran.runs:
        say("auditing by replay", 0)
        audited(place, ran)
        looked |= {When.AUDIT} if set(ran.audit.values()) <= {"matched", "diverged"} else set()
    walls = {e.by for e in variant.expects if e.when is When.GATE}
    if SCAN in walls:
        ran.checks[SCAN] = told = scanned(place)
        looked |= {When.GATE} if "files" in told else set()
    if walls & gated.WALLS:
        say("asking the gate", 0)
        ran.gate = gated.asked(place)
        looked.add(When.GATE)
    return looked


def scanned(place: Range) -> dict[str, Any]:
    """What the scan says of the checkpoints that are there, without loading them; nothing when it fails."""
    done = place.warden("scan", *map(str, place.checkpoints), "--json")
    lines = done.stdout.splitlines() if done.returncode in (0, 1, 2) else []
    return dict(json.loads(lines[-1])) if lines else {}


def judged(place: Range, variant: Variant, ran: Ran, effect: Effects, looked: set[When]) -> Outcome:
    """The row of an attacked run, over what was found, the payload's marks and the effect."""
    struck, worked = marks(place), judging.had(variant.effect, effect)
    began = ran.acted[0] if ran.acted else 0.0
    truth = judging.Truth(struck, variant.strikes)
    told = judging.findings(ran, truth)
    found = [f for when, f in told if when >= began]
    found += [*judging.replayed(ran.all_entries, truth), *_failed_checks(variant, ran), *_refused(ran)]
    found += [*judging.refused_files(ran.checks.get(SCAN)), *ran.gate]
    expected = judging.compared(variant.expects, found, struck, looked)
    cause, proved = judging.cause(ran.all_entries)
    first = {m.rank: m for m in reversed(struck)}
    broken = ran.code != 0 and variant.effect in NEEDS_THE_END  # the act broke the job: no sabotage that goes on
    acted = not broken and (bool(struck) or (bool(ran.acted) and worked is not False))
    return Outcome(
        kind="attack",
        workload=place.workload.name,
        seed=place.seed,
        verdict=judging.verdict(expected) if acted else "not carried out",
        strikes=variant.strikes,
        found=tuple(_firsts(found)),
        false=tuple(f for when, f in told if when < began),
        expected=tuple(expected),
        marks=tuple(first[r] for r in sorted(first)),
        struck_ns=int(began * 1e9),
        located=judging.located(found, struck),
        cause=cause,
        cause_proved=proved,
        effect=effect,
        worked=worked,
        runs=tuple(ran.runs),
        note=f"the act broke the job, which ended with {ran.code}: {_end_of(ran)}"
        if broken and struck
        else _note(ran, acted, expected),
    )


def _failed_checks(variant: Variant, ran: Ran) -> list[Found]:
    return judging.failed_checks(ran.checks, {e.by for e in variant.expects if e.when is When.VERIFY})


def effects(place: Range, ran: Ran, ordinary: Measured) -> Effects:
    """What a run did otherwise than the honest one."""
    now = measure(place, ran)
    records = [e.step for e in ran.all_entries if isinstance(e, StepRecord) and e.rank == 0]
    both = now.loss is not None and ordinary.loss is not None
    return Effects(
        weights_differ=now.weights != ordinary.weights if now.weights and ordinary.weights else None,
        loss_shift=round((now.loss or 0) - (ordinary.loss or 0), 6) if both else None,
        seconds_lost=round(now.wall_s - ordinary.wall_s, 2) if now.steps else None,
        steps_twice=len(records) - len(set(records)),
        code_ran=any(place.marks.iterdir()),
        exit_code=ran.code,
        metric_differs=now.metrics != ordinary.metrics if now.metrics and ordinary.metrics else None,
    )


def twin(place: Range, technique: Technique, say: Say) -> Outcome:
    """Run a technique's benign twin the same way: nothing above a low finding may be raised."""
    benign: Twin = technique.twin
    names = {"technique": technique.id, "variant": benign.name}

    def refused(reason: str) -> Outcome:
        row = Outcome(kind="twin", workload=place.workload.name, seed=place.seed, verdict="not carried out")
        return msgspec.structs.replace(row, note=reason, **names)

    if reason := lacking(place, benign.needs):
        return refused(reason)
    seed = place.seed
    place.seed = seed if benign.seed is None else benign.seed
    try:
        ran = carry_out(
            place, benign.acts, options=benign.options, again=benign.again,
            tell=lambda step: say(f"twin of {technique.id}", step),
        )  # fmt: skip
        ran.gate = gated.asked(place)
        return msgspec.structs.replace(innocent("twin", place, ran), **names)
    except CannotDecide as e:
        return refused(str(e))
    finally:
        place.seed = seed


def innocent(kind: str, place: Range, ran: Ran) -> Outcome:
    """The row of a run in which nobody strikes: "accused" when something above a low finding was raised."""
    found = [*(f for _, f in judging.findings(ran, judging.Truth())), *_refused(ran), *ran.gate]
    grave = [f for f in found if f.severity in judging.GRAVER]
    trained = any(isinstance(e, StepRecord) for e in ran.all_entries)
    return Outcome(
        kind=kind,
        workload=place.workload.name,
        seed=place.seed,
        verdict="accused" if grave else "silent" if trained else "undecided",
        found=tuple(_firsts(found)),
        effect=Effects(exit_code=ran.code),
        runs=tuple(ran.runs),
        seconds=ran.seconds,
        note="" if trained else _end_of(ran),
    )


def lacking(place: Range, needs: Sequence[str]) -> str:
    """What the workload lacks for it, empty when it has all."""
    missing = [n for n in needs if n not in place.workload.has]
    return f"the workload {place.workload.name} has no {', '.join(missing)}" if missing else ""


def _refused(ran: Ran) -> list[Found]:
    if not ran.refused:
        return []
    return [Found(when=When.BEFORE_START, by="seal", severity="high", sentence=ran.refused)]


def _firsts(found: Sequence[Found]) -> list[Found]:
    """The first thing that each detector said, and the first grave one, in the order of time."""
    kept: dict[tuple[str, str, bool], Found] = {}
    for f in sorted(found, key=lambda f: (f.seconds is None, f.seconds or 0.0)):
        key = f.when, f.by, f.severity in judging.GRAVER
        known = kept.get(key)
        if known is None or (f.exact and not known.exact):
            kept[key] = f if known is None else msgspec.structs.replace(f, steps=known.steps, seconds=known.seconds)
    return list(kept.values())


def _note(ran: Ran, acted: bool, expected: Sequence[Expected]) -> str:
    if not acted:
        return f"the step to strike at was never told, or the act had no effect: {_end_of(ran)}"
    failed = [f"{run}: {worst}" for run, worst in ran.audit.items() if worst in ("inconclusive", "failed")]
    unasked = [w for w in UNASKED if any((e.when, e.state) == (w, "not checked") for e in expected)]
    parts = [f"audit {'; '.join(failed)}" if failed else "", *(UNASKED[w] for w in unasked)]
    return "; ".join(filter(None, parts))
