"""Defence (c): TrainCheck 0.2 (Jiang et al., OSDI 2025): invariants are learnt from honest runs and checked on others.

    python -m benchmarks.sabotage.traincheck setup       its environment, once (torch's CPU build: about 1.5 GB)
    python -m benchmarks.sabotage traincheck             the toy job's attacks and honest runs, within a budget of time
    python -m benchmarks.sabotage traincheck --workload chat     those of chat: minutes for one check

How it is used, after its own documentation: a full trace of a short honest run (it advises about ten iterations),
`traincheck-infer` on it, then each attacked run is traced for these invariants, every step of it, and checked with
`traincheck-check`. Its `ConsistencyRelation` is disabled: with the traces of two ranks, inferring took minutes for each
of its hypotheses (on a busy machine). Tuned as the curve watcher is: an invariant that an honest tuning run of other
seeds violates is left out, so what is left raised no false alarm there. A run that violates another one is flagged.

The job is shorter than TrainWarden's (tracing one step takes longer than making it), the attack the same, carried out
by the same code in a copy of TrainCheck's environment. An attack that does not act there counts as not run.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import ROOT
from benchmarks.sabotage import jobs, matrix
from benchmarks.sabotage.ledger import Ledger, code_of, source_of
from benchmarks.sabotage.matrix import Case
from benchmarks.sabotage.traces import Struck, Truth, Verdict, read_verdicts, write_verdicts

if TYPE_CHECKING:
    from trainwarden.redteam.interface import Technique
    from trainwarden.redteam.place import Range
    from trainwarden.redteam.workloads import Workload

STEPS, FIRST, LEAD, EVERY = 12, 7, 3, 4
REFERENCE, TUNING = (101,), (103, 104)  # seeds of honest runs
SCRIPTS = {"toy": ("train.py",), "chat": ("chat/loop.py", "chat/pretrain.py")}  # the last one is what is started
LIMIT = 1_800.0  # seconds that inferring the invariants may take
RUN_LIMIT = 600.0  # and tracing a run, or checking it
BOUNDED = ("--precond-sampling-threshold", "500", "--disable-relation", "ConsistencyRelation")
HERE = Path(__file__).parent


class TrainCheckFailed(SystemExit):
    """A program of TrainCheck's ended badly or took too long."""


def home() -> Path:
    """Where its environment, traces and verdicts are kept."""
    return jobs.cache() / "traincheck"


def set_up() -> Path:
    """TrainCheck's own virtual environment, made once; its folder.

    Raises:
        SystemExit: it cannot be installed.
    """
    venv = home() / "venv"
    if not (venv / "complete").exists():
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        quiet = ["install", "--quiet", "--disable-pip-version-check", "--no-input"]
        wanted = ["--constraint", str(ROOT / "constraints.txt"), "--requirement", str(HERE / "traincheck.txt")]
        if subprocess.run([str(venv / "bin" / "python"), "-m", "pip", *quiet, *wanted]).returncode:
            raise SystemExit("error: TrainCheck 0.2 cannot be installed here\nhint: the curve watcher needs none of it")
        (venv / "complete").touch()
    return venv


def job(name: str, invariants: Path | None = None) -> Workload:
    """A workload to be run under TrainCheck: traced in full, or only for some invariants."""
    plain, scripts = jobs.job(name), SCRIPTS[name]
    options = ("--join", *scripts, "--", *plain.command[plain.command.index(scripts[-1]) + 1 :])
    which = () if invariants is None else ("--invariants", str(invariants))
    return dataclasses.replace(
        plain, venv=set_up(), packages=(), steps=STEPS, first=FIRST, lead=LEAD, every=EVERY, step=r"step (\d+) loss",
        command=("python", "-u", "collect.py", *which, *options),
        adds=(*plain.adds, ("collect.py", (HERE / "traincheck_job.py").read_text(encoding="utf-8"))),
    )  # fmt: skip


# ------------------------------------------------------------------ what it learns


def learn(name: str) -> tuple[Path, frozenset[str]]:
    """The invariants of a workload's honest runs, and those that honest tuning runs violate; kept from the last time.

    Raises:
        SystemExit: an honest run does not train under it, or one of its programs fails or takes too long.
    """
    state = home() / code_of(*source_of(name))
    invariants = state / "invariants.json"
    if not invariants.exists():
        traces = [_reference(name, seed, state) for seed in REFERENCE]
        partial = invariants.with_suffix(".partial")
        say("inferring invariants (minutes)")
        argv = ["traincheck-infer", "-f", *map(str, traces), "-o", str(partial), "-j", "2", *BOUNDED]
        _tool(argv, state, limit=LIMIT)
        partial.replace(invariants)
    return invariants, frozenset(text for seed in TUNING for text in _loose(name, seed, invariants))


def _loose(name: str, seed: int, invariants: Path) -> list[str]:
    kept = invariants.with_name(f"loose-{seed}.json")
    if not kept.exists():
        say(f"honest tuning run, seed {seed}")
        with _range(name, invariants, seed) as place:
            _honest(place)
            kept.write_text(json.dumps(sorted(violated(place, invariants))), encoding="utf-8")
    return list(json.loads(kept.read_text(encoding="utf-8")))


def _reference(name: str, seed: int, state: Path) -> Path:
    kept = state / f"trace-{seed}"
    if not kept.exists():
        say(f"honest run traced in full, seed {seed}")
        with _range(name, None, seed) as place:
            _honest(place)
            partial = state / f"trace-{seed}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(place.job / "trace", partial)
            partial.rename(kept)
    return kept


