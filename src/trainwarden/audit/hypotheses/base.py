"""What every family of hypotheses shares: the question, the budget, the answer, and the search over tensors.

Rules
-----
* A hypothesis is proved by one thing only: a value computed from clean ones has the recorded digest.
* Every search is bounded, by seconds and by the lists in its module, and an answer that was cut short says
  what was left out. Candidates come in a fixed order.
* Recorded digests are the suspect's claims. They are what is to be reproduced and are never taken for values.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from trainwarden.audit.begun import begun
from trainwarden.audit.capture import Capture
from trainwarden.audit.perturb import Perturbation, TensorPerturbation
from trainwarden.audit.perturbing import transform
from trainwarden.model import BUFFERS, Detail, Location, Stage, StepRecord
from trainwarden.record.fingerprint import tensor_digest, value_digest
from trainwarden.supervise.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

Details = Mapping[tuple[int, Stage], Detail]
FURTHER_SEARCHES = 8  # tensors searched on their own when the setting found for another does not fit them


class Target(NamedTuple):
    """One tensor of one rank at the diverging stage."""

    rank: int
    name: str


class BatchHistory(NamedTuple):
    """Digests of other steps, as the log has them: (step, rank) → detail of that stage; `rows` are hints beside it."""

    batches: Mapping[tuple[int, int], Detail] = {}
    rng: Mapping[tuple[int, int], Detail] = {}
    weights: Mapping[tuple[int, int], Detail] = {}
    optimizer_state: Mapping[tuple[int, int], Detail] = {}
    rows: Mapping[tuple[int, int], Sequence[Rows]] = {}


class Budget:
    """Seconds that one search may take; `spent` is asked between candidates.

    They are of this thread's own time, so that a busy host does not change what is found.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.thread_time) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def spent(self) -> bool:
        return self._clock() >= self._end


class Recipe(NamedTuple):
    """One way to compute a tampered tensor from clean ones; `change` is its perturbation, if there is one."""

    sentence: str
    parameters: dict[str, Any]
    make: Callable[[Target], Tensor]
    change: TensorPerturbation | None = None


@dataclass(frozen=True)
class Answer:
    """What one hypothesis came to. `not_tried` excludes everything else; `covered` empty means excluded.

    `follow` computes what later stages hold as a consequence, where executing the step again would not do it. `place`
    is where it was done, where that is not where it shows first.
    """

    tried: int = 0
    sentence: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    solved: Mapping[Target, Recipe] = field(default_factory=dict)
    perturbations: tuple[Perturbation, ...] = ()  # beyond those of the recipes
    follow: Mapping[tuple[int, Stage], Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)
    covered: frozenset[Target] = frozenset()
    digest: str = ""
    limits: str = ""
    not_tried: str = ""
    place: Location | None = None

    @property
    def found(self) -> bool:
        return bool(self.covered)


def not_tried(reason: str) -> Answer:
    """The answer of a hypothesis that could not be put to the test."""
    return Answer(not_tried=reason)


class Idea(NamedTuple):
    """A hypothesis of the catalogue: the stages at whose divergence it is asked, and its search."""

    name: str
    claim: str  # what it would mean, as a clause: "the sign of the gradient was flipped"
    stages: frozenset[Stage]
    search: Callable[[Question, Budget], Answer]


