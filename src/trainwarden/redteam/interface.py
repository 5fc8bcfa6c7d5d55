"""What an attack is made of. The catalogue itself (`attacks/`) is not in the wheel; these are its seams.

A `Technique` is one way to sabotage training; its `Variant`s differ in what they strike, when, and how it gets there.
A variant is a list of `Act`s, each at a `Moment` of a guarded job, and says what evidence it must leave (`Evidence`)
and what it must do to the job (`Effect`), so that a sabotage that is none is not counted. Its `Twin` is the honest
change that looks like it.

Rules
-----
* An act sees a `Range` and nothing else: every file, process and socket it touches goes through that, which refuses
  what lies outside of the copy.
* The truth (first tampered step, rank, tensor) comes from marks that the payload itself writes, never from a detector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainwarden.redteam.place import Range


class Moment(StrEnum):
    """When an act is carried out."""

    PREPARE = "before the seal"  # what is there already when the inputs are sealed and approved
    START = "before the start"  # after the seal was approved, where the variant is `approved`
    STEP = "at a step"
    BETWEEN = "between two runs"  # the first has ended, the second resumes it
    END = "after the end"


class When(StrEnum):
    """Which wall the evidence comes from."""

    BEFORE_START = "before-start"
    LIVE = "live"
    AUDIT = "audit"
    VERIFY = "verify"
    GATE = "gate"
    INCIDENT = "incident"


class Effect(StrEnum):
    """What an attack must do to the job, measured against the honest run of the same seed."""

    WEIGHTS = "other final weights"
    SECONDS = "time lost"
    STEPS_TWICE = "steps made twice"
    CODE_RAN = "code of the insider ran"
    METRIC = "a reported metric differs"
    ENDED = "the job does not end well"
    EVIDENCE = "evidence is altered or missing"
    SERVED = "something else is served than was approved"


@dataclass(frozen=True)
class Act:
    """One thing that the insider does. `step` is relative to the workload's `first` step to be struck."""

    moment: Moment
    do: Callable[[Range], None]
    step: int = 0
    ahead: bool = False  # the workload's `lead` earlier: code that gets in before it acts


@dataclass(frozen=True)
class Evidence:
    """What must be found: by which detector (`replay` for an audit, the check's name for verify), and how exactly.

    `exact` names what must agree with the payload's marks: "step", "rank", "tensor". `stage` is where a replay differs.
    """

    when: When
    by: str
    stage: str = ""
    exact: tuple[Literal["step", "rank", "tensor"], ...] = ()
    needed: bool = True  # False: welcome, and its silence is told, but the attack counts as found without it

    @property
    def words(self) -> str:
        """The evidence in a few words."""
        where = f" {self.stage}" if self.stage else ""
        return f"{self.when}: {self.by}{where}" + ("" if self.needed else " (also)")


@dataclass(frozen=True)
class Variant:
    """One way of a technique. Its first docstring-like sentence is `does`."""

    name: str
    does: str
    acts: tuple[Act, ...]
    expects: tuple[Evidence, ...]
    effect: Effect
    options: tuple[str, ...] = ("--on-environment-change", "alert")  # of `trainwarden run`
    approved: bool = False  # the seal is made and approved before the acts at START
    again: bool = False  # the job is run a second time, which resumes the first
    needs: tuple[str, ...] = ()  # what the workload must have: "ranks", "restarts", "pickle", "adam", "tracker", …
    strikes: tuple[str, ...] = ()  # the stages in which its numbers may first be seen to differ; () = in none
    level: Literal[1, 2, 3] | None = None  # of the threat model, where it is not its technique's


@dataclass(frozen=True)
class Twin:
    """The honest change that looks like the attack and must raise nothing above a low finding."""

    name: str
    does: str
    acts: tuple[Act, ...] = ()
    options: tuple[str, ...] = ("--on-environment-change", "alert")
    again: bool = False
    needs: tuple[str, ...] = ()
    seed: int | None = None  # another one than the attack's


@dataclass(frozen=True)
class Technique:
    """One entry of the catalogue. `needs` are letters: E environment, U user's environment or launcher, R repository,
    D data, K checkpoints, N nodes, L logs or tracker, S serving. `level` is the insider's in the threat model."""

    id: str  # two digits
    slug: str
    title: str
    needs: str
    atlas: str
    variants: tuple[Variant, ...]
    twin: Twin
    alleged: bool = False  # in the incident that TrainWarden is built for
    level: Literal[1, 2, 3] = 1

    def variant(self, name: str) -> Variant | None:
        """The variant of that name."""
        return next((v for v in self.variants if v.name == name), None)
