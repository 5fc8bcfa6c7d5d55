"""What replay establishes: verdicts, the place of a difference, and what reproduces it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias

from trainwarden.model.base import STAGES, Noun, Stage


class Segment(Noun):
    """Steps `first … last` (both included) of one attempt, between two checkpoints or ends."""

    attempt: int
    first: int
    last: int
    run: str = ""  # set only in the lineage of a later run; "" = the run whose log this is


class Location(Noun):
    """Where a replay first differs from the record."""

    step: int
    rank: int
    stage: Stage
    tensor: str = ""
    optimizer: int = 0
    recorded: str = ""  # digest
    replayed: str = ""  # digest
    tensors: tuple[str, ...] = ()  # every tensor of that stage that differs
    before: bool = False  # the weights as the step's first forward found them: they were edited before it

    @property
    def subject(self) -> str:
        """The stage in words."""
        return "weights changed before the step" if self.before else self.stage.replace("_", " ")

    @property
    def words(self) -> str:
        """The stage and its tensor in words."""
        if self.before and self.tensor:
            return f"weights of {self.tensor}, changed before the step"
        return f"{self.subject} of {self.tensor}" if self.tensor else self.subject

    @property
    def order(self) -> int:
        """Where in the step it lies: the stage's place among `STAGES`, −1 for what lay before the step."""
        return -1 if self.before else STAGES.index(self.stage)


class Coverage(Noun):
    """What a comparison looked at: digests compared, and stages that could not be compared with the reason."""

    records: int = 0
    digests: int = 0
    unseen: dict[str, str] = {}  # stage → why it was not compared


class Matched(Noun, tag="matched"):
    """The replay of this segment from sealed inputs reproduced every recorded digest bit for bit."""

    segment: Segment
    coverage: Coverage
    mode: str = ""  # "start" | "resume" | "substitution"
    seconds: float = 0.0
    files: tuple[str, ...] = ()  # recorded digests of the checkpoint files that the replay wrote again


class Diverged(Noun, tag="diverged"):
    """The replay of this segment from sealed inputs differs from the record at `at`."""

    segment: Segment
    at: Location
    coverage: Coverage
    mode: str = ""
    seconds: float = 0.0


class Inconclusive(Noun, tag="inconclusive"):
    """The segment could not be decided; never read as a pass."""

    segment: Segment
    reasons: tuple[str, ...]
    mode: str = ""
    seconds: float = 0.0


Verdict: TypeAlias = Matched | Diverged | Inconclusive


class Outcome(StrEnum):
    """How a hypothesis fared: reproduced the tampered digest, did not, or could not be tried."""

    REPRODUCED = "reproduced"
    EXCLUDED = "excluded"
    NOT_TRIED = "not tried"


class Hypothesis(Noun):
    """One tried cause of a divergence and its result."""

    name: str
    sentence: str
    outcome: Outcome
    parameters: dict[str, Any] = {}
    tried: int = 1  # how many settings were tried under this name
    digest: str = ""  # the closest digest produced, when one was
    reason: str = ""  # why it was not tried


class Explanation(Noun, tag="explanation"):
    """What reproduced the diverging step. `cause` is None when none of the hypotheses did."""

    at: Location
    hypotheses: tuple[Hypothesis, ...]
    cause: str | None  # name of the hypothesis that reproduced the digest bit for bit
    file: str = ""  # the tampered file that reproduces it, when one was in quarantine
    seconds: float = 0.0
