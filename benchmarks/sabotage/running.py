"""Carries out cases one after the other: TrainWarden's outcome of each, and its curves in the neutral form.

Progress is a line for each case and the step that its job is at. After the budget of seconds nothing new is begun;
a rerun goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.sabotage import jobs, traces
from benchmarks.sabotage.ledger import Ledger
from benchmarks.sabotage.matrix import Case
from benchmarks.sabotage.scoring import how

if TYPE_CHECKING:
    from trainwarden.redteam.interface import Technique, Variant
    from trainwarden.redteam.outcome import Outcome
    from trainwarden.redteam.place import Range

Say = Callable[[str, int], None]

LIMIT = 600.0  # seconds of a run that nobody guards
TUNING = range(101, 113)  # seeds of the honest runs that the curve watcher is tuned on


def tuning(place: Range, runs: Path, say: Say, *, budget: float = float("inf")) -> bool:
    """Honest runs that nobody guards, to learn from; those that are there already are kept. False: the time is up."""
    from trainwarden.redteam import running

    begun = time.monotonic()
    for seed in TUNING:
        name = f"{place.workload.name}-{seed}"
        if not (runs / "tuning" / name / "run.json").exists():
            if time.monotonic() - begun > budget:
                return False
            say(f"honest run to tune on, seed {seed}", 0)
            place.seed = seed
            ran = running.carry_out(place, (), guarded=False, limit=LIMIT)
            if ran.code != 0 or not ran.printed:
                said = "\n".join(ran.said)[-500:]
                raise SystemExit(f"error: the honest job of seed {seed} ended with {ran.code}: {said}")
            jobs.keep(place, runs / "tuning", name, ran.code)
    return True


def carry_out(place: Range, case: Case, techniques: Mapping[str, Technique], runs: Path, say: Say) -> dict[str, Any]:
    """One case: its row, and its run below `runs`."""
    from trainwarden.redteam import running, trial

    place.seed = case.seed
    technique = techniques.get(case.technique)
    if technique is None:
        ran = running.carry_out(place, (), tell=lambda step: say(case.name, step))
        outcome = seen = trial.innocent("honest", place, ran)
    elif case.kind == "twin":
        outcome = seen = trial.twin(place, technique, say)
    else:
        variant = next(v for v in technique.variants if v.name == case.variant)
        outcome = trial.attack(place, technique, variant, audit=case.audit, say=say)
        seen = _made_to_act(place, variant, outcome)
    if outcome.verdict != "not carried out":
        truth = jobs.truth_of(seen, jobs.steps_of(place))
        jobs.keep(place, runs / "cases", case.name, outcome.effect.exit_code, truth)
    row: dict[str, Any] = msgspec.to_builtins(outcome)
    return {"case": case.name, "audited": case.audit, **row}


def _made_to_act(place: Range, variant: Variant, outcome: Outcome) -> Outcome:
    """What truly happened in the run that there is to look at: where TrainWarden let none begin, the attack is carried
    out again without it, since curves need a run."""
    from trainwarden.redteam import running

    if outcome.verdict == "not carried out" or jobs.steps_of(place):
        return outcome
    running.carry_out(place, variant.acts, guarded=False, limit=LIMIT)
    return msgspec.structs.replace(outcome, marks=tuple(running.marks(place)[:1]))


def all_of(
    place: Range,
    cases: Iterable[Case],
    techniques: Sequence[Technique],
    ledger: Ledger,
    runs: Path,
    *,
    budget: float = float("inf"),
) -> bool:
    """Carry out cases and add their rows to the ledger; False when the budget ended before they did."""
    known, begun, longest = {t.id: t for t in techniques}, time.monotonic(), 0.0
    for case in cases:
        begin = time.monotonic()
        if begin - begun + longest > budget:
            return False
        row = carry_out(place, case, known, runs, progress)
        ledger.add(row)
        longest = max(longest, time.monotonic() - begin)
        told = how(row) if case.kind == "attack" else row["verdict"]
        print(f"\r\033[K{case.name:>40}  {told}, {time.monotonic() - begin:.0f} s  {row['note']}", file=sys.stderr)
    return True


def progress(what: str, step: int) -> None:
    """Show what is going on in the terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}, step {step}", end="", file=sys.stderr, flush=True)


def with_verdicts(rows: Iterable[Mapping[str, Any]], runs: Path, name: str) -> list[dict[str, Any]]:
    """The rows with what another defence's verdicts came to, under its name."""
    from benchmarks.sabotage.scoring import judged

    truths = traces.read_truths(runs / "cases")
    verdicts = traces.read_verdicts(runs / f"{name}.jsonl")
    out = []
    for row in rows:
        truth, verdict = truths.get(row["case"]), verdicts.get(row["case"])
        told = {"result": judged(truth, verdict) if truth else "not run"}
        out.append({**row, name: told | ({"step": verdict.step, "why": verdict.why} if verdict else {})})
    return out
