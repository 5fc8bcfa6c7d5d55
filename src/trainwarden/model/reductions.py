"""What the reduction of gradients over ranks was seen to do."""

from __future__ import annotations

from trainwarden.model.base import Noun


class ReductionFault(Noun):
    """One thing that a mean of gradients does not explain.

    `kind`: "rank" (one rank entered with another `factor`), "divisor" (the outcome is `factor` times the mean),
    "received" (these ranks got another outcome), "unexplained"; and between the reduction and the update: "turned"
    (the sign of single tensors), "all turned", "changed" (single tensors, by more than the common factor).
    """

    kind: str
    ranks: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()  # the first of those in which it was seen
    factor: float = 1.0
    residual: float = 0.0  # relative to the norm of the ranks' own sums


class ReductionSeen(Noun, tag="reduction"):
    """The keyed sums of all ranks compared, by the supervisor: a fault, the reason for none, or at the end how many."""

    attempt: int
    step: int
    updates: int = 0  # compared so far
    parts: int = 0  # of tensors in them
    elements: int = 0  # numbers in these
    faults: tuple[ReductionFault, ...] = ()
    more: int = 0  # faults that repeat earlier ones and are not listed
    unchecked: str = ""
    wall_ns: int = 0