class Question:
    """Everything that is known about the diverging step."""

    def __init__(
        self,
        at: Location,
        captures: Mapping[int, Capture],
        recorded: Details,
        records: Mapping[int, StepRecord],
        history: BatchHistory,
        key: bytes,
        kept_batches: Mapping[int, Path] | None = None,
    ) -> None:
        self.at = at
        self.captures = captures
        self.recorded = recorded
        self.records = records
        self.history = history
        self.key = key
        self.kept_batches = kept_batches or {}
        self._clean_digests: dict[tuple[int, Stage], dict[str, bytes]] = {}
        self._claimed: dict[tuple[int, Stage], dict[str, bytes]] = {}

    def clean(self, rank: int, stage: Stage) -> Mapping[str, Tensor]:
        """The clean tensors of a stage; empty when they were not captured.

        Where the difference lies before the step, the weights are those that it began with, here and in `claimed`.
        """
        if stage is Stage.WEIGHTS and self.at.before:
            return self.before(rank, stage)
        capture = self.captures.get(rank)
        return capture.clean(stage) if capture is not None else {}

    def before(self, rank: int, stage: Stage) -> Mapping[str, Tensor]:
        """Clean weights or optimizer state as the step found them."""
        capture = self.captures.get(rank)
        return capture.before(stage) if capture is not None else {}

    def digest(self, stage: Stage, tensor: Tensor) -> bytes:
        """The digest that the recorder would give to this value at this stage."""
        if stage is Stage.RNG:
            return value_digest(self.key, bytes(tensor.numpy().data))
        return tensor_digest(self.key, tensor)

    def clean_digests(self, rank: int, stage: Stage) -> Mapping[str, bytes]:
        """The digests of the captured values."""
        if (rank, stage) not in self._clean_digests:
            self._clean_digests[rank, stage] = dict(self._digest_captured(rank, stage))
        return self._clean_digests[rank, stage]

    def _digest_captured(self, rank: int, stage: Stage) -> Iterator[tuple[str, bytes]]:
        if stage is Stage.HYPERPARAMETERS and rank in self.captures:
            from trainwarden.record.stages import settings_digest

            for i, group in enumerate(self.captures[rank].meta.groups):
                plain = {k: v for k, v in group.items() if k != "params"}
                yield f"group{i}", settings_digest(self.key, plain)
        for name, tensor in self.clean(rank, stage).items():
            yield name, self.digest(stage, tensor)

    def claimed(self, rank: int, stage: Stage) -> Mapping[str, bytes]:
        """The recorded digests of a stage."""
        if (rank, stage) not in self._claimed:
            started = stage is Stage.WEIGHTS and self.at.before
            detail = self.begun(rank) if started else self.recorded.get((rank, stage))
            pairs = zip(detail.names, detail.digests, strict=True) if detail is not None else ()
            self._claimed[rank, stage] = dict(pairs)
        return self._claimed[rank, stage]

    def clean_start(self, rank: int) -> dict[str, bytes]:
        """The digests of the clean weights as the step found them, in the optimizer's order."""
        found = self.before(rank, Stage.WEIGHTS)
        names = self.captures[rank].meta.names if rank in self.captures else ()
        names = names or tuple(n for n in found if not n.startswith(BUFFERS))
        return {n: self.digest(Stage.WEIGHTS, found[n]) for n in names if n in found}

    def begun(self, rank: int) -> Detail | None:
        """The weights that the record says the step began with; None where it does not say or contradicts itself."""
        clean = self.clean_start(rank)
        if rank not in self.records or not clean:
            return None
        left = Detail(names=tuple(clean), digests=tuple(clean.values()))
        return begun(self.key, self.records[rank], left)

    def differing(self, stage: Stage) -> tuple[Target, ...]:
        """The tensors of a stage whose recorded digest is not that of the captured value, over all ranks."""
        found = []
        for rank in sorted(self.captures):
            claimed = self.claimed(rank, stage)
            clean = self.clean_digests(rank, stage)
            found += [Target(rank, name) for name in clean if claimed.get(name, clean[name]) != clean[name]]
        return tuple(found)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """What is to be reproduced: the differing tensors of the diverging stage."""
        return self.differing(self.at.stage)

    @cached_property
    def place(self) -> Target:
        """The located tensor, or the first that differs where the location names none that was captured."""
        at = Target(self.at.rank, self.at.tensor)
        return at if at in self.targets or not self.targets else self.targets[0]

    @cached_property
    def unusable(self) -> str:
        """Why the captures cannot answer this question at all, or ""."""
        if self.at.rank not in self.captures:
            return f"rank {self.at.rank} was not captured"
        digest = self.clean_digests(self.at.rank, self.at.stage).get(self.at.tensor, b"").hex()
        if digest and self.at.replayed and digest != self.at.replayed:
            return f"the captured value ({digest}) is not the one that the replay compared ({self.at.replayed})"
        if digest and digest == self.claimed(self.at.rank, self.at.stage).get(self.at.tensor, b"").hex():
            return f"the captured value of {self.at.tensor} has the recorded digest"
        return ""

    def wanted(self, target: Target) -> bytes:
        """The recorded digest of a target of the diverging stage."""
        return self.claimed(target.rank, self.at.stage)[target.name]

    def value(self, target: Target) -> Tensor:
        """The clean value of a target of the diverging stage."""
        return self.clean(target.rank, self.at.stage)[target.name]


def recipe(q: Question, change: TensorPerturbation, sentence: str) -> Recipe:
    """The recipe that a tensor perturbation of the diverging stage is."""
    if q.at.before:
        change = msgspec.structs.replace(change, before=True)

    def make(target: Target) -> Tensor:
        return transform(change, q.value(target), q.clean(target.rank, q.at.stage), target.name)

    return Recipe(sentence, {}, make, change)


def parameters_of(r: Recipe) -> dict[str, Any]:
    """A recipe's settings: its own, or those of its perturbation without where it applies."""
    return r.parameters if r.change is None else settings_of(r.change)


def settings_of(change: TensorPerturbation) -> dict[str, Any]:
    """A perturbation's settings without where it applies."""
    skipped = {"kind", "stage", "tensors", "ranks", "before", "path"}
    return {k: v for k, v in msgspec.to_builtins(change).items() if k not in skipped}


Candidates = Callable[[Target], Iterable[Recipe]]


