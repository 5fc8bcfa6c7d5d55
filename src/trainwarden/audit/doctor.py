"""Does a job replay bit for bit here, and if not, which setting is missing?

The first steps of the job, just recorded, are replayed in every way in which an audit can begin, and compared stage
by stage. Where a replay differs, the first stage that does names what decides it and was not fixed.

Rules
-----
* What is said of a way is what was tried: bitwise, differs, or not possible and why. Nothing is inferred from settings.
* The remedies are the usual causes of a difference in that stage, most likely first; they are advice, no evidence.
* Beside it stands what is known of features that the job's code uses (`limits.py`), as knowledge and not as a result.
* A job can be tampered with while it is examined, and would then be said to differ: this is no audit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from trainwarden.audit.compare import differing
from trainwarden.audit.limits import Looked, look
from trainwarden.audit.recorded import Recorded
from trainwarden.audit.replay import replay, rerun
from trainwarden.audit.starts import WAYS, Start
from trainwarden.errors import CannotDecide
from trainwarden.model import STAGES, CheckpointSaved, Gap, Location, Numerics, Stage
from trainwarden.seal.room import Room

SMALL = 1e-3  # relative difference of losses below which two runs began from the same weights
_SHOWN_GAPS = 5
OnTry = Callable[["Try"], None]


class Outcome(StrEnum):
    BITWISE = "bitwise"
    DIFFERS = "differs"
    IMPOSSIBLE = "not possible"


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One way of replaying, and what came of it. `stages`: every stage that differs at `at`, with its names."""

    way: Start
    outcome: Outcome
    first: int
    last: int
    at: Location | None = None
    stages: dict[Stage, tuple[str, ...]] = {}
    loss: float = 0.0  # relative difference of the losses at `at`
    reason: str = ""