def _honest(place: Range) -> None:
    from trainwarden.redteam.running import carry_out

    ran = carry_out(place, (), guarded=False, limit=RUN_LIMIT)
    if ran.code != 0 or ran.printed < STEPS:
        said = "\n".join(ran.said)[-800:]
        raise SystemExit(f"error: the honest job ended with {ran.code} under TrainCheck: {said}")


@contextmanager
def _range(name: str, invariants: Path | None, seed: int) -> Iterator[Range]:
    from trainwarden.redteam.place import Range

    with Range(home() / "range", job(name, invariants), seed=seed) as place:
        place.open(say)
        yield place


# ------------------------------------------------------------------ what it says of a run


def violated(place: Range, invariants: Path) -> dict[str, int]:
    """The violated invariants of the run that was last made here, by their text, and the step of the job at which each
    was first violated, −1 before the first (TrainCheck counts entered loops: the first step is its second)."""
    folder = place.job / "checked"
    argv = ["traincheck-check", "-f", str(place.job / "trace"), "-i", str(invariants), "-o", str(folder)]
    _tool([*argv, "--no-html-report", "-j", "2"], place.tmp, limit=RUN_LIMIT)
    told = json.loads((folder / "trace" / "violations_summary.json").read_text(encoding="utf-8"))["violations"]
    return {v["display_name"]: max(-1, (v["first_step"] or 0) - 2) for v in told}


def verdict(run: str, found: Mapping[str, int], loose: frozenset[str]) -> Verdict:
    """Flagged when an invariant is violated that no honest tuning run violates."""
    new = {text: step for text, step in found.items() if text not in loose}
    if not new:
        return Verdict(run=run, flagged=False)
    step, text = min((s, t) for t, s in new.items())
    return Verdict(run=run, flagged=True, step=step, why=f"{len(new)} invariants, first: {text}")


def one(
    place: Range, case: Case, technique: Technique | None, invariants: Path, loose: frozenset[str]
) -> Verdict | None:
    """Carry out a case under TrainCheck; None when it could not be, or did nothing."""
    from trainwarden.redteam import trial
    from trainwarden.redteam.running import carry_out, marks

    place.seed = case.seed
    variant = next((v for v in technique.variants if v.name == case.variant), None) if technique else None
    wants = variant or (technique.twin if technique else None)
    if wants is not None and (wants.again or trial.lacking(place, wants.needs)):
        return None
    ran = carry_out(place, wants.acts if wants else (), guarded=False, limit=RUN_LIMIT)
    struck = tuple(Struck(step=m.step, rank=m.rank, tensor=m.tensor) for m in marks(place))
    if not ran.printed or (case.kind == "attack" and not struck and not ran.acted):
        return None
    first = min((s.step for s in struck), default=FIRST) if case.kind == "attack" else -1
    truth = Truth(
        kind=case.kind, technique=case.technique, variant=case.variant, struck=struck[:1], first_step=first  # type: ignore[arg-type]
    )  # fmt: skip
    jobs.keep(place, home() / "runs" / "cases", case.name, ran.code, truth)
    return verdict(case.name, violated(place, invariants), loose)


# ------------------------------------------------------------------ the matrix


def cases_of(techniques: Sequence[Technique], name: str) -> list[Case]:
    """The sampled matrix's cases of this workload, by itself: honest runs that it was not tuned on, and attacks."""
    from trainwarden.redteam.workloads import WORKLOADS

    return [c for c in matrix.sampled(techniques, name, {name: WORKLOADS[name]}) if c.kind != "twin"]


def run(name: str, techniques: Sequence[Technique], budget: float) -> bool:
    """Every case that is not judged yet, until the budget ends; False when cases are left."""
    if name not in SCRIPTS:
        say(f"{name}: only the scripts of {', '.join(SCRIPTS)} are prepared for TrainCheck; not run")
        return True
    begun = time.monotonic()
    invariants, loose = learn(name)
    path, known = home() / "runs" / "traincheck.jsonl", {t.id: t for t in techniques}
    done = Ledger(home() / "done.jsonl")
    with _range(name, invariants, 0) as place:
        for case in cases_of(techniques, name):
            if case.name in done.rows:
                continue
            if time.monotonic() - begun > budget:
                return False
            why = "not carried out, or it did not act"
            try:
                said = one(place, case, known.get(case.technique), invariants, loose)
            except TrainCheckFailed as failed:
                said, why = None, str(failed)
            done.add({"case": case.name, "technique": case.technique, "workload": name, "why": "" if said else why})
            judged = {} if not path.exists() else dict(read_verdicts(path))
            if said is not None:
                write_verdicts(path, list({**judged, case.name: said}.values()))
            say(f"{case.name:>40}  {(said.why or 'nothing') if said else f'not run: {why}'}")
    return True


def _tool(argv: Sequence[str], folder: Path, *, limit: float) -> None:
    """Run a program of TrainCheck's environment. Raises TrainCheckFailed when it fails or takes longer than `limit`."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [str(set_up() / "bin" / argv[0]), *argv[1:]]
    log = folder / f"{argv[0]}.log"
    with log.open("wb") as file:
        try:
            code = subprocess.run(words, cwd=folder, stdout=file, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code != 0:
        why = f"took longer than {limit:.0f} s" if code == -1 else f"ended with {code}"
        raise TrainCheckFailed(f"error: {argv[0]} {why}\nhint: {log} has what it said")


def say(text: str) -> None:
    """Say what is going on."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Make the environment."""
    if list(argv) != ["setup"]:
        print("usage: python -m benchmarks.sabotage.traincheck setup", file=sys.stderr)
        return 3
    print(set_up())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