def search_tensors(q: Question, budget: Budget, candidates: Candidates, limits: str = "") -> Answer:
    """Try every candidate on the smallest differing tensor and the located one; what fits, on the rest.

    Tensors that the found setting does not fit are searched on their own (up to `FURTHER_SEARCHES`).
    """
    if not q.targets:
        return not_tried(no_value(q))
    search = _Search(q, budget, candidates)
    search.run()
    if q.place not in search.solved:
        return Answer(tried=search.tried, limits=_said(limits, search.cut))
    first = search.solved[q.place]
    return Answer(
        tried=search.tried,
        sentence=first.sentence,
        parameters=parameters_of(first),
        solved=search.solved,
        covered=frozenset(search.solved),
        digest=q.wanted(q.place).hex(),
        limits=_said("", search.cut),
    )


def no_value(q: Question) -> str:
    """Why nothing can be computed at the diverging stage."""
    return f"the replay captured no value at stage {q.at.stage} that differs from the record"


def _said(limits: str, cut: bool) -> str:
    return "; ".join(part for part in (limits, "stopped at its time limit" if cut else "") if part)


class _Search:
    def __init__(self, q: Question, budget: Budget, candidates: Candidates) -> None:
        self.q = q
        self.budget = budget
        self.candidates = candidates
        self.solved: dict[Target, Recipe] = {}
        self.tried = 0
        self.cut = False
        self._pairs: dict[tuple[bytes, bytes], Recipe] = {}
        self._found: list[Recipe] = []

    def run(self) -> None:
        smallest = min(self.q.targets, key=lambda t: self.q.value(t).numel())
        for target in dict.fromkeys((smallest, self.q.place)):
            self._known(target) or self._search(target)
        further = FURTHER_SEARCHES
        for target in self.q.targets if self._found else ():
            if target not in self.solved and not self._known(target) and further > 0:
                further -= 1
                self._search(target)

    def _known(self, target: Target) -> bool:
        """Whether a recipe that fitted another tensor fits this one."""
        known = self._pairs.get(self._pair(target))
        return any(self._fits(r, target) for r in ([known] if known is not None else self._found))

    def _search(self, target: Target) -> bool:
        for r in self.candidates(target):
            self.tried += 1
            if self._fits(r, target):
                return True
            if self.budget.spent():
                self.cut = True
                break
        return False

    def _fits(self, r: Recipe, target: Target) -> bool:
        try:
            if self.q.digest(self.q.at.stage, r.make(target)) != self.q.wanted(target):
                return False
        except (ValueError, KeyError):  # the recipe does not fit a tensor of this shape or type
            return False
        self.solved[target] = r
        self._pairs.setdefault(self._pair(target), r)
        if r not in self._found:
            self._found.append(r)
        return True

    def _pair(self, target: Target) -> tuple[bytes, bytes]:
        return self.q.clean_digests(target.rank, self.q.at.stage)[target.name], self.q.wanted(target)


def retarget(solved: Mapping[Target, Recipe], every: Sequence[Target]) -> tuple[TensorPerturbation, ...]:
    """The fewest perturbations that say what `solved` says: equal ones are joined over tensors and ranks."""
    groups: dict[TensorPerturbation, dict[int, list[str]]] = {}
    for target in every:
        change = solved[target].change if target in solved else None
        if change is not None:
            bare = msgspec.structs.replace(change, tensors=(), ranks=())
            groups.setdefault(bare, {}).setdefault(target.rank, []).append(target.name)
    joined: list[TensorPerturbation] = []
    for bare, by_rank in groups.items():
        same: dict[tuple[str, ...], list[int]] = {}
        for rank, names in by_rank.items():
            same.setdefault(tuple(names), []).append(rank)
        joined += [msgspec.structs.replace(bare, tensors=names, ranks=tuple(ranks)) for names, ranks in same.items()]
    return tuple(joined)


def number(value: float) -> str:
    """A number as a person would write it."""
    return f"{value:.10g}"


def factors(world: int) -> Iterator[float]:
    """Factors in the order in which a person would guess them; each once, 1 and −1 left out."""
    common = [0.0, 2.0, 0.5, -2.0, -0.5, 0.1, 10.0, 1.01, 0.99, 1.1, 0.9, 0.7, 1.5, 0.75, 0.25, 1.05, 0.95]
    worlds = [float(n) for n in {world, world - 1, world + 1} if n > 1]
    ratios = [1.0 / n for n in worlds] + [(n - 1) / n for n in worlds] + [n / (n - 1) for n in worlds]
    powers = [10.0**e for e in range(-6, 5)] + [2.0**e for e in range(-16, 17)]
    grid = [round(i / 100, 2) for i in range(1, 301)]
    fine = [round(1 + s * i / 1000, 3) for i in range(1, 21) for s in (1, -1)]
    tiny = [1 + s * 10.0**-e for e in range(4, 8) for s in (1, -1)]
    positive = [
        *common,
        *sorted(worlds),
        *ratios,
        *powers,
        *grid,
        *fine,
        *tiny,
        3.0,
        4.0,
        5.0,
        100.0,
        math.pi,
    ]
    seen = {1.0, -1.0}
    for k in itertools.chain(positive, (-k for k in positive)):
        if k not in seen and not (k == 0 and 0.0 in seen):
            seen.add(k)
            yield k
