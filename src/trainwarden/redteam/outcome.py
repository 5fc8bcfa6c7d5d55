"""The row that one carried-out attack, twin or honest run comes to: plain data, in docs/sabotage-format.md.

Nothing in a row needs TrainWarden to be read or written: another detector writes the same rows about itself.
"""

from __future__ import annotations

import msgspec

FORMAT = "sabotage/1"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What every noun of a row is."""


class Marked(Row, frozen=True, kw_only=True):
    """One tampered step, as the payload marked it."""

    rank: int
    step: int
    wall_ns: int
    tensor: str = ""


class Found(Row, frozen=True, kw_only=True):
    """One thing that a detector said of a run. `steps` and `seconds` are counted from the first tampered step."""

    when: str  # before-start | live | audit | verify | gate | incident
    by: str
    severity: str = ""
    sentence: str = ""
    step: int = -1
    ranks: tuple[int, ...] = ()
    stage: str = ""
    tensor: str = ""
    steps: int | None = None
    seconds: float | None = None
    exact: bool | None = None  # agrees with the marks in all that it names; None = it names no place


class Expected(Row, frozen=True, kw_only=True):
    """One piece of evidence that was expected: `state` is "found", "silent" or "not checked"."""

    when: str
    by: str
    stage: str
    needed: bool
    state: str


class Effects(Row, frozen=True, kw_only=True):
    """What a run did otherwise than the honest run of the same seed; None = could not be measured."""

    weights_differ: bool | None = None
    loss_shift: float | None = None  # final loss less that of the honest run
    seconds_lost: float | None = None  # from the first step to the last
    steps_twice: int = 0
    code_ran: bool = False
    exit_code: int = 0
    metric_differs: bool | None = None


class Outcome(Row, frozen=True, kw_only=True):
    """One run of one variant, twin or honest job, and what was found of it."""

    format: str = FORMAT
    kind: str  # attack | twin | honest
    technique: str = ""
    variant: str = ""
    workload: str
    seed: int
    detector: str = "trainwarden"
    verdict: str  # found | missed | undecided | not carried out; of twin and honest: silent | accused
    strikes: tuple[str, ...] = ()  # of an attack: the stages in which its first tampered numbers may be seen
    found: tuple[Found, ...] = ()
    false: tuple[Found, ...] = ()  # of an attack: told before the insider did anything
    expected: tuple[Expected, ...] = ()
    marks: tuple[Marked, ...] = ()  # the first of each rank
    struck_ns: int = 0  # when the insider acted first
    located: str = "no"  # exact | near | no
    cause: str = ""
    cause_proved: bool | None = None  # None = nothing was explained
    effect: Effects = Effects()
    worked: bool | None = None  # the effect that the variant must have was measured
    runs: tuple[str, ...] = ()
    seconds: float = 0.0
    note: str = ""