class Missing(msgspec.Struct, frozen=True):
    """A setting that is missing, and what to do about it, one line each."""

    setting: str
    remedy: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What the doctor found. `replays` is None when it could not be tried."""

    steps: int
    world: int
    tries: tuple[Try, ...]
    replays: bool | None
    sentence: str
    missing: tuple[Missing, ...]
    gaps: tuple[str, ...] = ()  # what the recorder could not see; an audit clears nothing across a gap
    known: Looked = Looked()  # what of the code is known not to replay bit for bit in every way


def examine(
    recorded: Recorded, room: Room, on_try: OnTry = lambda _: None, ways: Collection[Start] = tuple(Start)
) -> Diagnosis:
    """Replay the recorded first steps in these `ways` (from the start is one of them) and say what is missing.

    Raises:
        CannotDecide: nothing was recorded that could be replayed.
    """
    attempts = recorded.history.attempts
    number = attempts[0].number if attempts else 0
    steps = sorted({step for step, _ in recorded.updates(number)})
    if not steps:
        raise CannotDecide(
            "no optimizer step was seen, so there is nothing to replay",
            hint="the command must call the step() of a torch optimizer, and hand PYTHONPATH and TRAINWARDEN_* on",
        )
    tries: list[Try] = []
    for way, first, why_not in _plan(recorded, number, steps):
        if way not in ways:
            continue
        tried = (
            Try(way=way, outcome=Outcome.IMPOSSIBLE, first=first, last=steps[-1], reason=why_not)
            if why_not
            else _try(recorded, room, number, way, first, steps[-1])
        )
        tries.append(tried)
        on_try(tried)
    return _diagnosis(recorded, number, len(steps), tries)


# --------------------------------------------------------------------------- trying


def _plan(recorded: Recorded, number: int, steps: Sequence[int]) -> Iterator[tuple[Start, int, str]]:
    """Each way with the step it begins at, and why it is not possible ("" when it may be)."""
    base, last = steps[0], steps[-1]
    yield Start.START, base, ""
    middle = base + max(2, len(steps) // 2, len(steps) - 6)
    saved = {e.step for e in recorded.entries if isinstance(e, CheckpointSaved) and base < e.step <= last}
    at = min(saved, key=lambda s: abs(s - middle), default=-1)
    for way in (Start.RESUME, Start.RESTORE):
        yield (
            way,
            at,
            "" if saved else f"the script saved no checkpoint before the last of its first {len(steps)} steps",
        )
    for way in (Start.SUBSTITUTE, Start.AHEAD):
        first = middle + (way is Start.AHEAD)
        yield way, first, "" if first <= last else f"{len(steps)} steps are too few"


def _try(recorded: Recorded, room: Room, number: int, way: Start, first: int, last: int) -> Try:
    try:
        result = replay(recorded, room, number, first, last, way)
    except CannotDecide as e:
        return Try(way=way, outcome=Outcome.IMPOSSIBLE, first=first, last=last, reason=str(e))
    at = result.divergence
    if at is not None:
        stages, loss = _all_stages(recorded, room, number, at) if way is Start.START else ({}, 0.0)
        stages = {at.stage: at.tensors or (at.tensor,)} | stages
        return Try(way=way, outcome=Outcome.DIFFERS, first=first, last=last, at=at, stages=stages, loss=loss)
    wanted = {step for step, _ in recorded.updates(number) if first <= step <= last}
    if wanted <= set(result.matched):
        return Try(way=way, outcome=Outcome.BITWISE, first=first, last=last)
    reason = "; ".join(result.problems) or "the replay ended too early"
    return Try(way=way, outcome=Outcome.IMPOSSIBLE, first=first, last=last, reason=reason)


def _all_stages(
    recorded: Recorded, room: Room, number: int, at: Location
) -> tuple[dict[Stage, tuple[str, ...]], float]:
    """Every stage of the differing step in which another replay differs, and how far the losses are apart."""
    try:
        again = rerun(recorded, room, number, at.step)
    except CannotDecide:
        return {}, 0.0  # it differs earlier this time: only the first stage is known
    found: dict[Stage, tuple[str, ...]] = {}
    loss = 0.0
    for key, ranks in again.items():
        for rank, seen in ranks.items():
            record = recorded.updates(number).get(key, {}).get(rank)
            if record is None:
                continue
            old = recorded.seen(record)
            loss = max(loss, _apart(old.record.loss, seen.record.loss))
            for stage in STAGES:
                names = differing(old.details.get(stage), seen.details.get(stage))
                found[stage] = tuple(dict.fromkeys((*found.get(stage, ()), *names)))
    return {stage: names for stage, names in found.items() if names}, loss


def _apart(a: float | None, b: float | None) -> float:
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return 0.0
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


# --------------------------------------------------------------------------- what follows


def _diagnosis(recorded: Recorded, number: int, steps: int, tries: Sequence[Try]) -> Diagnosis:
    starts = recorded.starts(number)
    numerics, env = starts[0][0].numerics, starts[0][1]
    missing = [m for t in tries for m in advice(t, numerics, env)]
    replays, sentence = verdict(tries)
    if replays is False and tries[0].outcome is Outcome.BITWISE:
        missing.append(_NO_WAY_IN)
    return Diagnosis(
        steps=steps,
        world=len(starts),
        tries=tuple(tries),
        replays=replays,
        sentence=sentence,
        missing=tuple(dict.fromkeys(missing)),
        gaps=tuple(dict.fromkeys(e.reason for e in recorded.entries if isinstance(e, Gap)))[:_SHOWN_GAPS],
        known=look(recorded.store, recorded.seal.seal),
    )


def verdict(tries: Sequence[Try]) -> tuple[bool | None, str]:
    """Does the job replay: from the start and, in at least one way, from the middle? None: it could not be tried."""
    start, middle = tries[0], tries[1:]
    good = [t.way for t in middle if t.outcome is Outcome.BITWISE]
    if start.outcome is Outcome.DIFFERS:
        return False, "this job does not replay bit for bit here"
    if start.outcome is Outcome.IMPOSSIBLE:
        return None, f"it could not be tried: {start.reason}"
    if good:
        return True, f"this job replays bit for bit here: {WAYS[Start.START].words}, and {WAYS[good[0]].words}"
    if any(t.outcome is Outcome.DIFFERS for t in middle):
        return False, "this job replays bit for bit from the start only: every audit of it runs from the beginning"
    return None, "this job replays bit for bit from the start; no way from the middle could be tried"


def advice(tried: Try, numerics: Numerics, env: Mapping[str, str]) -> list[Missing]:
    """Which setting is missing, going by what one way showed (pure)."""
    if tried.outcome is Outcome.IMPOSSIBLE:
        return list(_impossible(tried))
    if tried.outcome is Outcome.BITWISE or tried.at is None:
        return []
    if tried.way is Start.START:
        return list(_from_start(tried, numerics, env))
    if tried.way is Start.RESUME:
        return list(_from_resume(Stage.ACTIVATIONS if tried.at.before else tried.at.stage))
    return []


def _impossible(tried: Try) -> Iterator[Missing]:
    if "numerics" in tried.reason:
        yield Missing(
            "the same thread count and vector instructions", "set OMP_NUM_THREADS and torch.set_num_threads(N)"
        )
    elif "workers are kept" in tried.reason:
        yield Missing(
            "workers that begin anew with each epoch",
            "DataLoader(…, persistent_workers=False): what kept ones have drawn is in no snapshot",
        )
    elif "did not load" in tried.reason and tried.way is Start.RESUME:
        yield Missing("how the script resumes", 'say it in trainwarden.toml: [replay] resume = "--resume {checkpoint}"')


def _from_start(tried: Try, numerics: Numerics, env: Mapping[str, str]) -> Iterator[Missing]:
    stages, at = tried.stages, tried.at
    if at is None:
        return
    later = at.step > tried.first
    if Stage.RNG in stages:
        yield _generators(stages[Stage.RNG], later)
    elif at.before:
        yield Missing("weights that only the optimizer changes", "let no edit of weights between steps depend on time")
    elif at.stage is Stage.BATCH:
        yield from _batches(env)
    elif at.stage is Stage.ACTIVATIONS and not later and tried.loss > SMALL:
        yield Missing("seed before the model is made", "call torch.manual_seed(SEED) before the first layer is built")
    elif at.stage in (Stage.ACTIVATIONS, Stage.LOCAL_GRADIENTS):
        yield from _kernels(numerics)
    elif at.stage is Stage.REDUCED_GRADIENTS:
        yield from _kernels(numerics) if not stages.get(Stage.LOCAL_GRADIENTS) else ()
        yield Missing("a fixed order of reduction", "keep bucket sizes, backend and network of the communication fixed")
    elif at.stage is Stage.HYPERPARAMETERS:
        yield Missing("settings decided by the step", "let learning rate and the like depend on the step, not on time")
    elif at.stage is Stage.CHECKPOINT:
        yield Missing("checkpoints that hold state only", f"{at.tensor} differs: keep times, paths and host names out")
    else:
        yield Missing("a deterministic optimizer", "its update draws numbers or adds in changing order: seed or fix it")


_NO_WAY_IN = Missing(
    "checkpoints that the job can resume from",
    "save and resume: what a script keeps in its own variables is in no snapshot",
)
_SEEDS = {
    "torch": "torch.manual_seed(SEED)",
    "python": "random.seed(SEED)",
    "numpy": "numpy.random.seed(SEED)",
}


def _generators(names: Sequence[str], later: bool) -> Missing:
    found = sorted({n.rpartition("/")[2].partition(".")[0] for n in names})
    calls = ", ".join(_SEEDS.get(n, f"a fixed seed for {n}") for n in found)
    what = f"seed of the random generator of {' and '.join(found)} (rng)"
    if later:
        return Missing(what, f"it is drawn from unevenly: let nothing that depends on time draw from it; {calls}")
    return Missing(what, f"call {calls} first thing, with a fixed SEED (never a time)")


def _batches(env: Mapping[str, str]) -> Iterator[Missing]:
    yield Missing(
        "seed of the loader's order (batch)",
        "DataLoader(…, generator=torch.Generator().manual_seed(SEED)); with workers also a worker_init_fn that seeds",
    )
    if env.get("PYTHONHASHSEED", "random") == "random":
        yield Missing("PYTHONHASHSEED", "set PYTHONHASHSEED=0 if batches come from sets or dicts keyed by hash order")


def _kernels(numerics: Numerics) -> Iterator[Missing]:
    yield Missing("deterministic kernels", "call torch.use_deterministic_algorithms(True)")
    if numerics.threads != 1:
        yield Missing("a fixed thread count", "set OMP_NUM_THREADS and torch.set_num_threads(N)")
    if numerics.accelerator:
        yield Missing("no autotuning", "torch.backends.cudnn.benchmark = False, CUBLAS_WORKSPACE_CONFIG=:4096:8")


_IN_CHECKPOINT = {
    Stage.BATCH: ("the loader's position in the checkpoint", "save epoch and batch index and skip to them on resume"),
    Stage.RNG: ("the generators in the checkpoint", "save torch.get_rng_state() of every rank and set it on resume"),
    Stage.ACTIVATIONS: ("all weights and buffers in the checkpoint", "save and load the whole model.state_dict()"),
    Stage.HYPERPARAMETERS: ("the scheduler in the checkpoint", "save and load scheduler.state_dict()"),
    Stage.OPTIMIZER_STATE: ("the optimizer's state in the checkpoint", "save and load optimizer.state_dict()"),
    Stage.WEIGHTS: ("the optimizer's state in the checkpoint", "save and load optimizer.state_dict()"),
}


def _from_resume(stage: Stage) -> Iterator[Missing]:
    what, remedy = _IN_CHECKPOINT.get(
        stage, ("all state in the checkpoint", f"something that decides {stage.replace('_', ' ')} is not saved")
    )
    yield Missing(what, remedy)
